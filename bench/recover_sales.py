"""A gateway's start after a crash, without the gateway: `python -m bench.recover_sales LEDGER SALES`.

Adopts what the ledger has open and settles it with a facilitator that says yes at once. Prints its figures as JSON when
the last of the sales is settled.
"""

import asyncio
import json
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from bench.offer import NETWORK
from obol.adapters.clock import SystemClock
from obol.adapters.entropy import Entropy
from obol.adapters.event_loop import run
from obol.adapters.ledger_sqlite import SqliteLedger
from obol.adapters.logs import make_logger
from obol.adapters.metrics import Metrics
from obol.core.ledger import NO_CHANGE, Change
from obol.core.networks import DEFAULT_CATALOGUE
from obol.core.payment import Event, State
from obol.core.sale import Sale
from obol.gateway.ports import Ports
from obol.gateway.settling import Settler
from obol.x402.facilitator import Accepted, Settlement, SettleOutcome, VerifyOutcome
from obol.x402.models import PaymentPayload, PaymentRequirements, SupportedResponse

TICK_S = 0.005


class TimedLedger(SqliteLedger):
    """Tells when sales are settled, and when `wanted` of them are."""

    settled_s: list[float]
    wanted: int
    all_settled: asyncio.Event

    async def record(
        self, sale_id: str, events: Sequence[Event], change: Change = NO_CHANGE, *, attempt: str | None = None
    ) -> Sale:
        recorded = await super().record(sale_id, events, change, attempt=attempt)
        if recorded.state is State.SETTLED:
            self.settled_s.append(time.perf_counter())
            if len(self.settled_s) == self.wanted:
                self.all_settled.set()
        return recorded


class YesAtOnce:
    """A facilitator that costs nothing."""

    async def verify(self, payload: PaymentPayload, _: PaymentRequirements) -> VerifyOutcome:
        return Accepted(payload.payer)

    async def settle(self, _: PaymentPayload, __: PaymentRequirements) -> Settlement:
        return Settlement(SettleOutcome.SETTLED, "0x" + "ab" * 32)

    async def supported(self) -> SupportedResponse:
        return SupportedResponse([])

    async def close(self) -> None: ...


async def recover(path: Path, sales: int) -> dict[str, float]:
    """Seconds are from the call of `Settler.recover` on."""
    clock = SystemClock()
    ledger = cast(TimedLedger, await TimedLedger.open(path, clock))
    ledger.settled_s, ledger.wanted, ledger.all_settled = [], sales, asyncio.Event()
    ports = Ports(ledger, YesAtOnce(), clock, Entropy(), Metrics(), make_logger(as_json=True), DEFAULT_CATALOGUE)
    settler = Settler(ports)
    idle_mib = _peak_mib()
    gaps_s: list[float] = []
    ticking = asyncio.get_running_loop().create_task(_tick(gaps_s))
    started_s, used_s = time.perf_counter(), time.process_time()
    found = await settler.recover(NETWORK.caip2)
    recovered_s, tasks = time.perf_counter() - started_s, len(asyncio.all_tasks())
    commits = ledger.commits
    await ledger.all_settled.wait()
    used_s = time.process_time() - used_s
    ticking.cancel()
    await settler.drain(1.0)
    await ledger.close()
    return {
        "found": found,
        "recovered_s": recovered_s,
        "commits": commits,
        "tasks": tasks,
        "first_s": ledger.settled_s[0] - started_s,
        "last_s": ledger.settled_s[-1] - started_s,
        "cpu_s": used_s,
        "longest_gap_s": max(gaps_s),
        "idle_mib": idle_mib,
        "peak_mib": _peak_mib(),
    }


async def _tick(gaps_s: list[float]) -> None:
    """How long the event loop leaves others waiting."""
    while True:
        before_s = time.perf_counter()
        await asyncio.sleep(TICK_S)
        gaps_s.append(time.perf_counter() - before_s - TICK_S)


def _peak_mib() -> float:
    """Of this process alone: what `getrusage` says on Linux has the parent's in it."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(recover(Path(sys.argv[1]), int(sys.argv[2])))))
