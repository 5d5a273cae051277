"""A copy of a ledger's file as it was at one instant, while gateways write to it."""

import contextlib
import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from obol.adapters.ledger_sqlite_schema import LEDGER_SCHEMA
from obol.adapters.sqlite_file import DATA_DIR
from obol.errors import LedgerUnavailableError, SettingsError

_BUSY_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Backup:
    """What was written."""

    sales: int
    size_bytes: int


def back_up(source: Path, target: Path, *, field: str = "FILE") -> Backup:
    """Copy `source` to the new file `target` (0600) and check the copy. Blocks.

    `target` has the name from the start, empty until the copy is whole and sound. Raises `SettingsError` when it exists
    or cannot be made, or `source` is no ledger; `LedgerUnavailableError` when reading or writing fails.
    """
    partial = target.with_name(f".{target.name}.partial")
    _create(target, field)
    try:
        _create(partial, field)
        try:
            backup = _copy(source, partial)
            partial.replace(target)
        finally:
            for name in (partial, *(partial.with_name(partial.name + end) for end in ("-wal", "-shm", "-journal"))):
                name.unlink(missing_ok=True)
    except BaseException as error:
        target.unlink(missing_ok=True)
        if isinstance(error, sqlite3.Error | OSError):
            raise LedgerUnavailableError(f"the ledger cannot be copied: {error}") from error
        raise
    return backup


def _create(path: Path, field: str) -> None:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        raise SettingsError(field, f"{path} exists: a backup never overwrites anything") from None
    except OSError as error:
        raise SettingsError(field, f"{path} cannot be made: {error.strerror}") from error


def _copy(source: Path, target: Path) -> Backup:
    with contextlib.closing(_connect(source)) as ledger, contextlib.closing(_connect(target)) as copy:
        if ledger.execute("PRAGMA application_id").fetchone()[0] != LEDGER_SCHEMA.application_id:
            raise SettingsError(DATA_DIR, "the file there is not a ledger")
        ledger.backup(copy)  # all pages in one step: one instant of the source
        copy.execute("PRAGMA journal_mode=DELETE")  # one file, nothing beside it
        found = [row[0] for row in copy.execute("PRAGMA integrity_check")]
        if found != ["ok"]:
            raise LedgerUnavailableError(f"the copy is not sound: {'; '.join(found[:3])}")
        sales = int(copy.execute("SELECT count(*) FROM sale").fetchone()[0])
    descriptor = os.open(target, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return Backup(sales, target.stat().st_size)


def _connect(path: Path) -> sqlite3.Connection:
    """Of a file that exists: nothing is created."""
    uri = f"{path.absolute().as_uri()}?mode=rw"
    return sqlite3.connect(uri, uri=True, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
