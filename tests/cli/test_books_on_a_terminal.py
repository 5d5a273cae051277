"""What people read of the books, and copy from them, on terminals of different widths."""

import contextlib
import os
import pty
import subprocess
import sys
from pathlib import Path

from obol.adapters.clock import SystemClock
from obol.adapters.ledger_sqlite import SqliteLedger
from obol.adapters.paths import ledger_file
from obol.core.ledger import Change
from obol.core.payment import Event
from obol.x402.eip712 import checksum_address
from tests.adapters.sales import a_new_sale
from tests.cli.conftest import ENVIRONMENT
from tests.cli.kept_books import as_a_gateway_writes_it, fund, keep_a_refused_sale_that_was_paid, keep_books
from tests.cli.test_receipts import on

NARROW, WIDE = 80, 160
PAYER = checksum_address("0x" + "ab" * 20)
TRANSACTION = "0x" + "cd" * 32
PAY_TO = "0x" + "5e" * 20


def on_a_terminal(columns: int, *arguments: str) -> list[str]:
    """The lines that `obol` shows a person."""
    ours, theirs = pty.openpty()
    environment = ENVIRONMENT | {"TERM": "dumb", "COLUMNS": str(columns)}
    with subprocess.Popen([sys.executable, "-m", "obol", *arguments], env=environment, stdout=theirs) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # how Linux says that nobody writes any more
            while chunk := os.read(ours, 65536):
                shown += chunk
        os.close(ours)
        process.wait(10)
    return [line.rstrip() for line in shown.decode().splitlines()]


async def keep_an_owed_sale(folder: Path) -> str:
    """With an id, and a transaction, of the real length."""
    await keep_books(folder, settled=0)
    ledger = await SqliteLedger.open(ledger_file(folder, devnet=True), SystemClock())
    new = as_a_gateway_writes_it(a_new_sale(), PAY_TO)
    fields = {name: getattr(new, name) for name in type(new).__slots__} | {"id": "8a0e647ba40dda1908aa38b356f94954"}
    sale = type(new)(**fields)
    await ledger.claim(sale)
    owed = Change(settled_atomic=1000, transaction=TRANSACTION, log_index=12)
    await ledger.record(sale.id, [Event.SETTLE, Event.SETTLED_UNDELIVERED], owed)
    await ledger.close()
    return sale.id


async def test_sales_are_one_line_each_with_ids_that_can_be_copied(tmp_path: Path) -> None:
    sale = await keep_an_owed_sale(tmp_path)

    head, row = on_a_terminal(NARROW, "receipts", "list", *on(tmp_path))

    assert head.split() == ["id", "claimed", "offer", "amount", "state"]
    assert row.split()[::2] == [sale, "qwen", "USDC"]
    assert max(map(len, (head, row))) <= NARROW


async def test_a_wide_terminal_shows_more_of_them(tmp_path: Path) -> None:
    await keep_an_owed_sale(tmp_path)

    head, row = on_a_terminal(WIDE, "receipts", "list", *on(tmp_path))

    assert head.split() == ["id", "claimed", "offer", "payer", "amount", "state", "delivery"]
    assert PAYER in row


async def test_a_receipt_says_who_owes_what(tmp_path: Path) -> None:
    sale = await keep_an_owed_sale(tmp_path)

    lines = on_a_terminal(NARROW, "receipts", "show", sale, *on(tmp_path))

    assert max(map(len, lines)) <= NARROW
    assert {"network      base-sepolia (eip155:84532)", f"transaction  {TRANSACTION}"} <= set(lines)
    assert "you owe an answer. It is served when the same payment comes again." in " ".join(lines[-2:])


async def test_what_is_to_be_looked_into_can_be_copied_as_known(tmp_path: Path) -> None:
    sale = await keep_an_owed_sale(tmp_path)
    await fund(tmp_path, PAY_TO, 77)

    lines = on_a_terminal(NARROW, "reconcile", "--since", "2020-01-01", *on(tmp_path))

    assert max(map(len, lines)) <= NARROW
    assert f"  {TRANSACTION}:12" in lines
    assert f"  sale {sale}, owed" in lines
    assert "  chain 0.000077 USDC" in lines
    assert lines.count("unexplained: on the chain, and no sale explains it") == 1


async def test_what_a_reconciliation_recorded_is_told(tmp_path: Path) -> None:
    sale = await keep_a_refused_sale_that_was_paid(tmp_path)

    lines = on_a_terminal(NARROW, "reconcile", "--record", *on(tmp_path))

    assert "Recorded now: 1" in lines
    assert f"  sale {sale}, owed" in lines
    assert "Every unit is explained." in lines
    assert not [line for line in lines if len(line) > NARROW]
