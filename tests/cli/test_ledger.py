import asyncio
import contextlib
import json
import sqlite3
from pathlib import Path

from obol.adapters.clock import SystemClock
from obol.adapters.ledger_sqlite import SqliteLedger
from obol.adapters.paths import ledger_file
from obol.cli.exit_codes import ExitCode
from tests.adapters.sales import a_new_sale
from tests.cli.conftest import Run
from tests.cli.kept_books import keep_books
from tests.cli.program import obol
from tests.cli.test_receipts import on


def test_a_sound_ledger_ends_with_0(run: Run, tmp_path: Path) -> None:
    asyncio.run(keep_books(tmp_path))

    result = run("ledger", "check", *on(tmp_path))

    assert (result.exit_code, json.loads(result.stdout)) == (0, {"sales": 2, "flaws": []})


def test_a_sale_that_contradicts_itself_is_listed(run: Run, tmp_path: Path) -> None:
    ids = asyncio.run(keep_books(tmp_path))
    with contextlib.closing(sqlite3.connect(ledger_file(tmp_path, devnet=True))) as file, file:
        file.execute("UPDATE sale SET settled_atomic = '1' WHERE id = ?", (ids[1],))

    result = run("ledger", "check", *on(tmp_path))

    assert result.exit_code == ExitCode.UNSOUND
    assert [flaw["sale"] for flaw in json.loads(result.stdout)["flaws"]] == ids[1:]


async def test_a_backup_beside_an_open_ledger_is_whole_private_and_opens_as_one(tmp_path: Path) -> None:
    ids = await keep_books(tmp_path)
    gateway = await SqliteLedger.open(ledger_file(tmp_path, devnet=True), SystemClock())
    newest = a_new_sale()
    await gateway.claim(newest)
    restored = tmp_path / "restored"
    restored.mkdir()
    copy = ledger_file(restored, devnet=True)

    ended = await obol("ledger", "backup", str(copy), *on(tmp_path))
    await gateway.close()

    assert (ended.code, ended.json["sales"]) == (0, 3)
    assert [path.name for path in restored.iterdir()] == [copy.name]
    assert copy.stat().st_mode & 0o777 == 0o600
    ledger = await SqliteLedger.open(copy, SystemClock())
    assert [await ledger.sale(sale_id) is not None for sale_id in (*ids, newest.id)] == [True] * 3
    await ledger.close()


def test_a_backup_never_overwrites(run: Run, tmp_path: Path) -> None:
    asyncio.run(keep_books(tmp_path))
    file = tmp_path / "copy"
    file.write_text("mine")

    result = run("ledger", "backup", str(file), *on(tmp_path))

    assert (result.exit_code, file.read_text()) == (ExitCode.USAGE, "mine")


def test_a_backup_that_fails_leaves_nothing(run: Run, tmp_path: Path) -> None:
    source = ledger_file(tmp_path, devnet=True)
    source.write_bytes(b"not a database" * 100)

    result = run("ledger", "backup", str(tmp_path / "copy"), *on(tmp_path))

    assert result.exit_code != 0
    assert list(tmp_path.iterdir()) == [source]
