"""The ledger in a PostgreSQL database that several gateways share; each opened ledger is one holder of sales.

The claim is one INSERT against a unique index, as in the SQLite ledger; claims that arrive together are one statement
and one commit, and so are steps. Every answer is durable when it returns: `synchronous_commit` is at least `on`.

A gateway holds its sales by an advisory lock on a connection of its own (`ledger_postgres_hold`). When that connection
breaks, others may adopt its sales before it knows, and it goes on working at them. So that nothing is settled or served
twice then:

- A row names its holder, and from whom it was adopted. Whatever a former holder still wants to record, with an attempt
  or without, is refused with `SaleTakenError` and changes nothing; reading stays allowed. What was not adopted in
  between is still its own when the lock is held again: the number in the row decides, not the lock.
- While the lock is known not to be held, `claim`, `adopt` and `check` raise `LedgerUnavailableError`: nothing new is
  sold that another could take at once. A claim during which the lock was lost raises too, and `held_by` finds it.
- No ledger adopts its own sales, so a gateway never recovers what it is serving.
- Money needs no more than that: a payload moves it once, however many ask, and its new holder asks for it. What a
  break can cost is an answer that was being handed over when its sale was adopted: the adopter releases it.
- A sale that was adopted and whose adopter died can come back to its first holder; its state and its attempt have then
  been moved on by whoever had it, or are as they were left.

The order of two steps of one sale that are submitted at the same time is kept here: they go through one lane.
Advisory locks belong to a session: a pooler in between must not share sessions (PgBouncer: `pool_mode = session`).
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import psycopg

from obol.adapters import ledger_postgres_sql as statements
from obol.adapters.lane import Lane
from obol.adapters.ledger_postgres_flaws import find_flaws
from obol.adapters.ledger_postgres_hold import HOLDERS, Hold
from obol.adapters.ledger_postgres_pages import read_page
from obol.adapters.ledger_postgres_schema import migrate
from obol.adapters.ledger_postgres_steps import Row, Step, record_all
from obol.adapters.ledger_rows import AS_CLAIMED, claimed, digest, disowned, moved, sale_of
from obol.adapters.postgres_connections import WAITS, Connection, Connections, Waits, connect, cut_after, transaction
from obol.adapters.postgres_refusals import refusal_of
from obol.adapters.postgres_url import conninfo_of
from obol.core.clock import Clock
from obol.core.ledger import NO_CHANGE, Change, Claimed, ClaimOutcome, InUse, Page, Redeeming, SaleFilter, Used
from obol.core.offer import Standing
from obol.core.payment import FINAL, Event, State, advance
from obol.core.sale import ClaimKey, NewSale, Sale
from obol.errors import LedgerUnavailableError

J = TypeVar("J")
R = TypeVar("R")
T = TypeVar("T")

PAYERS = 0x0B01_4C45
"""First half of the advisory lock under which one payer's exposure is checked and booked."""
_CONTEST_TRIES = 5
"""How often a claim looks again because the sale in its way was released just then."""


