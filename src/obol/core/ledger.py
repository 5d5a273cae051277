"""The ledger port: the durable memory of every sale. Claims are atomic; each answer is durable when it returns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from obol.core.offer import Standing
from obol.core.payment import Event, State
from obol.core.sale import ClaimKey, Delivery, NewSale, Sale
from obol.core.usage import Usage


@dataclass(frozen=True, slots=True)
class Claimed:
    """The authorization is this sale's alone. State CLAIMED."""

    sale: Sale


@dataclass(frozen=True, slots=True)
class Redeeming:
    """The authorization was paid and never served: this caller alone now serves it. State REDEEMING; do not settle."""

    sale: Sale


@dataclass(frozen=True, slots=True)
class InUse:
    """Another sale holds the authorization, or its settlement is not resolved."""

    sale: Sale


@dataclass(frozen=True, slots=True)
class Used:
    """The authorization has bought its answer, or was refused for good; `sale` is the receipt's source."""

    sale: Sale


ClaimOutcome = Claimed | Redeeming | InUse | Used


@dataclass(frozen=True, slots=True)
class Change:
    """What else to record with a step. None leaves the column as it is."""

    delivery: Delivery | None = None
    """STARTED does not overwrite how an answer ended: the two may be recorded in either order."""
    settled_atomic: int | None = None
    transaction: str | None = None
    reason: str | None = None
    usage: Usage | None = None
    log_index: int | None = None


NO_CHANGE = Change()


@dataclass(frozen=True, slots=True)
class SaleFilter:
    """Which sales to list; None does not restrict. Times in Unix seconds, by when a sale was claimed."""

    since_s: float | None = None
    """At or after."""
    until_s: float | None = None
    """Before."""
    offer: str | None = None
    payer: str | None = None
    """Lower case."""
    network: str | None = None
    """CAIP-2."""
    asset: str | None = None
    """Lower-case contract address."""
    states: frozenset[State] | None = None


EVERY_SALE = SaleFilter()


@dataclass(frozen=True, slots=True)
class Page:
    """Some sales, in the order in which they were claimed. `cursor` gives the next page; None: this was the last."""

    sales: Sequence[Sale]
    cursor: int | None


class Ledger(Protocol):
    """Every method raises `LedgerUnavailableError` when it could not find out whether it was recorded."""

    async def claim(self, sale: NewSale) -> ClaimOutcome:
        """Claim `sale.key`, atomically against every other claimer of the same ledger, and durably.

        No row, or a RELEASED one: recorded as CLAIMED under `sale.id` -> `Claimed`. OWED: moved to REDEEMING under its
        old id, with `sale.id` as its attempt -> `Redeeming`, for exactly one caller. SETTLED, SETTLE_FAILED, WAIVED
        -> `Used`. Else -> `InUse`.

        Raises `ValueError` when `sale.id` belongs to another authorization or a released sale: ids are never reused.
        """
        ...

    async def disown(self, sale: NewSale, reason: str) -> Sale | None:
        """Take back a claim whose answer was lost: when this returns, `sale.id` holds nothing and never will.

        Waits for whatever of the claim may still be under way. What it had recorded is moved back, to RELEASED or OWED,
        and returned. Where it had recorded nothing (or that was moved on since: None too), `sale` itself is recorded as
        RELEASED, so that a claim which arrives still later finds its id used. May be repeated. Raises `SaleTakenError`
        when another ledger user has adopted what was claimed.
        """
        ...

    async def record(
        self, sale_id: str, events: Sequence[Event], change: Change = NO_CHANGE, *, attempt: str | None = None
    ) -> Sale:
        """Move a sale along the payment table by `events` and apply `change`, as one durable step.

        With `attempt`, only if that attempt holds the sale: else `SaleTakenError`, and nothing is recorded. Raises
        `IllegalTransitionError`, recording nothing, where the table has no such step, or has it for another delivery
        (`Event.FOUND_PAID` and its sibling), and `KeyError` for an id that was never claimed. `events` may be empty.
        """
        ...

    async def trust(self, sale_id: str, events: Sequence[Event], change: Change, standing: Standing) -> Sale | None:
        """`record`, if the payer is good for it; None, and nothing recorded, if not. One atomic step.

        Good: among the payer's sales on the same network and asset, at least `standing.after_sales` are SETTLED since
        the last SETTLE_FAILED one, and at least 1 where there is one: else each refusal would make room for more. And
        the amounts of those that are SERVED, SETTLING or SETTLE_UNKNOWN, with this sale's, are at most
        `standing.max_unsettled_atomic`.
        """
        ...

    async def is_trusted(self, key: ClaimKey, amount_atomic: int, standing: Standing) -> bool:
        """Whether `trust` would say yes now to a sale of that amount that is not claimed yet. Books nothing."""
        ...

    async def sale(self, sale_id: str) -> Sale | None:
        """The sale of that id as last recorded, or None."""
        ...

    async def held_by(self, attempt: str) -> Sale | None:
        """The sale that an attempt claimed under its own id, or is redeeming now; None when it holds none."""
        ...

    async def find(self, key: ClaimKey) -> Sale | None:
        """The sale that holds `key` now: the one whose state is not RELEASED, or None."""
        ...

    async def page(self, which: SaleFilter, *, after: int | None = None, limit: int = 500) -> Page:
        """Up to `limit` sales that fit, oldest claim first; `after` is the cursor of the page before."""
        ...

    async def flaws(self) -> list[str]:
        """What the storage itself finds wrong with its file or tables, in words; empty when sound. May take long."""
        ...

    async def adopt(self, network: str | None = None) -> list[Sale]:
        """Take over the unfinished sales of ledger users that are dead, each by exactly one adopter.

        With `network` (CAIP-2) only those that were paid for there: another's facilitator could not settle them.

        A sale is unfinished unless its state is final or OWED. Sales of live users (other processes too) are left
        alone; a user that was closed counts as dead.
        """
        ...

    async def check(self) -> None:
        """Return when the ledger can be written right now; raise `LedgerUnavailableError` otherwise."""
        ...

    async def close(self) -> None:
        """Finish what was submitted, then let go. Idempotent."""
        ...
