"""The reader of a SQLite file: it only reads, and says so when it cannot."""

import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from obol.adapters.sqlite_reader import SqliteReader
from obol.errors import LedgerUnavailableError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "a name with # and ?.sqlite"
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        database.execute("PRAGMA journal_mode = wal")
        database.execute("CREATE TABLE t (n)")
    return file


@pytest.fixture
async def reader(file: Path) -> AsyncIterator[SqliteReader]:
    reader = SqliteReader(file, busy_timeout_s=0.05)
    yield reader
    await reader.close()


def count(database: sqlite3.Connection) -> int:
    return int(database.execute("SELECT count(*) FROM t").fetchone()[0])


async def test_it_sees_what_is_committed(reader: SqliteReader, file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file)) as database:
        database.execute("INSERT INTO t VALUES (1)")
        assert await reader.run(count) == 0
        database.commit()
        assert await reader.run(count) == 1


async def test_it_cannot_write(reader: SqliteReader) -> None:
    with pytest.raises(LedgerUnavailableError):
        await reader.run(lambda database: database.execute("INSERT INTO t VALUES (1)"))


async def test_a_file_that_is_gone_is_unavailable(tmp_path: Path) -> None:
    reader = SqliteReader(tmp_path / "nothing", busy_timeout_s=0.05)
    with pytest.raises(LedgerUnavailableError):
        await reader.run(count)
    await reader.close()
    assert not (tmp_path / "nothing").exists()


async def test_a_closed_reader_is_unavailable(reader: SqliteReader) -> None:
    assert await reader.run(count) == 0
    await reader.close()
    await reader.close()
    with pytest.raises(LedgerUnavailableError, match="closed"):
        await reader.run(count)
