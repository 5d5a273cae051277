"""The ledger in one SQLite file. Several processes may share it; each opened ledger is one holder of sales.

The claim is one INSERT against a unique index: there is no moment between looking and taking. Concurrent claims of one
process share an fsync (`GroupCommitWriter`).
"""

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from obol.adapters.group_commit import BUSY_TIMEOUT_S, GroupCommitWriter
from obol.adapters.ledger_holders import Holder
from obol.adapters.ledger_sqlite_schema import LEDGER_SCHEMA
from obol.adapters.sqlite_file import DATA_DIR
from obol.core.clock import Clock
from obol.core.ledger import NO_CHANGE, Change, Claimed, ClaimOutcome, InUse, Page, Redeeming, SaleFilter, Used
from obol.core.offer import Standing
from obol.core.payment import FINAL, Event, State, advance
from obol.core.sale import ClaimKey, Delivery, NewSale, Sale
from obol.core.usage import Usage
from obol.errors import LedgerUnavailableError, SaleTakenError, SettingsError

_COLUMNS = (
    "id, network, asset, payer, nonce, offer, pay_to, authorized_atomic, valid_before_s, api, model, payload, "
    "requirements, created_s, state, delivery, settled_atomic, transaction_id, reason, input_tokens, output_tokens, "
    "updated_s, attempt, log_index"
)
_INSERT = f"INSERT INTO sale ({_COLUMNS}, claim, holder) VALUES ({', '.join('?' * 26)}) ON CONFLICT DO NOTHING"  # noqa: S608 - constants
_SELECT = f"SELECT {_COLUMNS} FROM sale "  # noqa: S608 - constants
_BY_ID = _SELECT + "WHERE id = ?"
_HELD_BY = _SELECT + "WHERE id = ?1 AND attempt = ?1 OR attempt = ?1 AND state = 'redeeming'"
_CLAIMANT = _SELECT + "WHERE claim = ? AND state <> 'released'"
_UPDATE = (
    "UPDATE sale SET state = ?, delivery = ?, settled_atomic = ?, transaction_id = ?, reason = ?, input_tokens = ?, "
    "output_tokens = ?, updated_s = ?, attempt = ?, log_index = ? WHERE id = ?"
)
_FIRST_MUTABLE = 14
"""Index of `state` in `_COLUMNS`: what comes before never changes."""
_PAGE = (
    f"SELECT {_COLUMNS}, rowid FROM sale WHERE rowid > :after AND (:since_s IS NULL OR created_s >= :since_s) "  # noqa: S608
    "AND (:until_s IS NULL OR created_s < :until_s) AND (:offer IS NULL OR offer = :offer) "
    "AND (:payer IS NULL OR payer = :payer) AND (:network IS NULL OR network = :network) "
    "AND (:asset IS NULL OR asset = :asset) "
    "AND (:states IS NULL OR state IN (SELECT value FROM json_each(:states))) ORDER BY rowid LIMIT :limit"
)
_SETTLED_SINCE_REFUSAL = """
    SELECT count(*) FROM (
        SELECT 1 FROM sale
        WHERE payer = :payer AND asset = :asset AND network = :network AND state = 'settled' AND updated_s > (
            SELECT coalesce(max(updated_s), 0) FROM sale
            WHERE payer = :payer AND asset = :asset AND network = :network AND state = 'settle_failed'
        )
        LIMIT :after_sales
    )
"""
_UNSETTLED = (
    "SELECT id, authorized_atomic FROM sale WHERE payer = ? AND asset = ? AND network = ? "
    "AND state IN ('served', 'settling', 'settle_unknown')"
)
_UNFINISHED = "state NOT IN ('rejected', 'released', 'settled', 'settle_failed', 'waived', 'owed')"


