"""Gateways that die at a given step, each a process of its own: `python -m tests.evm.matrix_seller SOCKET`."""

import asyncio
import socket
import sys
from dataclasses import replace
from pathlib import Path

from obol import GatewayConfig
from obol.adapters.clock import SystemClock
from obol.adapters.logs import make_logger
from obol.core.offer import SettlementPolicy
from obol.gateway.ports import Ports
from obol.inference.upstream import Upstream
from tests.evm.forking import Job, Tell, serve_forks
from tests.evm.matrix_steps import Kill, LabelledFacilitator, LabelledLedger, LabelledUpstream, Steps
from tests.gateway.assembled import AssembledGateway

MODEL = "tiny"
PRICE = "0.01"
RETRY_SCHEDULE_S = (0.05,)


class SellerJob(Job, frozen=True):
    """What one gateway is started with."""

    pay_to: str
    settlement: SettlementPolicy
    upstream_url: str
    facilitator_url: str
    rpc_url: str
    kill: Kill | None = None
    settle_timeout_s: float = 5.0

    def config(self) -> GatewayConfig:
        """The same, as a seller would write it."""
        return GatewayConfig(
            upstream_url=self.upstream_url,
            pay_to=self.pay_to,
            price=PRICE,
            listen="127.0.0.1:0",
            facilitator_url=self.facilitator_url,
            rpc_urls=(self.rpc_url,),
            settlement=self.settlement,
            max_unsettled=PRICE if self.settlement is SettlementPolicy.AFTER else None,
            settle_timeout_s=self.settle_timeout_s,
            drain_timeout_s=5.0,
            data_dir=Path(self.folder),
        )


class LabelledGateway(AssembledGateway):
    """The gateway from its real pieces, with labelled steps around its ports."""

    def __init__(self, job: SellerJob, steps: Steps) -> None:
        super().__init__(
            job.config(),
            models=(MODEL,),
            log=make_logger(as_json=True),
            clock=SystemClock(),
            wrap_ledger=lambda ledger: LabelledLedger(ledger, steps),
            retry_schedule_s=RETRY_SCHEDULE_S,
        )
        self._steps = steps

    async def _serve(self, ports: Ports) -> None:
        await super()._serve(replace(ports, facilitator=LabelledFacilitator(ports.facilitator, self._steps)))

    def _open_upstream(self) -> Upstream:
        return LabelledUpstream(super()._open_upstream(), self._steps)


async def _sell(job: SellerJob, connection: socket.socket, tell: Tell) -> None:
    gateway = LabelledGateway(job, Steps(job.kill, tell))
    try:
        await gateway.start_async()
        tell(f"@{gateway.url}")
        await asyncio.get_running_loop().sock_recv(connection, 1)
    finally:
        await gateway.stop_async()


if __name__ == "__main__":
    serve_forks(sys.argv[1], SellerJob, _sell)
