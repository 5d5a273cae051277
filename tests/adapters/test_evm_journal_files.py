"""The file of a journal: private, of one process at a time, and whole whatever happens to process or disk."""

import asyncio
import contextlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from obol.adapters.evm_journal import JOURNAL_SCHEMA, Attempt, CallState, EvmJournal
from obol.adapters.sqlite_file import open_sqlite
from obol.errors import LedgerUnavailableError, SettingsError
from tests.adapters.ledger_processes import ROOT
from tests.adapters.test_evm_journal import NEVER, add, opened


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "sender.sqlite3"


async def test_the_files_are_private_and_their_folder_is_made(path: Path) -> None:
    async with opened(path) as journal:
        await add(journal, "a", nonce=1)
        modes = {entry.name.removeprefix(path.name): entry.stat().st_mode & 0o777 for entry in path.parent.iterdir()}
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert modes == dict.fromkeys(("", ".lock", "-wal", "-shm"), 0o600)


async def test_one_key_is_sent_with_from_one_place(path: Path) -> None:
    journal = await EvmJournal.open(path)
    for _ in range(2):  # a refusal gives nothing away
        with pytest.raises(SettingsError, match="another process sends with the same key") as refused:
            await EvmJournal.open(path)
    assert refused.value.field == "--data-dir"
    await add(journal, "a", nonce=1)
    await journal.close()
    await journal.close()
    async with opened(path) as next_one:
        assert await next_one.by_key("a") is not None


def a_child(script: str, path: Path) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", script, str(path)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


_WRITING = """
import asyncio, sys
from pathlib import Path
from obol.adapters.evm_journal import EvmJournal
from tests.adapters.test_evm_journal import NEVER, add

async def main(path):
    journal = await EvmJournal.open(path)
    for nonce in range(100_000):
        print((await add(journal, f"key {nonce}", nonce=nonce)).attempts[0].transaction, flush=True)

asyncio.run(main(Path(sys.argv[1])))
"""


async def test_what_was_written_down_survives_kill_9_which_frees_the_key(path: Path) -> None:
    with a_child(_WRITING, path) as child:
        assert child.stdout is not None
        told = [child.stdout.readline().strip() for _ in range(20)]
        with pytest.raises(SettingsError, match="another process"):
            await EvmJournal.open(path)
        child.kill()
    async with opened(path) as journal:
        found = await journal.standing(NEVER)
    assert [call.nonce for call in found] == list(range(len(found)))
    assert [call.attempts[0].transaction for call in found[:20]] == told


_ON_A_FULL_DISK = """
import asyncio, resource, sys
from pathlib import Path
from obol.adapters.evm_journal import EvmJournal
from obol.errors import LedgerUnavailableError
from tests.adapters.test_evm_journal import NEVER, add

async def main(path):
    journal = await EvmJournal.open(path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))  # no file grows any more
    results = [(await asyncio.gather(add(journal, str(n), nonce=n), return_exceptions=True))[0] for n in range(60)]
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    written = [call.nonce for call in await journal.standing(NEVER)]
    assert written == [n for n, one in enumerate(results) if not isinstance(one, LedgerUnavailableError)], results
    await add(journal, "after", nonce=99)
    await journal.close()
    print(*sorted({type(one).__name__ for one in results}))

asyncio.run(main(Path(sys.argv[1])))
"""


def test_on_a_full_disk_nothing_is_half_written_down_and_later_calls_are(path: Path) -> None:
    with a_child(_ON_A_FULL_DISK, path) as child:
        out, _ = child.communicate()
    assert (child.returncode, out.split()) == (0, ["JournalCall", "LedgerUnavailableError"])


async def test_a_closed_journal_is_unavailable(path: Path) -> None:
    async with opened(path) as journal:
        call = await add(journal, "a", nonce=1)
    asked = (
        add(journal, "b", nonce=2),
        journal.by_key("a"),
        journal.standing(NEVER),
        journal.mark(call, CallState.VOID),
    )
    for one in asked:
        with pytest.raises(LedgerUnavailableError):
            await one


@pytest.mark.parametrize("folder", ["/proc/obol", "a file"])
def test_a_folder_that_cannot_be_used_is_refused_by_the_name_of_the_setting(tmp_path: Path, folder: str) -> None:
    (tmp_path / "a file").touch()
    with pytest.raises(SettingsError, match=r"^--data-dir: the folder cannot be used") as refused:
        asyncio.run(EvmJournal.open(tmp_path / folder / "sender.sqlite3"))
    assert str(tmp_path) not in str(refused.value)


async def test_a_journal_of_the_first_version_goes_on(path: Path) -> None:
    first = replace(JOURNAL_SCHEMA, migrations=JOURNAL_SCHEMA.migrations[:1])
    with contextlib.closing(open_sqlite(path, first, busy_timeout_s=1)) as database:
        database.execute("INSERT INTO call VALUES (1, 7, '0xab', x'ff', 100000, 'open', '')")
        database.execute("INSERT INTO purpose VALUES ('a', 1)")
        database.execute("INSERT INTO attempt VALUES ('0x01', 1, x'02', '30', '3', 1800000000.5)")
    async with opened(path) as journal:
        (call,) = await journal.standing(NEVER)
        assert call.attempts == (Attempt("0x01", b"\x02", 30, 3, 1_800_000_000.5, is_filler=False),)
        await journal.add_attempt(call, Attempt("0x02", b"\x03", 40, 4, 1_800_000_001.5, is_filler=True))
        await add(journal, "b", nonce=8)
    async with opened(path) as again:
        assert [attempt.is_filler for attempt in (await again.standing(NEVER))[0].attempts] == [False, True]


def _a_text_file(path: Path) -> None:
    path.write_text("this is not a database, however long the text in it may be")


def _a_foreign_database(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE somebody_elses (x)")


def _a_newer_journal(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA application_id={JOURNAL_SCHEMA.application_id}")
        database.execute(f"PRAGMA user_version={len(JOURNAL_SCHEMA.migrations) + 1}")


@pytest.mark.parametrize("make", [_a_text_file, _a_foreign_database, _a_newer_journal])
def test_a_file_that_is_no_journal_is_refused_untouched(path: Path, make: Callable[[Path], None]) -> None:
    path.parent.mkdir()
    make(path)
    before = path.read_bytes()
    with pytest.raises(SettingsError, match=r"^--data-dir: a database file there"):
        asyncio.run(EvmJournal.open(path))
    assert path.read_bytes() == before
    path.unlink()
    asyncio.run(_open_and_close(path))  # the refusal let go of the lock


async def _open_and_close(path: Path) -> None:
    async with opened(path) as journal:
        assert await journal.standing(NEVER) == []
