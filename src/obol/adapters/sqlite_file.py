"""Opening a SQLite file of ours: private, durable (WAL, synchronous=FULL), the right program's and at the right schema.

Every message is free of paths: it may be shown by a server. `SettingsError` names `--data-dir`, the setting that
decides where the file is.
"""

import os
import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path

from obol.errors import LedgerUnavailableError, SettingsError

DATA_DIR = "--data-dir"
_WAL_RETRIES = 100
_WAL_RETRY_S = 0.05
_TRANSIENT = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR})


@dataclass(frozen=True, slots=True)
class Schema:
    """What a file of ours holds. Migration n (from 1) brings the tables from version n-1 to n and is never changed."""

    application_id: int
    """Written into the file's header: no other program's database is taken for ours."""
    migrations: tuple[tuple[str, ...], ...]


def open_sqlite(path: Path, schema: Schema, *, busy_timeout_s: float) -> sqlite3.Connection:
    """Open or create the file (0600, in a folder 0700) and bring it to the newest schema. Blocks.

    The connection is in autocommit mode and may be handed to another thread. Raises `SettingsError` when the file
    cannot be used at all, `LedgerUnavailableError` when it cannot be used now (locked, disk full, I/O).
    """
    try:
        _create(path)
        connection = sqlite3.connect(path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False)
    except (OSError, sqlite3.Error) as error:
        raise _unusable(error) from error
    try:
        _committed_version(connection, schema)  # before anything is written: WAL mode is a property of the file
        _configure(connection)
        _migrate(connection, schema)
    except BaseException as error:
        connection.close()
        if isinstance(error, sqlite3.Error):
            raise _unusable(error) from error
        raise
    return connection


def _create(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        # Only ever opened here when it is new: closing a descriptor of an existing file would drop the POSIX locks
        # that SQLite connections of this process hold on it.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        return


def _configure(connection: sqlite3.Connection) -> None:
    _enter_wal(connection)
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA fullfsync=ON")  # macOS: fsync alone does not reach the platter; elsewhere a no-op
    connection.execute("PRAGMA foreign_keys=ON")


def _enter_wal(connection: sqlite3.Connection) -> None:
    """Two processes that create one file at once can find it locked here, past the busy timeout of SQLite."""
    pause = threading.Event()
    for attempt in range(_WAL_RETRIES):
        try:
            mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        except sqlite3.OperationalError as error:
            if _primary_code(error) != sqlite3.SQLITE_BUSY or attempt == _WAL_RETRIES - 1:
                raise
            pause.wait(_WAL_RETRY_S)
        else:
            if mode != "wal":
                raise SettingsError(DATA_DIR, "the file system there cannot hold a ledger: it must be a local one")
            return


def _migrate(connection: sqlite3.Connection, schema: Schema) -> None:
    newest = len(schema.migrations)
    if _committed_version(connection, schema) == newest:
        return
    connection.execute("BEGIN IMMEDIATE")  # from here on no other process migrates: read the version again
    for number in range(_version(connection, schema) + 1, newest + 1):
        for statement in schema.migrations[number - 1]:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version={number}")
    connection.execute(f"PRAGMA application_id={schema.application_id}")
    connection.execute("COMMIT")


def _committed_version(connection: sqlite3.Connection, schema: Schema) -> int:
    """`_version` read at one instant: another process may be creating the file."""
    connection.execute("BEGIN")
    version = _version(connection, schema)
    connection.execute("COMMIT")
    return version


def _version(connection: sqlite3.Connection, schema: Schema) -> int:
    """The schema version of the file; 0 for an empty one. Raises `SettingsError` for a file that is not ours."""
    application_id = connection.execute("PRAGMA application_id").fetchone()[0]
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    has_tables = connection.execute("SELECT EXISTS (SELECT 1 FROM sqlite_schema)").fetchone()[0]
    if application_id != schema.application_id and (application_id or version or has_tables):
        raise SettingsError(DATA_DIR, "a database file there belongs to another program: name another folder")
    newest = len(schema.migrations)
    if version > newest:
        raise SettingsError(
            DATA_DIR,
            f"a database file there was written by a newer version of obol (schema {version}; this one knows "
            f"{newest}): use that version, or name another folder",
        )
    return version


def unavailable(error: BaseException) -> LedgerUnavailableError:
    """What the users of a file are told when SQLite fails; chain it to its cause."""
    return LedgerUnavailableError(f"the ledger cannot be read or written: {error}")


def _unusable(error: OSError | sqlite3.Error) -> SettingsError | LedgerUnavailableError:
    if isinstance(error, OSError):
        return SettingsError(DATA_DIR, f"the folder cannot be used: {error.strerror}")
    if _primary_code(error) in _TRANSIENT:
        return unavailable(error)
    return SettingsError(DATA_DIR, f"a database file there cannot be used: {error}")


def _primary_code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
