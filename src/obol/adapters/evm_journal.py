"""What one key has sent to one chain, durably: every transaction is in here before it leaves this machine.

A call is one nonce; its attempts are the signed transactions for it, of which at most one is ever mined. One SQLite
file per chain and address, for one process at a time.
"""

import fcntl
import os
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Self

from obol.adapters.group_commit import GroupCommitWriter
from obol.adapters.sqlite_file import DATA_DIR, Schema
from obol.errors import SettingsError

_1_CALLS = (
    # `state`: open, mined or void. A void call was never made: its purposes may be sent anew.
    """
    CREATE TABLE call (
        id INTEGER PRIMARY KEY,
        nonce INTEGER NOT NULL,
        to_address TEXT NOT NULL,
        data BLOB NOT NULL,
        gas_limit INTEGER NOT NULL,
        state TEXT NOT NULL,
        mined TEXT NOT NULL
    )
    """,
    "CREATE UNIQUE INDEX call_nonce ON call (nonce) WHERE state <> 'void'",
    "CREATE INDEX call_open ON call (nonce) WHERE state = 'open'",
    # What a call is for: one payment, or several in a batch. A payment has one call that is not void.
    "CREATE TABLE purpose (key TEXT NOT NULL, call INTEGER NOT NULL REFERENCES call (id), PRIMARY KEY (key, call))",
    """
    CREATE TABLE attempt (
        transaction_id TEXT NOT NULL PRIMARY KEY,
        call INTEGER NOT NULL REFERENCES call (id),
        raw BLOB NOT NULL,
        max_fee_wei TEXT NOT NULL,
        priority_fee_wei TEXT NOT NULL,
        at_s REAL NOT NULL
    )
    """,
    "CREATE INDEX attempt_call ON attempt (call)",
)
_2_FILLERS = (
    # A filler uses the nonce of a call that no node takes. Where it is mined, the call is void.
    "ALTER TABLE attempt ADD COLUMN is_filler INTEGER NOT NULL DEFAULT 0",
    "CREATE INDEX call_void ON call (nonce) WHERE state = 'void'",
)
JOURNAL_SCHEMA = Schema(application_id=0x0B01_4A4E, migrations=(_1_CALLS, _2_FILLERS))
_CALL = "SELECT id, nonce, to_address, data, gas_limit, state, mined FROM call "

_BY_KEY = _CALL + "WHERE id IN (SELECT call FROM purpose WHERE key = ?) AND state <> 'void'"  # noqa: S608 - constants
# Two questions, and the second says "not void" once more: so both are answered by an index.
_OPEN = _CALL + "WHERE state = 'open'"
_STANDING = f"{_OPEN} UNION ALL {_CALL} WHERE state <> 'void' AND state = 'mined' AND nonce >= ? ORDER BY nonce"
_ATTEMPTS = (
    "SELECT transaction_id, raw, max_fee_wei, priority_fee_wei, at_s, is_filler "
    "FROM attempt WHERE call = ? ORDER BY rowid"
)
_LAST = "SELECT nonce FROM call WHERE state <> 'void' ORDER BY nonce DESC LIMIT 1"
_LAST_MINED = "SELECT nonce FROM call WHERE state <> 'void' AND state = 'mined' ORDER BY nonce DESC LIMIT 1"
_GIVEN_BACK = "SELECT DISTINCT nonce FROM call WHERE state = 'void' AND nonce >= ?"


class CallState(StrEnum):
    """How far a call got."""

    OPEN = "open"
    MINED = "mined"
    VOID = "void"


@dataclass(frozen=True, slots=True)
class Attempt:
    """A signed transaction. Fees in wei per gas, time in Unix seconds.

    `is_filler`: it does nothing but use the nonce, so that what comes after it can be mined.
    """

    transaction: str
    raw: bytes = field(repr=False)
    max_fee_wei: int
    priority_fee_wei: int
    at_s: float
    is_filler: bool = False


@dataclass(frozen=True, slots=True)
class JournalCall:
    """One nonce and what it is for; `attempts` oldest first, `mined` the transaction that is in the chain or ""."""

    id: int
    nonce: int
    to: str
    data: bytes = field(repr=False)
    gas_limit: int
    state: CallState
    mined: str
    attempts: tuple[Attempt, ...]


