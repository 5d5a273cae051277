"""Terms: what must be written down, and asked for, around the serving of one sale.

`serve.py` moves bytes and knows nothing of money; it calls the terms at the moments that matter. If the process dies
after any line here, the ledger's state says who owes what (`core/payment.py`).
"""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from obol.core.ledger import NO_CHANGE, Change
from obol.core.offer import SettlementPolicy
from obol.core.payment import Event
from obol.core.sale import Delivery, Sale
from obol.core.usage import Usage
from obol.gateway.receipts import Headers, ReceiptHeaders
from obol.gateway.replies import Reason, Refusal
from obol.gateway.till import Till
from obol.x402.exact import SETTLE_MARGIN_S
from obol.x402.facilitator import Settlement, SettleOutcome

_SERVED = (Event.SERVE, Event.OUTPUT)
_SETTLING = (Event.SERVE, Event.OUTPUT, Event.SETTLE)
BEGUN_S = 1.0
"""How long the end of a stream waits for the record of its beginning: a ledger that hangs keeps no buyer waiting."""


class Terms(Protocol):
    """Called in this order: `stream_begins`, `stream_has_begun` and `stream_ends`, or `answer_is_ready`; then `ended`.

    Or `nothing_served`, after which nothing more is called.
    """

    def headers(self) -> Headers:
        """The receipt headers of an answer, as things stand now."""
        ...

    async def stream_begins(self) -> asyncio.Task[Settlement] | Refusal | None:
        """Output exists and is about to leave; a refusal means that it must not. A returned task may end in a definite
        refusal, which cuts the stream."""
        ...

    def stream_has_begun(self) -> None:
        """The first bytes of a stream were handed to the buyer's connection."""
        ...

    async def stream_ends(self) -> None:
        """All of a stream was handed over but the word that this is all: who has that too is never served again."""
        ...

    async def answer_is_ready(self) -> Refusal | None:
        """A whole plain answer is in hand and not released; a refusal means that it must not be."""
        ...

    async def ended(self, delivery: Delivery, usage: Usage) -> None:
        """The answer was handed over as far as `delivery` says; NONE is: not a byte of it."""
        ...

    async def nothing_served(self, reason: str) -> None:
        """Nothing was handed over and nothing will be: the buyer must not lose the payment."""
        ...


