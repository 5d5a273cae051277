"""Our gateway, which tells at its end what its ledger did: `python -m bench.counting_gateway CONFIG`.

`CONFIG` is a JSON object: `port`, `upstream`, `facilitator`, `folder`, `figures` (the file to write), `records_start`.
With `records_start` false, that a stream's first byte was handed over is not recorded: what that record costs.
"""

import asyncio
import json
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from bench.offer import NETWORK, PAY_TO, PRICE
from bench.programs import HOST
from obol import GatewayConfig
from obol.adapters.event_loop import run
from obol.adapters.ledger_sqlite import SqliteLedger
from obol.core.ledger import NO_CHANGE, Change, ClaimOutcome
from obol.core.offer import Offer
from obol.core.sale import Delivery, NewSale, Sale
from obol.gateway.gateway import Gateway
from obol.gateway.ports import Ports


class CountingLedger:
    """Passes everything on to a ledger; times the records of sales."""

    def __init__(self, ledger: SqliteLedger, *, records_start: bool) -> None:
        self._ledger = ledger
        self._records_start = records_start
        self.started_s: list[float] = []
        self.others_s: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    async def claim(self, sale: NewSale) -> ClaimOutcome:
        began_s = time.perf_counter()
        outcome = await self._ledger.claim(sale)
        self.others_s.append(time.perf_counter() - began_s)
        return outcome

    async def record(
        self, sale_id: str, events: Sequence[Any], change: Change = NO_CHANGE, *, attempt: str | None = None
    ) -> Sale:
        is_start = not events and change.delivery is Delivery.STARTED
        if is_start and not self._records_start:
            return cast(Sale, None)  # who records no event does not look at what comes back
        began_s = time.perf_counter()
        recorded = await self._ledger.record(sale_id, events, change, attempt=attempt)
        (self.started_s if is_start else self.others_s).append(time.perf_counter() - began_s)
        return recorded

    def figures(self) -> dict[str, Any]:
        return {"commits": self._ledger.commits, "started_s": self.started_s, "others_s": self.others_s}


class CountingGateway(Gateway):
    """As `obol sell inference` starts it, but for the ledger."""

    records_start = True
    counting: CountingLedger

    async def _open_ports(self, offer: Offer) -> Ports:
        ports = await super()._open_ports(offer)
        self.counting = CountingLedger(cast(SqliteLedger, ports.ledger), records_start=self.records_start)
        return replace(ports, ledger=self.counting)


async def serve(told: dict[str, Any]) -> dict[str, Any]:
    """Until SIGTERM; then what the ledger did."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    config = GatewayConfig(
        upstream_url=told["upstream"],
        pay_to=PAY_TO,
        price=PRICE,
        chain=NETWORK.name,
        facilitator_url=told["facilitator"],
        listen=f"{HOST}:{told['port']}",
        data_dir=Path(told["folder"]),
    )
    gateway = CountingGateway(config)
    gateway.records_start = told["records_start"]
    async with gateway:
        await stop.wait()
    return gateway.counting.figures()


if __name__ == "__main__":
    told = json.loads(sys.argv[1])
    Path(told["figures"]).write_text(json.dumps(run(serve(told))))
