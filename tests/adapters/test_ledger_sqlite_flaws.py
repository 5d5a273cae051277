"""Rows that SQLite keeps and that are no sales: each is told, and none hides another."""

import asyncio
import contextlib
import sqlite3
from pathlib import Path

import pytest

from obol.adapters.ledger_sqlite import SqliteLedger
from obol.adapters.ledger_sqlite_flaws import find_damage, read_rows
from obol.core.ledger import EVERY_SALE
from obol.core.payment import State
from obol.errors import LedgerUnavailableError
from tests.adapters.sales import a_new_sale, claimed_in
from tests.fakes.clock import FakeClock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite3"


async def keep(path: Path, sales: int) -> list[str]:
    ledger = await SqliteLedger.open(path, FakeClock())
    ids = []
    for _ in range(sales):
        sale = a_new_sale()
        await ledger.claim(sale)
        ids.append(sale.id)
    await ledger.close()
    return ids


def spoil(path: Path, change: str, sale_id: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as file, file:
        file.execute(f"UPDATE sale SET {change} WHERE id = ?", (sale_id,))


async def test_sound_rows_are_the_sales_that_the_ledger_gives(path: Path) -> None:
    ledger = await SqliteLedger.open(path, FakeClock())
    for state in (State.SETTLED, State.OWED, State.SETTLE_FAILED, State.CLAIMED):
        await claimed_in(ledger, state)
    sales = list((await ledger.page(EVERY_SALE)).sales)
    rows = list(read_rows(path))
    await ledger.close()

    assert [row.sale for row in rows] == sales
    assert [row.flaws for row in rows] == [()] * 4
    assert find_damage(path) == []


@pytest.mark.parametrize(
    ("change", "flaw"),
    [
        ("state = 'bogus'", "its state 'bogus' is not known"),
        ("delivery = ''", "its delivery '' is not known"),
        ("settled_atomic = 'abc'", "its settled_atomic is not an amount"),
        ("authorized_atomic = '-1'", "its authorized_atomic is not an amount"),
        ("authorized_atomic = x'31'", "its authorized_atomic is of another kind: bytes"),
        ("created_s = 'x'", "its created_s is of another kind: str"),
        ("updated_s = ''", "its updated_s is of another kind: str"),
        ("valid_before_s = 'soon'", "its valid_before_s is of another kind: str"),
        ("log_index = 'x'", "its log_index is of another kind: str"),
        ("payload = 'x'", "its payload is of another kind: str"),
    ],
)
async def test_a_row_that_is_no_sale_is_told_and_does_not_hide_the_others(path: Path, change: str, flaw: str) -> None:
    ids = await keep(path, 3)
    spoil(path, change, ids[1])

    rows = list(read_rows(path))

    assert [row.id for row in rows] == ids
    assert [row.sale is None for row in rows] == [False, True, False]
    assert rows[1].flaws == (flaw,)


@pytest.mark.parametrize("column", ["payer", "nonce", "asset", "network"])
async def test_a_claim_that_is_not_that_of_the_authorization_is_told(path: Path, column: str) -> None:
    (sale_id,) = await keep(path, 1)
    spoil(path, f"{column} = '0x00'", sale_id)

    (row,) = read_rows(path)

    assert (row.sale is not None, row.flaws) == (True, ("it claims another authorization than its own",))


async def test_text_that_is_none_is_no_reason_to_stop(path: Path) -> None:
    ids = await keep(path, 2)
    spoil(path, "model = CAST(x'ff' AS TEXT)", ids[0])

    assert [row.id for row in read_rows(path)] == ids


def test_the_sales_before_the_damage_are_read_and_the_end_is_told(path: Path) -> None:
    ids = asyncio.run(keep(path, 200))
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(8192))

    rows = list(read_rows(path))

    assert find_damage(path) != []
    assert [row.id for row in rows[:5]] == ids[:5]
    assert len(rows) <= 201


@pytest.mark.parametrize("content", [b"this is not a database" * 100, b""])
def test_what_is_no_ledger_is_damage(path: Path, content: bytes) -> None:
    path.write_bytes(content)

    (row,) = read_rows(path)

    assert (row.id, row.sale) == ("", None)
    assert row.flaws[0].startswith("no more sales can be read: ")


def test_what_cannot_be_read_now_is_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnavailableError):
        find_damage(tmp_path / "none")
    with pytest.raises(LedgerUnavailableError):
        list(read_rows(tmp_path / "none"))