class OnOutput:
    """Settle once output exists, or (policy AFTER) once it was handed over.

    A stream goes on while the facilitator is asked; a plain answer waits for it, unless its payer has standing. What
    goes ahead of its money without being a stream under ON_OUTPUT is booked against the payer's standing first.
    """

    def __init__(self, sale: Sale, till: Till, receipt: ReceiptHeaders) -> None:
        self._sale, self._till, self._receipt = sale, till, receipt
        self._goes_ahead = False
        self._settles_at_end = False
        self._is_handed_over = False
        self._has_ended = False
        self._is_redeeming = False
        """Settled before anything was handed over: REDEEMING, by this attempt."""
        self._begun: asyncio.Task[bool] | None = None
        self._headers = receipt.under_way()

    def headers(self) -> Headers:
        return self._headers

    async def stream_begins(self) -> asyncio.Task[Settlement] | Refusal | None:
        expired = await self._expired()
        if expired is not None:
            return expired
        self._goes_ahead = True
        if self._is_after() and await self._trust(_SERVED):
            self._settles_at_end = True
            return None
        await self._record(_SETTLING)
        return self._till.settler.settle(self._sale, self._steps_of_what_went_ahead)

    def stream_has_begun(self) -> None:
        """Not before: a process that dies in between leaves an answer owed, not one that was paid for nothing."""
        self._is_handed_over = True
        self._begun = self._record_soon(Change(delivery=Delivery.STARTED))

    async def stream_ends(self) -> None:
        await _recorded(self._begun)

    async def answer_is_ready(self) -> Refusal | None:
        expired = await self._expired()
        if expired is not None:
            return expired
        if await self._trust(_SERVED if self._is_after() else _SETTLING):
            self._goes_ahead = True
            self._settles_at_end = self._is_after()
            if not self._settles_at_end:
                self._till.settler.settle(self._sale, self._steps_of_what_went_ahead)
            return None
        await self._record(_SETTLING)
        settlement = await asyncio.shield(self._till.settler.settle(self._sale, steps_of_held_answer))
        self._headers = self._receipt.settled(settlement.transaction)
        return refusal_of_settlement(settlement, self._receipt)

    async def ended(self, delivery: Delivery, usage: Usage) -> None:
        change = Change(delivery=delivery, usage=usage)
        self._is_handed_over = delivery is not Delivery.NONE
        self._has_ended = True
        if not self._goes_ahead:
            hand_over(self._till, self._sale, delivery, usage)
        elif not self._settles_at_end:
            self._record_soon(change)
        elif self._is_handed_over:
            steps, begun = self._steps_of_what_went_ahead, self._begun
            self._till.settler.settle_soon(self._sale, change, steps, after=begun)
        else:
            self._till.settler.record_soon(self._sale, [Event.RELEASE], change)

    async def nothing_served(self, reason: str) -> None:
        self._headers = self._receipt.unused(reason)
        await self._till.settler.release(self._sale, reason)

    async def _expired(self) -> Refusal | None:
        """The model took longer than the payment is good for: it would be refused when it is settled."""
        if self._sale.valid_before_s >= self._till.ports.clock.now_s() + SETTLE_MARGIN_S:
            return None
        await self.nothing_served(Reason.PAYMENT_INVALID.value)
        text = "the payment expired while the answer was made, and was not used: sign one that is valid for longer"
        return Refusal(Reason.PAYMENT_INVALID, text, headers=self._headers)

    def _is_after(self) -> bool:
        return self._till.live.offer.settlement is SettlementPolicy.AFTER

    def _steps_of_what_went_ahead(self, _is_late: bool) -> Sequence[Event]:
        """Until the first byte leaves, what was paid for is owed: by this attempt while it goes on, however late the
        settlement is known; to whoever presents the payment, once the buyer was gone."""
        if self._is_handed_over:
            return [Event.SETTLED]
        self._is_redeeming = not self._has_ended
        return steps_of_held_answer(is_late=self._has_ended)

    def _record_soon(self, change: Change) -> asyncio.Task[bool]:
        """Record how far the answer got; that ends a REDEEMING sale."""
        events: list[Event] = []
        if self._is_redeeming:
            self._is_redeeming = False
            events = [Event.OUTPUT if self._is_handed_over else Event.RELEASE]
        return self._till.settler.record_soon(self._sale, events, change, after=self._begun)

    async def _record(self, events: Sequence[Event]) -> None:
        ports = self._till.ports
        recorded = await ports.ledger.record(self._sale.id, events)
        ports.metrics.payment(recorded.offer, recorded.state)

    async def _trust(self, events: Sequence[Event]) -> bool:
        """Record `events` against the payer's standing; False, and nothing recorded, where that does not reach."""
        ports, standing = self._till.ports, self._till.live.offer.standing
        if standing is None:
            return False
        recorded = await ports.ledger.trust(self._sale.id, events, NO_CHANGE, standing)
        if recorded is None:
            return False
        ports.metrics.payment(recorded.offer, recorded.state)
        return True


class Paid:
    """The money has moved (settled before, or an owed answer): the sale is REDEEMING until something is handed over."""

    def __init__(self, sale: Sale, till: Till, receipt: ReceiptHeaders) -> None:
        self._sale, self._till = sale, till
        self._headers = receipt.settled(sale.transaction)
        self._owed_headers = receipt.owed(sale.transaction)
        self._begun: asyncio.Task[bool] | None = None

    def headers(self) -> Headers:
        return self._headers

    async def stream_begins(self) -> None:
        """That something was handed over is recorded when it was."""
        await self._still_ours()

    def stream_has_begun(self) -> None:
        started = Change(delivery=Delivery.STARTED)
        self._begun = self._till.settler.record_soon(self._sale, [Event.OUTPUT], started)

    async def stream_ends(self) -> None:
        await _recorded(self._begun)

    async def answer_is_ready(self) -> None:
        await self._still_ours()

    async def ended(self, delivery: Delivery, usage: Usage) -> None:
        if self._begun is not None:
            change = Change(delivery=delivery, usage=usage)
            self._till.settler.record_soon(self._sale, [], change, after=self._begun)
        else:
            hand_over(self._till, self._sale, delivery, usage)

    async def nothing_served(self, reason: str) -> None:
        self._headers = self._owed_headers
        await self._till.settler.release(self._sale, reason)

    async def _still_ours(self) -> None:
        """Raises `SaleTakenError` where another gateway took us for dead while the model thought: the answer is its to
        give."""
        await self._till.ports.ledger.record(self._sale.id, [], attempt=self._sale.attempt)


