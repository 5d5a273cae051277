"""The steps that one transaction of the PostgreSQL ledger records, on rows that it has locked."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from obol.adapters.ledger_postgres_sql import LOCK, UPDATE, updated
from obol.adapters.ledger_rows import moved, sale_of
from obol.adapters.postgres_connections import Connection, transaction
from obol.core.ledger import Change
from obol.core.payment import Event, advance
from obol.core.sale import Sale
from obol.errors import IllegalTransitionError, SaleTakenError


@dataclass(frozen=True, slots=True)
class Step:
    """What `record` was asked for, and when."""

    sale_id: str
    events: Sequence[Event]
    change: Change
    attempt: str | None
    now_s: float


@dataclass(frozen=True, slots=True)
class Row:
    """A sale as it is recorded, and whose it is."""

    sale: Sale
    holder: int
    taken_from: Sequence[int]

    @classmethod
    def of(cls, row: tuple[Any, ...]) -> "Row":
        """From the columns of a sale, its holder, and those it was taken from."""
        return cls(sale_of(row), row[-2], row[-1])

    def moved(self, step: Step, me: int) -> "Row":
        """After a step. Raises `SaleTakenError`, `IllegalTransitionError`."""
        if self.holder != me and me in self.taken_from:
            raise SaleTakenError("the sale was adopted while this gateway could not hold it")
        if step.attempt not in (None, self.sale.attempt):
            raise SaleTakenError("another attempt holds the sale")
        sale = moved(self.sale, advance(self.sale.state, step.events), step.change, step.now_s)
        return replace(self, sale=sale)


async def record_all(connection: Connection, steps: Sequence[Step], me: int) -> list[Sale | BaseException]:
    """Record every step that can be, in order and in one transaction; for the others, why not."""
    async with transaction(connection):
        locked = await connection.execute(LOCK, (sorted({step.sale_id for step in steps}),))
        rows = {row.sale.id: row for row in map(Row.of, await locked.fetchall())}
        outcomes = [_taken(rows, step, me) for step in steps]
        changed = {outcome.id for outcome in outcomes if isinstance(outcome, Sale)}
        if changed:
            await connection.execute(UPDATE, updated([rows[sale_id].sale for sale_id in sorted(changed)]))
    return outcomes


def _taken(rows: dict[str, Row], step: Step, me: int) -> Sale | BaseException:
    """Take one step in `rows`: the next step of the same sale goes on from there."""
    row = rows.get(step.sale_id)
    if row is None:
        return KeyError(step.sale_id)
    try:
        rows[step.sale_id] = after = row.moved(step, me)
    except (SaleTakenError, IllegalTransitionError) as refused:
        return refused
    return after.sale