class PostgresLedger:
    """Implements `core.ledger.Ledger`. Belongs to the event loop in which it was opened."""

    def __init__(self, connections: Connections, hold: Hold, clock: Clock, waits: Waits) -> None:
        """Takes over `connections` and `hold`. Use `open`."""
        self._connections = connections
        self._hold = hold
        self._clock = clock
        self._waits = waits
        self._claims: Lane[Sale, Claimed | None] = Lane(partial(_each, self._insert))
        self._steps: Lane[Step, Sale] = Lane(partial(_each, self._record))
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_closed = False

    @classmethod
    async def open(cls, url: str, clock: Clock, *, may_create: bool = True, waits: Waits = WAITS) -> "PostgresLedger":
        """Open the ledger in the database at `url`, or make it if `may_create`.

        Raises `SettingsError` naming `--ledger-env` when it can never work (URL, role, database, privileges, no
        ledger there, written by a newer version), `LedgerUnavailableError` when it does not work now. Neither shows a
        part of the URL.
        """
        conninfo = conninfo_of(url)
        try:
            connection = await connect(conninfo, waits)
            try:
                with cut_after(connection, waits.long_work_s):
                    await migrate(connection, may_create=may_create)
            finally:
                await connection.close()
            hold = await Hold.take(conninfo, waits)
        except (psycopg.Error, TimeoutError) as error:
            raise refusal_of(error) from None  # the text of the cause may name host and role
        return cls(Connections(conninfo, waits), hold, clock, waits)

    @property
    def holder_id(self) -> int:
        """Under which this ledger holds its sales."""
        return self._hold.id

    @property
    def is_held(self) -> bool:
        """Whether others leave this ledger's sales alone, as far as is known."""
        return self._hold.is_held

    async def claim(self, sale: NewSale) -> ClaimOutcome:
        """See the port. Raises `ValueError` when `sale.id` was used before: a bug of the caller."""
        return await self._whole(self._claim(claimed(sale, self._clock.now_s())))

    async def disown(self, sale: NewSale, reason: str) -> Sale | None:
        """See the port. A transaction that is being committed holds its row, or its id in the index, until it is
        visible; so looking by way of these waits for it. Longer than `Waits.lock_s` is not found out."""
        now_s = self._clock.now_s()
        never, step = disowned(sale, reason, now_s), (Event.RELEASE,)

        async def work(connection: Connection) -> Sale | None:
            known = await self._fence(connection, never)
            if known is None or known.state not in AS_CLAIMED:
                return None
            [freed] = await record_all(
                connection, [Step(known.id, step, Change(reason=reason), sale.id, now_s)], self._hold.id
            )
            if isinstance(freed, BaseException):
                raise freed
            return freed

        return await self._whole(self._connections.run(work))

    async def record(
        self, sale_id: str, events: Sequence[Event], change: Change = NO_CHANGE, *, attempt: str | None = None
    ) -> Sale:
        """See the port. Raises `SaleTakenError` also without `attempt`, when the sale was adopted from this ledger."""
        step = Step(sale_id, tuple(events), _storable(change), attempt, self._clock.now_s())
        return await self._whole(self._steps.run(step))

    async def trust(self, sale_id: str, events: Sequence[Event], change: Change, standing: Standing) -> Sale | None:
        """See the port. Raises `SaleTakenError` when the sale was adopted from this ledger."""
        step = Step(sale_id, tuple(events), _storable(change), None, self._clock.now_s())

        async def work(connection: Connection) -> Sale | None:
            sale = await _known(connection, sale_id)
            key = sale.key
            async with transaction(connection):
                payer = f"{key.network}\n{key.asset}\n{key.payer}"
                await connection.execute(statements.LOCK_PAYER, (PAYERS, payer))
                [row] = await (await connection.execute(statements.LOCK, ([sale_id],))).fetchall()
                after = Row.of(row).moved(step, self._hold.id).sale
                if not await _is_good_for(connection, key, sale.authorized_atomic, standing, but=sale_id):
                    return None
                await connection.execute(statements.UPDATE, statements.updated([after]))
            return after

        return await self._whole(self._connections.run(work))

    async def is_trusted(self, key: ClaimKey, amount_atomic: int, standing: Standing) -> bool:
        """See the port."""
        return await self._whole(
            self._connections.run(lambda connection: _is_good_for(connection, key, amount_atomic, standing, but=""))
        )

    async def sale(self, sale_id: str) -> Sale | None:
        """See the port."""
        return await self._whole(self._connections.run(lambda connection: _by_id(connection, sale_id)))

    async def held_by(self, attempt: str) -> Sale | None:
        """See the port."""

        async def work(connection: Connection) -> Sale | None:
            row = await (await connection.execute(statements.HELD_BY, {"attempt": attempt})).fetchone()
            return None if row is None else sale_of(row)

        return await self._whole(self._connections.run(work))

    async def find(self, key: ClaimKey) -> Sale | None:
        """See the port."""
        return await self._whole(self._connections.run(lambda connection: _claimant(connection, key)))

    async def page(self, which: SaleFilter, *, after: int | None = None, limit: int = 500) -> Page:
        """See the port. Waits for claims that were under way: they may come before what is there already."""
        return await self._whole(
            self._connections.run(
                lambda connection: read_page(connection, which, after, limit, wait_s=self._waits.lock_s)
            )
        )

    async def flaws(self) -> list[str]:
        """See the port."""
        return await self._whole(self._connections.run(find_flaws, within_s=self._waits.long_work_s))

    async def adopt(self, network: str | None = None) -> list[Sale]:
        """See the port. Oldest first; never its own, also after its connection broke."""

        async def work(connection: Connection) -> list[Sale]:
            mine = self._hold.id
            async with transaction(connection):
                for wait in ("statement_timeout", "idle_in_transaction_session_timeout"):  # they may be many
                    await connection.execute("SELECT set_config(%s, '0', true)", (wait,))
                rows = await (await connection.execute(statements.DEAD, (mine, HOLDERS))).fetchall()
                arguments = {"dead": [row[0] for row in rows], "network": network, "mine": mine}
                return [
                    sale_of(row) for row in await (await connection.execute(statements.ADOPT, arguments)).fetchall()
                ]

        self._hold.require()
        sales = await self._whole(self._connections.run(work, within_s=self._waits.long_work_s))
        return sorted(sales, key=lambda sale: (sale.created_s, sale.id))

    async def check(self) -> None:
        """See the port: writes durably, and its sales are held."""

        async def work(connection: Connection) -> None:
            await connection.execute(statements.TOUCH)

        self._require_open()
        self._hold.require()
        await self._whole(self._connections.run(work))

    async def close(self) -> None:
        """See the port. What is unfinished may be adopted as soon as this returns."""
        self._is_closed = True
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self._hold.close()
        await self._connections.close()

    def _require_open(self) -> None:
        if self._is_closed:
            raise LedgerUnavailableError("the ledger is closed")

    async def _whole(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` to its end also when who waits is cancelled: a connection is never left in the middle."""
        try:
            self._require_open()
        except LedgerUnavailableError:
            work.close()
            raise
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # raised to who waits; when nobody does any more, it is nobody's

    async def _claim(self, sale: Sale) -> ClaimOutcome:
        self._hold.require()
        outcome: ClaimOutcome | None = await self._claims.run(sale)
        if outcome is None:
            outcome = await self._connections.run(lambda connection: self._contest(connection, sale))
        if isinstance(outcome, Claimed | Redeeming):
            self._hold.require()
        return outcome

    async def _insert(self, sales: Sequence[Sale]) -> list[Claimed | BaseException | None]:
        """Claims for those whose authorization nobody holds; None for the others."""

        async def work(connection: Connection) -> set[tuple[str, bytes]]:
            cursor = await connection.execute(statements.INSERT, statements.inserted(sales, self._hold.id))
            return {(row[0], row[1]) for row in await cursor.fetchall()}

        new = await self._connections.run(work)
        outcomes: list[Claimed | BaseException | None] = []
        for sale in sales:
            row = (sale.id, digest(sale.key))
            outcomes.append(Claimed(sale) if row in new else None)
            new.discard(row)  # the same claim a second time is not new
        return outcomes

    async def _record(self, steps: Sequence[Step]) -> list[Sale | BaseException]:
        return await self._connections.run(lambda connection: record_all(connection, steps, self._hold.id))

    async def _contest(self, connection: Connection, sale: Sale) -> ClaimOutcome:
        """The outcome for an authorization that had a sale a moment ago."""
        for _ in range(_CONTEST_TRIES):
            known = await _claimant(connection, sale.key)
            if known is None:
                if claim := await self._claim_released(connection, sale):
                    return claim
            elif known.state is not State.OWED:
                return Used(known) if known.state in FINAL else InUse(known)
            elif redeeming := await self._redeem(connection, sale):
                return redeeming
        raise LedgerUnavailableError("the sale that holds the authorization changes all the time")

    async def _claim_released(self, connection: Connection, sale: Sale) -> Claimed | None:
        """None when another was faster."""
        cursor = await connection.execute(statements.INSERT, statements.inserted([sale], self._hold.id))
        if await cursor.fetchone() is not None:
            return Claimed(sale)
        used = await connection.execute(statements.IS_ID_USED, (sale.id, digest(sale.key)))
        if await used.fetchone() is not None:
            raise ValueError("the id of a new sale was used before")
        return None

    async def _fence(self, connection: Connection, never: Sale) -> Sale | None:
        """What the attempt `never.id` has claimed; None: nothing, and from now on it cannot."""
        for _ in range(2):  # once more for a claim that was waited for at the insert
            row = await (await connection.execute(statements.LOCK_CLAIMANT, (digest(never.key),))).fetchone()
            if row is not None and (known := sale_of(row)).attempt == never.id:
                return known
            cursor = await connection.execute(statements.INSERT, statements.inserted([never], self._hold.id))
            if await cursor.fetchone() is not None:
                return None
        return None

    async def _redeem(self, connection: Connection, new: Sale) -> Redeeming | None:
        """None when another was faster."""
        async with transaction(connection):
            row = await (await connection.execute(statements.LOCK_CLAIMANT, (digest(new.key),))).fetchone()
            owed = None if row is None else sale_of(row)
            if owed is None or owed.state is not State.OWED:
                return None
            taken = replace(owed, attempt=new.attempt)
            after = moved(taken, advance(owed.state, [Event.SERVE]), NO_CHANGE, new.updated_s)
            await connection.execute(statements.UPDATE, statements.updated([after]))
            await connection.execute(statements.HOLD, (self._hold.id, after.id))
        return Redeeming(after)


async def _each(
    work: Callable[[Sequence[J]], Awaitable[list[R | BaseException]]], items: Sequence[J]
) -> list[R | BaseException]:
    """`work`, and each item alone when one of them is such that the database refuses all: nothing was recorded then."""
    try:
        return await work(items)
    except (psycopg.DataError, psycopg.IntegrityError, ValueError) as error:
        if len(items) == 1:
            return [error]
        return [outcome for item in items for outcome in await _each(work, [item])]


async def _by_id(connection: Connection, sale_id: str) -> Sale | None:
    row = await (await connection.execute(statements.BY_ID, (sale_id,))).fetchone()
    return None if row is None else sale_of(row)


async def _known(connection: Connection, sale_id: str) -> Sale:
    sale = await _by_id(connection, sale_id)
    if sale is None:
        raise KeyError(sale_id)
    return sale


async def _claimant(connection: Connection, key: ClaimKey) -> Sale | None:
    row = await (await connection.execute(statements.CLAIMANT, (digest(key),))).fetchone()
    return None if row is None else sale_of(row)


async def _is_good_for(
    connection: Connection, key: ClaimKey, amount_atomic: int, standing: Standing, *, but: str
) -> bool:
    """Whether the payer's record and what it owes already, without the sale `but`, allow this amount too."""
    arguments = {
        "payer": key.payer,
        "asset": key.asset,
        "network": key.network,
        "after_sales": standing.after_sales,
        "but": but,
        "amount": str(amount_atomic),
        "most": str(standing.max_unsettled_atomic),
    }
    row = await (await connection.execute(statements.IS_GOOD_FOR, arguments)).fetchone()
    return row is not None and bool(row[0])


def _storable(change: Change) -> Change:
    """Without NUL, which PostgreSQL cannot store: a facilitator's words must not hide its answer."""
    if change.reason is None or "\0" not in change.reason:
        return change
    return replace(change, reason=change.reason.replace("\0", "\ufffd"))