class Waived:
    """Verify-only: the payment is checked and used up, and never settled."""

    def __init__(self, sale: Sale, till: Till, receipt: ReceiptHeaders) -> None:
        self._sale, self._till, self._receipt = sale, till, receipt
        self._headers = receipt.waived()

    def headers(self) -> Headers:
        return self._headers

    async def stream_begins(self) -> None:
        await self._waive()

    def stream_has_begun(self) -> None:
        """It was written down before."""

    async def stream_ends(self) -> None:
        """It was written down before."""

    async def answer_is_ready(self) -> None:
        await self._waive()

    async def ended(self, delivery: Delivery, usage: Usage) -> None:
        self._till.settler.record_soon(self._sale, [], Change(delivery=delivery, usage=usage))

    async def nothing_served(self, reason: str) -> None:
        self._headers = self._receipt.unused(reason)
        await self._till.settler.release(self._sale, reason)

    async def _waive(self) -> None:
        events = [Event.SERVE, Event.OUTPUT, Event.WAIVE]
        change = Change(delivery=Delivery.STARTED, settled_atomic=0, reason="verify_only")
        recorded = await self._till.ports.ledger.record(self._sale.id, events, change)
        self._till.ports.metrics.payment(recorded.offer, recorded.state)


class Free:
    """No payment gate: nothing is owed either way."""

    def headers(self) -> Headers:
        return {}

    async def stream_begins(self) -> None:
        """Nothing to write down."""

    def stream_has_begun(self) -> None:
        """Nothing to write down."""

    async def stream_ends(self) -> None:
        """Nothing to write down."""

    async def answer_is_ready(self) -> None:
        """Nothing to write down."""

    async def ended(self, delivery: Delivery, usage: Usage) -> None:
        """Nothing to write down."""

    async def nothing_served(self, reason: str) -> None:
        """Nothing to write down."""


def steps_of_held_answer(is_late: bool) -> Sequence[Event]:
    """Settled while nothing was handed over: owed, and being served by whoever waits for it (nobody, when late)."""
    return [Event.SETTLED_UNDELIVERED] if is_late else [Event.SETTLED_UNDELIVERED, Event.SERVE]


async def _recorded(begun: asyncio.Task[bool] | None) -> None:
    if begun is not None:
        await asyncio.wait({begun}, timeout=BEGUN_S)


def hand_over(till: Till, sale: Sale, delivery: Delivery, usage: Usage) -> None:
    """End a REDEEMING sale: owed when nothing of its answer was handed over, else settled."""
    event = Event.RELEASE if delivery is Delivery.NONE else Event.OUTPUT
    till.settler.record_soon(sale, [event], Change(delivery=delivery, usage=usage))


def refusal_of_settlement(settlement: Settlement, receipt: ReceiptHeaders) -> Refusal | None:
    """Why an answer is not released, given what came of its settlement; says so in the receipt headers too."""
    match settlement.outcome:
        case SettleOutcome.SETTLED:
            return None
        case SettleOutcome.FAILED:
            text = f"the payment was refused when it was settled ({settlement.reason}); no money moved"
            return Refusal(Reason.SETTLEMENT_FAILED, text, headers=receipt.refused(settlement))
        case SettleOutcome.PENDING | SettleOutcome.UNKNOWN:
            text = (
                "it is not known yet whether the payment went through: do not pay again; "
                "present the same payment later, or watch the receipt"
            )
            return Refusal(Reason.SETTLEMENT_UNKNOWN, text, retry_after_s=5, headers=receipt.refused(settlement))