class EvmJournal:
    """Open with `open`, end with `close`. Methods raise `LedgerUnavailableError` when the file fails."""

    def __init__(self, writer: GroupCommitWriter, lock: int) -> None:
        self._writer = writer
        self._lock: int | None = lock

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Open or create the file.

        Raises `SettingsError` when another process sends with the same key, or the folder cannot be used.
        """
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(path.with_name(path.name + ".lock"), os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as error:
            raise SettingsError(DATA_DIR, f"the folder cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise SettingsError(DATA_DIR, "another process sends with the same key: one facilitator per key") from None
        try:
            return cls(await GroupCommitWriter.open(path, JOURNAL_SCHEMA), lock)
        except BaseException:
            os.close(lock)
            raise

    async def add(
        self, keys: Sequence[str], nonce: int, to: str, data: bytes, gas_limit: int, attempt: Attempt
    ) -> JournalCall:
        """Write down a call and its first attempt. Raises `ValueError` for a nonce or a key that is in use."""

        def operation(db: sqlite3.Connection) -> JournalCall:
            if any(_by_key(db, key) is not None for key in keys):
                raise ValueError("sent before")
            sql = "INSERT INTO call (nonce, to_address, data, gas_limit, state, mined) VALUES (?, ?, ?, ?, 'open', '')"
            try:
                number = db.execute(sql, (nonce, to, data, gas_limit)).lastrowid
            except sqlite3.IntegrityError:
                raise ValueError("the nonce is in use") from None
            db.executemany("INSERT INTO purpose VALUES (?, ?)", [(key, number) for key in keys])
            _add_attempt(db, number or 0, attempt)
            return JournalCall(number or 0, nonce, to, data, gas_limit, CallState.OPEN, "", (attempt,))

        return await self._writer.run(operation)

    async def add_attempt(self, call: JournalCall, attempt: Attempt) -> None:
        """Write down another transaction for the same nonce."""
        await self._writer.run(lambda db: _add_attempt(db, call.id, attempt))

    async def mark(self, call: JournalCall, state: CallState, mined: str = "") -> None:
        """Write down what became of a call."""
        sql = "UPDATE call SET state = ?, mined = ? WHERE id = ?"
        await self._writer.run(lambda db: db.execute(sql, (state.value, mined, call.id)))

    async def standing(self, first: int) -> list[JournalCall]:
        """What is not mined yet, and what was mined at nonce `first` or later, by nonce."""

        def operation(db: sqlite3.Connection) -> list[JournalCall]:
            return [_call(db, row) for row in db.execute(_STANDING, (first,)).fetchall()]

        return await self._writer.run(operation)

    async def last_nonces(self) -> tuple[int, int]:
        """The highest that was mined, and the highest that was or may be; -1 where there is none."""

        def operation(db: sqlite3.Connection) -> tuple[int, int]:
            mined, used = (db.execute(sql).fetchone() for sql in (_LAST_MINED, _LAST))
            return -1 if mined is None else int(mined[0]), -1 if used is None else int(used[0])

        return await self._writer.run(operation)

    async def given_back(self, first: int) -> set[int]:
        """The nonces of void calls, from `first` on: ours, and perhaps free."""
        return await self._writer.run(lambda db: {nonce for (nonce,) in db.execute(_GIVEN_BACK, (first,)).fetchall()})

    async def by_key(self, key: str) -> JournalCall | None:
        """The call that was sent for a purpose; None where there is none, or only void ones."""
        return await self._writer.run(lambda db: _by_key(db, key))

    async def close(self) -> None:
        """Idempotent."""
        await self._writer.close()
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)


def _add_attempt(db: sqlite3.Connection, call: int, attempt: Attempt) -> None:
    """The very same transaction is signed anew where a refused call is sent again: it is now for this one."""
    values = (str(attempt.max_fee_wei), str(attempt.priority_fee_wei), attempt.at_s, attempt.is_filler)
    sql = (
        "INSERT INTO attempt (transaction_id, call, raw, max_fee_wei, priority_fee_wei, at_s, is_filler) "
        "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (transaction_id) "
        "DO UPDATE SET call = excluded.call, at_s = excluded.at_s, is_filler = excluded.is_filler"
    )
    db.execute(sql, (attempt.transaction, call, attempt.raw, *values))


def _by_key(db: sqlite3.Connection, key: str) -> JournalCall | None:
    row = db.execute(_BY_KEY, (key,)).fetchone()
    return None if row is None else _call(db, row)


def _call(db: sqlite3.Connection, row: tuple[int, int, str, bytes, int, str, str]) -> JournalCall:
    attempts = tuple(
        Attempt(transaction, raw, int(max_fee), int(priority), at_s, bool(is_filler))
        for transaction, raw, max_fee, priority, at_s, is_filler in db.execute(_ATTEMPTS, (row[0],))
    )
    number, nonce, to, data, gas_limit, state, mined = row
    return JournalCall(number, nonce, to, data, gas_limit, CallState(state), mined, attempts)
