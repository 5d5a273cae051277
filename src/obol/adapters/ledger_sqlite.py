"""The ledger in one SQLite file. Several processes may share it; each opened ledger is one holder of sales.

The claim is one INSERT against a unique index: there is no moment between looking and taking. Concurrent claims of one
process share an fsync (`GroupCommitWriter`). Reading is done beside it, and keeps nobody from writing (`SqliteReader`).
"""

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from obol.adapters.group_commit import BUSY_TIMEOUT_S, GroupCommitWriter
from obol.adapters.ledger_holders import Holder
from obol.adapters.ledger_rows import (
    AS_CLAIMED,
    COLUMNS,
    FIRST_MUTABLE,
    UNFINISHED,
    claimed,
    digest,
    disowned,
    moved,
    row_of,
    sale_of,
)
from obol.adapters.ledger_sqlite_schema import LEDGER_SCHEMA
from obol.adapters.sqlite_file import DATA_DIR, unavailable
from obol.adapters.sqlite_reader import SqliteReader
from obol.core.clock import Clock
from obol.core.ledger import NO_CHANGE, Change, Claimed, ClaimOutcome, InUse, Page, Redeeming, SaleFilter, Used
from obol.core.offer import Standing
from obol.core.payment import FINAL, Event, State, advance
from obol.core.sale import ClaimKey, NewSale, Sale
from obol.errors import LedgerUnavailableError, SaleTakenError, SettingsError

T = TypeVar("T")

_INSERT = f"INSERT INTO sale ({COLUMNS}, claim, holder) VALUES ({', '.join('?' * 26)}) ON CONFLICT DO NOTHING"  # noqa: S608 - constants
_SELECT = f"SELECT {COLUMNS} FROM sale "  # noqa: S608 - constants
_BY_ID = _SELECT + "WHERE id = ?"
_HELD_BY = _SELECT + "WHERE id = ?1 AND attempt = ?1 OR attempt = ?1 AND state = 'redeeming'"
_CLAIMANT = _SELECT + "WHERE claim = ? AND state <> 'released'"
_UPDATE = (
    "UPDATE sale SET state = ?, delivery = ?, settled_atomic = ?, transaction_id = ?, reason = ?, input_tokens = ?, "
    "output_tokens = ?, updated_s = ?, attempt = ?, log_index = ? WHERE id = ?"
)
_RESOLVE = """
    UPDATE sale SET resolved_n = 1 + max(
        (SELECT coalesce(max(resolved_n), 0) FROM sale WHERE payer = :payer AND state = 'settled'),
        (SELECT coalesce(max(resolved_n), 0) FROM sale WHERE payer = :payer AND state = 'settle_failed')
    ) WHERE id = :id
"""
_PAGE = (
    f"SELECT {COLUMNS}, rowid FROM sale WHERE rowid > :after AND (:since_s IS NULL OR created_s >= :since_s) "  # noqa: S608
    "AND (:until_s IS NULL OR created_s < :until_s) AND (:offer IS NULL OR offer = :offer) "
    "AND (:payer IS NULL OR payer = :payer) AND (:network IS NULL OR network = :network) "
    "AND (:asset IS NULL OR asset = :asset) "
    "AND (:states IS NULL OR state IN (SELECT value FROM json_each(:states))) ORDER BY rowid LIMIT :limit"
)
_SETTLED_SINCE_REFUSAL = """
    SELECT count(*) FROM (
        SELECT 1 FROM sale
        WHERE payer = :payer AND asset = :asset AND network = :network AND state = 'settled' AND resolved_n > (
            SELECT coalesce(max(resolved_n), 0) FROM sale
            WHERE payer = :payer AND asset = :asset AND network = :network AND state = 'settle_failed'
        )
        LIMIT :at_most
    )
"""
_WAS_REFUSED = """
    SELECT EXISTS (
        SELECT 1 FROM sale
        WHERE payer = :payer AND asset = :asset AND network = :network AND state = 'settle_failed'
    )
"""
_RESOLVED = frozenset({State.SETTLED, State.SETTLE_FAILED})
_UNSETTLED = (
    "SELECT id, authorized_atomic FROM sale WHERE payer = ? AND asset = ? AND network = ? "
    "AND state IN ('served', 'settling', 'settle_unknown')"
)