class SqliteLedger:
    """Implements `core.ledger.Ledger`."""

    def __init__(self, writer: GroupCommitWriter, holder: Holder, clock: Clock) -> None:
        """Takes over `writer` and `holder`. Use `open`."""
        self._writer = writer
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
        return cls(writer, holder, clock)

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
        claimed, claim = _claimed(sale, now_s), _digest(sale.key)

        def operation(db: sqlite3.Connection) -> ClaimOutcome:
            if db.execute(_INSERT, (*_row_of(claimed), claim, holder)).rowcount == 1:
                return Claimed(claimed)
            known = _one(db, _CLAIMANT, claim)
            if known is None:
                raise ValueError("the id of a new sale was used before")
            return _contest(db, known, sale.id, now_s, holder)

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
        return await self._writer.run(lambda db: _is_good_for(db, key, amount_atomic, standing, ""))

    async def held_by(self, attempt: str) -> Sale | None:
        """See the port."""
        return await self._writer.run(lambda db: _one(db, _HELD_BY, attempt))

    async def page(self, which: SaleFilter, *, after: int | None = None, limit: int = 500) -> Page:
        """See the port."""
        wanted = {name: getattr(which, name) for name in ("since_s", "until_s", "offer", "payer", "network", "asset")}
        states = None if which.states is None else json.dumps(sorted(which.states))
        arguments = {**wanted, "states": states, "after": after or 0, "limit": limit}

        def operation(db: sqlite3.Connection) -> Page:
            rows = db.execute(_PAGE, arguments).fetchall()
            return Page([_sale_of(row) for row in rows], rows[-1][-1] if len(rows) == limit else None)

        return await self._writer.run(operation)

    async def flaws(self) -> list[str]:
        """See the port: SQLite's own check of pages, indexes and constraints."""

        def operation(db: sqlite3.Connection) -> list[str]:
            return [row[0] for row in db.execute("PRAGMA integrity_check") if row[0] != "ok"]

        return await self._writer.run(operation)

    async def sale(self, sale_id: str) -> Sale | None:
        """See the port."""
        return await self._writer.run(lambda db: _one(db, _BY_ID, sale_id))

    async def find(self, key: ClaimKey) -> Sale | None:
        """See the port."""
        claim = _digest(key)
        return await self._writer.run(lambda db: _one(db, _CLAIMANT, claim))

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
        await self._writer.close()
        await asyncio.to_thread(self._holder.close)


def _contest(db: sqlite3.Connection, sale: Sale, attempt: str, now_s: float, holder: str) -> ClaimOutcome:
    """The outcome for an authorization that has a sale already."""
    if sale.state is State.OWED:
        db.execute("UPDATE sale SET holder = ? WHERE id = ?", (holder, sale.id))
        taken = replace(sale, attempt=attempt)
        return Redeeming(_update(db, taken, advance(sale.state, [Event.SERVE]), NO_CHANGE, now_s))
    return Used(sale) if sale.state in FINAL else InUse(sale)


def _update(db: sqlite3.Connection, sale: Sale, state: State, change: Change, now_s: float) -> Sale:
    moved = replace(
        sale,
        state=state,
        delivery=sale.delivery if change.delivery is None else change.delivery,
        settled_atomic=sale.settled_atomic if change.settled_atomic is None else change.settled_atomic,
        transaction=sale.transaction if change.transaction is None else change.transaction,
        reason=sale.reason if change.reason is None else change.reason,
        usage=sale.usage if change.usage is None else change.usage,
        log_index=sale.log_index if change.log_index is None else change.log_index,
        updated_s=now_s,
    )
    db.execute(_UPDATE, (*_row_of(moved)[_FIRST_MUTABLE:], sale.id))
    return moved


def _one(db: sqlite3.Connection, query: str, argument: str | bytes) -> Sale | None:
    row = db.execute(query, (argument,)).fetchone()
    return None if row is None else _sale_of(row)


def _known(db: sqlite3.Connection, sale_id: str) -> Sale:
    sale = _one(db, _BY_ID, sale_id)
    if sale is None:
        raise KeyError(sale_id)
    return sale


