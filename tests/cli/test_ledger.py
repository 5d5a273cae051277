import asyncio
import contextlib
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from obol.adapters.clock import SystemClock
from obol.adapters.ledger_sqlite import SqliteLedger
from obol.adapters.paths import ledger_file
from obol.cli.exit_codes import ExitCode
from obol.gateway.ledgers import open_shared_ledger
from tests.adapters.sales import a_new_sale
from tests.cli.conftest import Run
from tests.cli.kept_books import keep_books
from tests.cli.program import obol
from tests.cli.test_receipts import on
from tests.postgres import Postgres


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


def spoil(folder: Path, change: str, *values: str | bytes) -> None:
    with contextlib.closing(sqlite3.connect(ledger_file(folder, devnet=True))) as file, file:
        file.execute(f"UPDATE sale SET {change}", values)


def flaws_of(result: Result) -> list[tuple[str, str]]:
    assert result.exit_code == ExitCode.UNSOUND, result.output
    return [(flaw["sale"], flaw["flaw"]) for flaw in json.loads(result.stdout)["flaws"]]


def test_a_row_that_is_no_sale_is_listed_and_the_others_are_looked_at(run: Run, tmp_path: Path) -> None:
    ids = asyncio.run(keep_books(tmp_path))
    spoil(tmp_path, "state = 'bogus' WHERE id = ?", ids[0])
    spoil(tmp_path, "settled_atomic = '1' WHERE id = ?", ids[1])

    result = run("ledger", "check", *on(tmp_path))

    assert flaws_of(result)[0] == (ids[0], "its state 'bogus' is not known")
    assert [sale for sale, _ in flaws_of(result)] == ids
    assert json.loads(result.stdout)["sales"] == 2


def test_a_sale_is_held_against_the_payment_that_it_was_claimed_with(run: Run, tmp_path: Path) -> None:
    ids = asyncio.run(keep_books(tmp_path))
    spoil(tmp_path, "payer = ? WHERE id = ?", "0x" + "de" * 20, ids[0])
    spoil(tmp_path, "payload = ? WHERE id = ?", b"\0", ids[1])

    assert flaws_of(run("ledger", "check", *on(tmp_path))) == [
        (ids[0], "it claims another authorization than its own"),
        (ids[0], "its payment authorizes another payer"),
        (ids[1], "its payment cannot be read: it could not be settled"),
    ]


def _cut_off(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size // 2)


def _overwritten(file: Path) -> None:
    file.write_bytes(b"not a database" * 100)


@pytest.mark.parametrize("damage", [_cut_off, _overwritten])
def test_a_damaged_file_is_a_flaw(run: Run, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    asyncio.run(keep_books(tmp_path, settled=30))
    damage(ledger_file(tmp_path, devnet=True))

    sale, text = flaws_of(run("ledger", "check", *on(tmp_path)))[0]

    assert sale == ""
    assert text.startswith("the file is damaged: ")


def test_a_database_of_another_program_is_no_ledger(run: Run, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(ledger_file(tmp_path, devnet=True))) as file, file:
        file.execute("CREATE TABLE sale (x)")

    assert run("ledger", "check", *on(tmp_path)).exit_code == ExitCode.USAGE


def test_one_flaw_is_one(run: Run, tmp_path: Path) -> None:
    (sale_id,) = asyncio.run(keep_books(tmp_path, settled=1))
    spoil(tmp_path, "settled_atomic = '1' WHERE id = ?", sale_id)

    assert "the ledger has 1 flaw\n" in run("ledger", "check", *on(tmp_path)).stderr


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


def test_a_url_in_place_of_the_variables_name_is_not_said_again(run: Run) -> None:
    result = run("ledger", "check", "--ledger-env", "postgresql://obol:s3cret@127.0.0.1/obol")

    assert result.exit_code == ExitCode.USAGE
    assert "--ledger-env" in result.stderr
    assert "s3cret" not in result.stderr


async def test_a_row_of_a_shared_ledger_that_is_no_sale_is_a_flaw(postgres: Postgres, database_url: str) -> None:
    ledger = await open_shared_ledger(database_url, SystemClock())
    sale = a_new_sale()
    await ledger.claim(sale)
    await ledger.close()
    postgres.run("UPDATE obol.sale SET state = 'bogus'", url=database_url)

    ended = await obol("ledger", "check", "--ledger-env", "LEDGER", "--json", environ={"LEDGER": database_url})

    assert ended.code == ExitCode.UNSOUND, ended
    assert any(sale.id in flaw["flaw"] for flaw in ended.json["flaws"])
    assert "obol ledger backup" not in ended.err
