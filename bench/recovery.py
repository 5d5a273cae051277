"""A start after a crash with 100,000 sales open: how long until each is seen to, and until it is settled."""

import json
import secrets
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import msgspec

from bench.machine import SUBJECT_CORE, on_core
from bench.offer import MODEL, NETWORK, PAY_TO, PRICE, USDC
from bench.report import Table, number
from obol.adapters.clock import SystemClock
from obol.adapters.event_loop import run
from obol.adapters.ledger_sqlite import SqliteLedger
from obol.adapters.signer_local import LocalSigner
from obol.core.ledger import Change
from obol.core.money import parse_amount
from obol.core.offer import Model, Offer
from obol.core.payment import Event
from obol.core.sale import ClaimKey, Delivery, NewSale
from obol.x402.client import sign_exact
from obol.x402.exact import build_requirements

SALES = (10_000, 100_000)
TIMEOUT_S = 600.0
_SERVED = (Event.SERVE, Event.OUTPUT)
_SETTLING = (*_SERVED, Event.SETTLE)
_OPEN = (_SERVED, _SETTLING, (*_SETTLING, Event.SETTLE_UNKNOWN))
_MADE = "WITH RECURSIVE number(n) AS (SELECT ?1 UNION ALL SELECT n + 1 FROM number WHERE n + 1 < ?1 + ?2) "
_OWN = {
    "id": "printf('%032x', n)",
    "attempt": "printf('%032x', n)",
    "nonce": "printf('0x%064x', n)",
    "claim": "randomblob(16)",
    "created_s": "created_s + n * 0.001",
}
"""What differs from copy to copy of a sale."""


def measure(folder: Path, say: Callable[[str], None]) -> list[Table]:
    """Two numbers of sales: what grows faster than they do shows."""
    columns = ("open sales", "all seen to s", "commits", "tasks", "first settled s", "last settled s", "CPU µs a sale")
    more = ("loop stopped ms", "peak RSS MiB", "KiB a sale")
    note = (
        "SERVED, SETTLING and SETTLE_UNKNOWN in equal parts, from one dead gateway. Seconds from the start of "
        "`Settler.recover`, which a gateway waits for before it listens; commits and tasks: when it returned. The "
        "first question comes 1 s after a sale is seen to, to a facilitator in the same process that says yes at "
        "once. Loop stopped: longest."
    )
    table = Table("Recovery", (*columns, *more), notes=(note,))
    for sales in SALES:
        here = folder / str(sales)
        here.mkdir()
        path = here / "ledger.sqlite3"
        say(f"recovery: writing {sales} sales")
        run(_write_one_of_each(path))
        _copy(path, sales)
        say(f"recovery of {sales} sales")
        table.rows.append(_row(sales, _recover(path, sales)))
    return [table]


async def _write_one_of_each(path: Path) -> None:
    """By a gateway that then goes away: its sales are free to be adopted."""
    amount_atomic = parse_amount(PRICE, USDC.decimals, field="--price")
    requirements = build_requirements(Offer("bench", "", (Model(MODEL, MODEL),), USDC, PAY_TO, amount_atomic))
    signer, now_s = LocalSigner.generate(), time.time()
    payment = sign_exact(signer, requirements, USDC, now_s=now_s, nonce=secrets.token_bytes(32))
    key = ClaimKey(NETWORK.caip2, USDC.address.lower(), signer.address.lower(), "")
    new = NewSale(
        id="",
        key=key,
        offer="bench",
        pay_to=PAY_TO,
        authorized_atomic=amount_atomic,
        valid_before_s=int(now_s) + 300,
        api="chat",
        model=MODEL,
        payload=msgspec.json.encode(payment),
        requirements=msgspec.json.encode(requirements),
        created_s=now_s,
    )
    ledger = await SqliteLedger.open(path, SystemClock())
    try:
        for events in _OPEN:
            sale = replace(new, id=secrets.token_hex(16), key=replace(key, nonce="0x" + secrets.token_hex(32)))
            await ledger.claim(sale)
            await ledger.record(sale.id, events, Change(delivery=Delivery.STARTED))
    finally:
        await ledger.close()


def _copy(path: Path, sales: int) -> None:
    """Copies of the sales that are there, until there are so many."""
    with closing(sqlite3.connect(path)) as db, db:
        there = [row[0] for row in db.execute("SELECT id FROM sale")]
        columns = [row[1] for row in db.execute("PRAGMA table_info(sale)")]
        values = ", ".join(_OWN.get(column, column) for column in columns)
        wanted = sales - len(there)
        for place, sale_id in enumerate(there):
            first, last = (wanted * edge // len(there) for edge in (place, place + 1))
            db.execute(
                f"{_MADE} INSERT INTO sale ({', '.join(columns)}) SELECT {values} FROM number, sale WHERE sale.id = ?3",
                (first, last - first, sale_id),
            )


def _recover(path: Path, sales: int) -> dict[str, float]:
    command: Sequence[str] = (sys.executable, "-m", "bench.recover_sales", str(path), str(sales))
    with on_core(SUBJECT_CORE), path.with_name("recover.log").open("wb") as log:
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=log, timeout=TIMEOUT_S)
    figures: dict[str, float] = json.loads(done.stdout)
    if figures["found"] != sales:
        raise RuntimeError(f"{sales} sales were open, {figures['found']:.0f} were adopted")
    return figures


def _row(sales: int, figures: dict[str, float]) -> tuple[str, ...]:
    return (
        f"{sales:,}",
        number(figures["recovered_s"], 1),
        number(figures["commits"]),
        number(figures["tasks"]),
        number(figures["first_s"], 1),
        number(figures["last_s"], 1),
        number(figures["cpu_s"] / sales * 1e6),
        number(figures["longest_gap_s"] * 1e3),
        number(figures["peak_mib"], 0),
        number((figures["peak_mib"] - figures["idle_mib"]) * 1024 / sales, 1),
    )
