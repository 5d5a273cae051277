"""A copy of a ledger that gateways write to: one instant of it, sound, private, and never instead of something else."""

import asyncio
import contextlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from obol.adapters.ledger_backup import back_up
from obol.adapters.ledger_sqlite import SqliteLedger
from obol.core.integrity import Checker
from obol.core.ledger import EVERY_SALE, Claimed
from obol.core.payment import State
from obol.core.sale import Sale
from obol.errors import LedgerUnavailableError, SettingsError
from tests.adapters.ledger_processes import ROOT, a_child
from tests.adapters.sales import a_new_sale
from tests.fakes.clock import FakeClock


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "data" / "ledger.sqlite"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "backup").mkdir()
    return tmp_path / "backup" / "copy.sqlite"


async def keep(path: Path, sales: int) -> None:
    ledger = await SqliteLedger.open(path, FakeClock())
    for _ in range(sales):
        await ledger.claim(a_new_sale())
    await ledger.close()


async def sales_in(path: Path) -> list[Sale]:
    """The sales of a copy, in the order in which they were claimed, once nothing is wrong with it."""
    ledger = await SqliteLedger.open(path, FakeClock())
    try:
        assert await ledger.flaws() == []
        sales = list((await ledger.page(EVERY_SALE, limit=1_000_000)).sales)
    finally:
        await ledger.close()
    checker = Checker()
    assert [flaw for sale in sales for flaw in checker.check(sale)] == []
    return sales


# ------------------------------------------------------------------------------------------------------- one instant


async def test_what_is_copied_beside_a_writer_is_all_that_it_was_told_until_then(source: Path, target: Path) -> None:
    with a_child(source, "-", *range(100_000)) as child:
        assert child.stdout is not None
        copies: list[tuple[int, Path]] = []
        told = 0
        for number in range(4):
            told += len([child.stdout.readline() for _ in range(200)])
            copy = target.with_name(f"copy {number}")
            assert back_up(source, copy).size_bytes == copy.stat().st_size
            copies.append((told, copy))
        assert child.poll() is None

    found = 0
    for at_least, copy in copies:
        sales = await sales_in(copy)
        assert len(sales) >= max(at_least, found)  # later copies are of later instants
        assert [int(sale.key.nonce, 16) for sale in sales] == list(range(len(sales)))  # a prefix: nothing is left out
        found = len(sales)


async def test_what_a_killed_gateway_left_is_copied(source: Path, target: Path) -> None:
    with a_child(source, "-", *range(100_000)) as child:
        assert child.stdout is not None
        told = [child.stdout.readline().split()[1] for _ in range(50)]
        child.kill()
        child.wait()
        back_up(source, target)
    assert [sale.id for sale in await sales_in(target)][:50] == told


async def test_a_step_that_is_not_committed_yet_is_not_in_the_copy(source: Path, target: Path) -> None:
    await keep(source, 2)
    with contextlib.closing(sqlite3.connect(source, isolation_level=None)) as gateway:
        gateway.execute("BEGIN IMMEDIATE")
        gateway.execute("UPDATE sale SET state = 'settled'")
        assert back_up(source, target).sales == 2
        gateway.execute("COMMIT")
    assert [sale.state for sale in await sales_in(target)] == [State.CLAIMED] * 2


async def test_a_copy_lives_on_without_its_source(source: Path, target: Path) -> None:
    await keep(source, 1)
    back_up(source, target)
    (copied,) = await sales_in(target)
    ledger = await SqliteLedger.open(target, FakeClock())
    assert isinstance(await ledger.claim(a_new_sale()), Claimed)
    await ledger.close()
    assert await sales_in(source) == [copied]


# ---------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", ["copy.sqlite", ".copy.sqlite.partial"])
async def test_what_is_there_is_never_overwritten(source: Path, target: Path, name: str) -> None:
    await keep(source, 1)
    target.with_name(name).write_text("mine")
    with pytest.raises(SettingsError, match="exists: a backup never overwrites anything") as refused:
        back_up(source, target, field="--to")
    assert refused.value.field == "--to"
    assert {one.name: one.read_text() for one in target.parent.iterdir()} == {name: "mine"}


async def test_a_ledger_is_not_its_own_backup(source: Path) -> None:
    await keep(source, 1)
    with pytest.raises(SettingsError, match="exists"):
        back_up(source, source)
    assert len(await sales_in(source)) == 1


@pytest.mark.parametrize("folder", ["/proc", "/nowhere"])
async def test_where_nothing_can_be_made_the_argument_is_named(source: Path, folder: str) -> None:
    await keep(source, 1)
    with pytest.raises(SettingsError, match="cannot be made") as refused:
        back_up(source, Path(folder) / "copy.sqlite")
    assert refused.value.field == "FILE"


def _nothing(source: Path) -> None:
    """No file."""


def _of_another_program(source: Path) -> None:
    with contextlib.closing(sqlite3.connect(source)) as database, database:
        database.execute("CREATE TABLE sale (x)")


def _text(source: Path) -> None:
    source.write_text("this is not a database" * 100)


def _damaged(source: Path) -> None:
    asyncio.run(keep(source, 200))
    with source.open("r+b") as file:
        file.seek(source.stat().st_size // 2)
        file.write(bytes(8192))


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (_nothing, LedgerUnavailableError, "cannot be copied"),
        (_of_another_program, SettingsError, "the file there is not a ledger"),
        (_text, LedgerUnavailableError, "not a database"),
        (_damaged, LedgerUnavailableError, "the copy is not sound|malformed"),
    ],
)
def test_what_is_no_sound_ledger_leaves_no_copy(
    source: Path, target: Path, make: Callable[[Path], None], kind: type[Exception], message: str
) -> None:
    source.parent.mkdir()
    make(source)
    was_there = source.exists()
    with pytest.raises(kind, match=message):
        back_up(source, target)
    assert list(target.parent.iterdir()) == []
    assert source.exists() is was_there


_ON_A_FULL_DISK = """
import resource, sys
from pathlib import Path
from obol.adapters.ledger_backup import back_up
from obol.errors import LedgerUnavailableError

resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
    back_up(Path(sys.argv[1]), Path(sys.argv[2]))
except LedgerUnavailableError as error:
    print(error)
"""


def test_a_disk_that_is_full_leaves_no_copy_and_the_ledger_as_it_was(source: Path, target: Path) -> None:
    asyncio.run(keep(source, 100))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", _ON_A_FULL_DISK, str(source), str(target)]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("the ledger cannot be copied: ")
    assert list(target.parent.iterdir()) == []
    assert len(asyncio.run(sales_in(source))) == 100