class SqliteLedger:
    """Implements `core.ledger.Ledger`."""

    def __init__(self, path: Path, writer: GroupCommitWriter, holder: Holder, clock: Clock) -> None:
        """Takes over `writer` and `holder`. Use `open`."""
        self._path = path
        self._writer = writer
        self._reader = SqliteReader(path, busy_timeout_s=BUSY_TIMEOUT_S)
        self._page_reader = SqliteReader(path, busy_timeout_s=BUSY_TIMEOUT_S)
        """Of its own: a page can take as long as the file is large."""
        self._holder = holder
        self._clock = clock

    @classmethod
    async def open(cls, path: Path, clock: Clock, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> "SqliteLedger":
        """Open or create the ledger file (0600, in a folder 0700).

        Raises `SettingsError` naming `--data-dir` when it can never work there (permissions, not a ledger, written by a
        newer version), `LedgerUnavailableError` when it does not work now (locked, disk full, I/O).
        """
        writer = await GroupCommitWriter.open(path, LEDGER_SCHEMA, busy_timeout_s=busy_timeout_s)
        try:
            holder = await asyncio.to_thread(Holder, path)
        except OSError as error:
            await writer.close()
            raise SettingsError(DATA_DIR, f"no lock file can be made there: {error.strerror}") from error
        return cls(path, writer, holder, clock)

    @property
    def commits(self) -> int:
        """How many transactions this ledger has committed."""
        return self._writer.commits

    @property
    def holder_id(self) -> str:
        """Under which this ledger holds its sales."""
        return self._holder.id

    async def claim(self, sale: NewSale) -> ClaimOutcome:
        """See the port. Raises `ValueError` when `sale.id` was used before: a bug of the caller."""
        now_s, holder = self._clock.now_s(), self._holder.id
        new, claim = claimed(sale, now_s), digest(sale.key)

        def operation(db: sqlite3.Connection) -> ClaimOutcome:
            if db.execute(_INSERT, (*row_of(new), claim, holder)).rowcount == 1:
                return Claimed(new)
            known = _one(db, _CLAIMANT, claim)
            if known is None:
                raise ValueError("the id of a new sale was used before")
            return _contest(db, known, sale.id, now_s, holder)

        return await self._writer.run(operation)

    async def disown(self, sale: NewSale, reason: str) -> Sale | None:
        """See the port. All claims of this ledger go through one writer, so nothing of one is under way any more."""
        now_s, holder = self._clock.now_s(), self._holder.id
        never, claim = disowned(sale, reason, now_s), digest(sale.key)

        def operation(db: sqlite3.Connection) -> Sale | None:
            known = _one(db, _CLAIMANT, claim)
            if known is None or known.attempt != sale.id:
                db.execute(_INSERT, (*row_of(never), claim, holder))
                return None
            if known.state not in AS_CLAIMED:
                return None
            return _update(db, known, advance(known.state, [Event.RELEASE]), Change(reason=reason), now_s)

        return await self._writer.run(operation)

    async def record(
        self, sale_id: str, events: Sequence[Event], change: Change = NO_CHANGE, *, attempt: str | None = None
    ) -> Sale:
        """See the port."""
        now_s, steps = self._clock.now_s(), tuple(events)

        def operation(db: sqlite3.Connection) -> Sale:
            sale = _known(db, sale_id)
            if attempt not in (None, sale.attempt):
                raise SaleTakenError("another attempt holds the sale")
            return _update(db, sale, advance(sale.state, steps), change, now_s)

        return await self._writer.run(operation)

    async def trust(self, sale_id: str, events: Sequence[Event], change: Change, standing: Standing) -> Sale | None:
        """See the port."""
        now_s, steps = self._clock.now_s(), tuple(events)

        def operation(db: sqlite3.Connection) -> Sale | None:
            sale = _known(db, sale_id)
            if not _is_good_for(db, sale.key, sale.authorized_atomic, standing, sale_id):
                return None
            return _update(db, sale, advance(sale.state, steps), change, now_s)

        return await self._writer.run(operation)

    async def is_trusted(self, key: ClaimKey, amount_atomic: int, standing: Standing) -> bool:
        """See the port."""
        return await self._read(lambda db: _is_good_for(db, key, amount_atomic, standing, ""))

    async def held_by(self, attempt: str) -> Sale | None:
        """See the port."""
        return await self._read(lambda db: _one(db, _HELD_BY, attempt))

    async def page(self, which: SaleFilter, *, after: int | None = None, limit: int = 500) -> Page:
        """See the port."""
        wanted = {name: getattr(which, name) for name in ("since_s", "until_s", "offer", "payer", "network", "asset")}
        states = None if which.states is None else json.dumps(sorted(which.states))
        arguments = {**wanted, "states": states, "after": after or 0, "limit": limit}

        def operation(db: sqlite3.Connection) -> Page:
            rows = db.execute(_PAGE, arguments).fetchall()
            return Page([sale_of(row) for row in rows], rows[-1][-1] if len(rows) == limit else None)

        return await self._read(operation, self._page_reader)

    async def flaws(self) -> list[str]:
        """See the port: SQLite's own check of pages, indexes and constraints. It takes long for a large file, so it
        reads by a connection of its own: whoever writes is not kept waiting."""
        try:
            return await asyncio.to_thread(_read_flaws, self._path)
        except sqlite3.Error as error:
            raise unavailable(error) from error

    async def sale(self, sale_id: str) -> Sale | None:
        """See the port."""
        return await self._read(lambda db: _one(db, _BY_ID, sale_id))

    async def find(self, key: ClaimKey) -> Sale | None:
        """See the port."""
        claim = digest(key)
        return await self._read(lambda db: _one(db, _CLAIMANT, claim))

    async def adopt(self, network: str | None = None) -> list[Sale]:
        """See the port. Oldest first."""
        known = await self._writer.run(_holders_of_unfinished)
        try:
            seizure = await asyncio.to_thread(self._holder.seize, known)
        except OSError as error:
            raise LedgerUnavailableError(f"the ledger's lock files cannot be read: {error.strerror}") from error
        try:
            sales = await self._writer.run(lambda db: _take_over(db, seizure.dead, self._holder.id, network))
            with contextlib.suppress(OSError):  # a lock file that stays is one of the dead all the same
                await asyncio.to_thread(seizure.remove)
        finally:
            seizure.let_go()
        return sales

    async def check(self) -> None:
        """See the port: writes to the file, durably."""
        await self._writer.run(_touch)

    async def close(self) -> None:
        """See the port. What is unfinished may be adopted by the next who opens the file."""
        await self._reader.close()
        await self._page_reader.close()
        await self._writer.close()  # last: only a connection that may write tidies up the file
        await asyncio.to_thread(self._holder.close)

    async def _read(self, read: Callable[[sqlite3.Connection], T], reader: SqliteReader | None = None) -> T:
        """What `read` finds once all that was submitted before is recorded."""
        await self._writer.caught_up()
        return await (reader or self._reader).run(read)


def _read_flaws(path: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as db:
        return [row[0] for row in db.execute("PRAGMA integrity_check") if row[0] != "ok"]


def _contest(db: sqlite3.Connection, sale: Sale, attempt: str, now_s: float, holder: str) -> ClaimOutcome:
    """The outcome for an authorization that has a sale already."""
    if sale.state is State.OWED:
        db.execute("UPDATE sale SET holder = ? WHERE id = ?", (holder, sale.id))
        taken = replace(sale, attempt=attempt)
        return Redeeming(_update(db, taken, advance(sale.state, [Event.SERVE]), NO_CHANGE, now_s))
    return Used(sale) if sale.state in FINAL else InUse(sale)


def _update(db: sqlite3.Connection, sale: Sale, state: State, change: Change, now_s: float) -> Sale:
    after = moved(sale, state, change, now_s)
    db.execute(_UPDATE, (*row_of(after)[FIRST_MUTABLE:], sale.id))
    if state is not sale.state and state in _RESOLVED:
        db.execute(_RESOLVE, {"payer": sale.key.payer, "id": sale.id})
    return after


def _one(db: sqlite3.Connection, query: str, argument: str | bytes) -> Sale | None:
    row = db.execute(query, (argument,)).fetchone()
    return None if row is None else sale_of(row)


def _known(db: sqlite3.Connection, sale_id: str) -> Sale:
    sale = _one(db, _BY_ID, sale_id)
    if sale is None:
        raise KeyError(sale_id)
    return sale


def _is_good_for(db: sqlite3.Connection, key: ClaimKey, amount_atomic: int, standing: Standing, but: str) -> bool:
    """Whether the payer's record and what it owes already, without the sale `but`, allow this amount too."""
    of_payer = {"payer": key.payer, "asset": key.asset, "network": key.network}
    at_most = {"at_most": max(standing.after_sales, 1)}
    settled: int = db.execute(_SETTLED_SINCE_REFUSAL, of_payer | at_most).fetchone()[0]
    if settled < standing.after_sales or (settled == 0 and db.execute(_WAS_REFUSED, of_payer).fetchone()[0]):
        return False
    owing = db.execute(_UNSETTLED, (key.payer, key.asset, key.network))
    unsettled_atomic = sum(int(authorized) for sale_id, authorized in owing if sale_id != but)
    return unsettled_atomic + amount_atomic <= standing.max_unsettled_atomic


def _holders_of_unfinished(db: sqlite3.Connection) -> list[str]:
    return [row[0] for row in db.execute(f"SELECT DISTINCT holder FROM sale WHERE {UNFINISHED}")]  # noqa: S608


def _take_over(db: sqlite3.Connection, dead: Sequence[str], holder: str, network: str | None) -> list[Sale]:
    """What is left with the dead keeps its holder, who counts as dead also without a lock file."""
    which = f"WHERE holder = ? AND (? IS NULL OR network = ?) AND {UNFINISHED}"
    sales: list[Sale] = []
    for former in dead:
        sales.extend(map(sale_of, db.execute(_SELECT + which, (former, network, network))))
        db.execute(f"UPDATE sale SET holder = ? {which}", (holder, former, network, network))  # noqa: S608 - no input
    return sorted(sales, key=lambda sale: (sale.created_s, sale.id))


def _touch(db: sqlite3.Connection) -> None:
    db.execute(f"PRAGMA user_version = {len(LEDGER_SCHEMA.migrations)}")  # the same value, but the page is written
