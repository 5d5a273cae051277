"""Totals: what a set of sales comes to, exactly. Amounts of different assets are never added.

Every state is in one column of `COLUMN_OF`, so that a line's columns add up to all of its sales.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from obol.core.payment import PAID, State
from obol.core.sale import Sale


class Column(StrEnum):
    """Where the money of a sale is."""

    SETTLED = "settled"
    """Here, and the answer was handed over."""
    OWED = "owed"
    """Here, and the seller owes the answer."""
    FAILED = "failed"
    """Refused when it was asked for."""
    UNKNOWN = "unknown"
    """Asked for; whether it moved is not known."""
    OPEN = "open"
    """Being served, and not asked for yet."""
    FREE = "free"
    """Never to be asked for: released or waived."""


COLUMN_OF: dict[State, Column] = {
    State.REQUIRED: Column.FREE,
    State.PRESENTED: Column.FREE,
    State.VERIFIED: Column.FREE,
    State.REJECTED: Column.FREE,
    State.CLAIMED: Column.OPEN,
    State.SERVING: Column.OPEN,
    State.RELEASED: Column.FREE,
    State.SERVED: Column.OPEN,
    State.SETTLING: Column.UNKNOWN,
    State.SETTLE_UNKNOWN: Column.UNKNOWN,
    State.SETTLED: Column.SETTLED,
    State.SETTLE_FAILED: Column.FAILED,
    State.OWED: Column.OWED,
    State.REDEEMING: Column.OWED,
    State.WAIVED: Column.FREE,
}


class By(StrEnum):
    """What a line of totals stands for."""

    DAY = "day"
    """The UTC day on which a sale was claimed, as YYYY-MM-DD."""
    OFFER = "offer"
    PAYER = "payer"
    ASSET = "asset"


_NAME: dict[By, Callable[[Sale], str]] = {
    By.DAY: lambda sale: datetime.fromtimestamp(sale.created_s, UTC).date().isoformat(),
    By.OFFER: lambda sale: sale.offer,
    By.PAYER: lambda sale: sale.key.payer,
    By.ASSET: lambda sale: sale.key.asset,
}


@dataclass(slots=True)
class Total:
    """Counts and amounts of one line, by column; absent is none."""

    counts: dict[Column, int] = field(default_factory=dict)
    amounts_atomic: dict[Column, int] = field(default_factory=dict)

    def add(self, sale: Sale) -> None:
        """Paid sales count what was settled, others what was authorized."""
        column = COLUMN_OF[sale.state]
        self.counts[column] = self.counts.get(column, 0) + 1
        self.amounts_atomic[column] = self.amounts_atomic.get(column, 0) + amount_of(sale)

    @property
    def count(self) -> int:
        return sum(self.counts.values())


@dataclass(frozen=True, order=True, slots=True)
class Line:
    """What a total is of. CAIP-2 network and lower-case contract address."""

    name: str
    network: str
    asset: str


class Totals:
    """Add sales one by one; `lines` are sorted. Holds one `Total` a line, never the sales."""

    def __init__(self, by: By) -> None:
        self._name = _NAME[by]
        self._totals: dict[Line, Total] = {}

    def add(self, sale: Sale) -> None:
        line = Line(self._name(sale), sale.key.network, sale.key.asset)
        self._totals.setdefault(line, Total()).add(sale)

    def lines(self) -> list[tuple[Line, Total]]:
        return sorted(self._totals.items(), key=lambda entry: entry[0])


def amount_of(sale: Sale) -> int:
    """Atomic units that a sale is about: what was settled where money moved, else what was authorized."""
    if sale.state in PAID and sale.settled_atomic is not None:
        return sale.settled_atomic
    return sale.authorized_atomic
