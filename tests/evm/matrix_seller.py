"""Gateways that die at a given step, each a process of its own: `python -m tests.evm.matrix_seller SOCKET`.

For every connection to the Unix socket a gateway is forked (everything is imported already: it starts in a moment). It
reads one line, a `Job`, and answers lines: the labels of the steps it takes, and `@URL` once it listens. When the
connection is closed by the other side it drains and stops; when the gateway dies, the connection ends. The program
itself ends with its standard input.
"""

import asyncio
import fcntl
import os
import select
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path

import msgspec

from obol import GatewayConfig
from obol.adapters.clock import SystemClock
from obol.adapters.event_loop import run
from obol.adapters.logs import make_logger
from obol.core.offer import SettlementPolicy
from obol.gateway.ports import Ports
from obol.inference.upstream import Upstream
from tests.evm.matrix_steps import Kill, LabelledFacilitator, LabelledLedger, LabelledUpstream, Steps
from tests.gateway.assembled import AssembledGateway

MODEL = "tiny"
PRICE = "0.01"
RETRY_SCHEDULE_S = (0.05,)
_HIGH = 200
"""Descriptors are closed in order when a process dies: the connection ends after the locks of the ledger."""


class Job(msgspec.Struct, frozen=True):
    """What one gateway is started with."""

    data_dir: str
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
            data_dir=Path(self.data_dir),
        )


class LabelledGateway(AssembledGateway):
    """The gateway from its real pieces, with labelled steps around its ports."""

    def __init__(self, job: Job, steps: Steps) -> None:
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


def main(socket_path: str) -> None:
    """Fork a gateway for each connection."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries them
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(socket_path)
        listening.listen()
        print("listening", flush=True)  # noqa: T201 - what the parent waits for
        while sys.stdin not in select.select([listening, sys.stdin], [], [])[0]:
            connection, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                _be_seller(connection)
            connection.close()


def _be_seller(connection: socket.socket) -> None:
    """Never returns."""
    descriptor = fcntl.fcntl(connection.detach(), fcntl.F_DUPFD, _HIGH)
    status = 1
    try:
        with socket.socket(fileno=descriptor) as high:
            job = msgspec.json.decode(high.makefile("rb").readline(), type=Job)
            log = os.open(Path(job.data_dir) / "log", os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
            for standard in (0, 1, 2):
                os.dup2(log, standard)
            run(_sell(job, high))
        status = 0
    finally:
        os._exit(status)


async def _sell(job: Job, connection: socket.socket) -> None:
    def tell(line: str) -> None:
        os.write(connection.fileno(), line.encode() + b"\n")

    connection.setblocking(False)
    gateway = LabelledGateway(job, Steps(job.kill, tell))
    try:
        await gateway.start_async()
        tell(f"@{gateway.url}")
        await asyncio.get_running_loop().sock_recv(connection, 1)
    finally:
        await gateway.stop_async()


if __name__ == "__main__":
    main(sys.argv[1])