def _is_good_for(db: sqlite3.Connection, key: ClaimKey, amount_atomic: int, standing: Standing, but: str) -> bool:
    """Whether the payer's record and what it owes already, without the sale `but`, allow this amount too."""
    of_payer = {"payer": key.payer, "asset": key.asset, "network": key.network, "after_sales": standing.after_sales}
    settled: int = db.execute(_SETTLED_SINCE_REFUSAL, of_payer).fetchone()[0]
    if settled < standing.after_sales:
        return False
    owing = db.execute(_UNSETTLED, (key.payer, key.asset, key.network))
    unsettled_atomic = sum(int(authorized) for sale_id, authorized in owing if sale_id != but)
    return unsettled_atomic + amount_atomic <= standing.max_unsettled_atomic


def _holders_of_unfinished(db: sqlite3.Connection) -> list[str]:
    return [row[0] for row in db.execute(f"SELECT DISTINCT holder FROM sale WHERE {_UNFINISHED}")]  # noqa: S608


def _take_over(db: sqlite3.Connection, dead: Sequence[str], holder: str, network: str | None) -> list[Sale]:
    """What is left with the dead keeps its holder, who counts as dead also without a lock file."""
    which = f"WHERE holder = ? AND (? IS NULL OR network = ?) AND {_UNFINISHED}"
    sales: list[Sale] = []
    for former in dead:
        sales.extend(map(_sale_of, db.execute(_SELECT + which, (former, network, network))))
        db.execute(f"UPDATE sale SET holder = ? {which}", (holder, former, network, network))  # noqa: S608 - no input
    return sorted(sales, key=lambda sale: (sale.created_s, sale.id))


def _touch(db: sqlite3.Connection) -> None:
    db.execute(f"PRAGMA user_version = {len(LEDGER_SCHEMA.migrations)}")  # the same value, but the page is written


def _digest(key: ClaimKey) -> bytes:
    """What identifies an authorization in the file. None of the parts can contain the separator."""
    return blake2b(f"{key.network}\n{key.asset}\n{key.payer}\n{key.nonce}".encode(), digest_size=16).digest()


def _claimed(sale: NewSale, now_s: float) -> Sale:
    return Sale(
        id=sale.id,
        key=sale.key,
        offer=sale.offer,
        pay_to=sale.pay_to,
        authorized_atomic=sale.authorized_atomic,
        valid_before_s=sale.valid_before_s,
        api=sale.api,
        model=sale.model,
        payload=sale.payload,
        requirements=sale.requirements,
        created_s=sale.created_s,
        state=State.CLAIMED,
        updated_s=now_s,
        attempt=sale.id,
    )


def _row_of(sale: Sale) -> tuple[Any, ...]:
    """The values of `_COLUMNS`."""
    return (
        sale.id,
        sale.key.network,
        sale.key.asset,
        sale.key.payer,
        sale.key.nonce,
        sale.offer,
        sale.pay_to,
        str(sale.authorized_atomic),
        sale.valid_before_s,
        sale.api,
        sale.model,
        sale.payload,
        sale.requirements,
        sale.created_s,
        sale.state.value,
        sale.delivery.value,
        None if sale.settled_atomic is None else str(sale.settled_atomic),
        sale.transaction,
        sale.reason,
        sale.usage.input_tokens,
        sale.usage.output_tokens,
        sale.updated_s,
        sale.attempt,
        sale.log_index,
    )


def _sale_of(row: tuple[Any, ...]) -> Sale:
    """The sale of a row of `_COLUMNS`."""
    return Sale(
        id=row[0],
        key=ClaimKey(*row[1:5]),
        offer=row[5],
        pay_to=row[6],
        authorized_atomic=int(row[7]),
        valid_before_s=row[8],
        api=row[9],
        model=row[10],
        payload=row[11],
        requirements=row[12],
        created_s=row[13],
        state=State(row[14]),
        delivery=Delivery(row[15]),
        settled_atomic=None if row[16] is None else int(row[16]),
        transaction=row[17],
        reason=row[18],
        usage=Usage(row[19], row[20]),
        updated_s=row[21],
        attempt=row[22],
        log_index=row[23],
    )
