"""Terms: what must be written down, and asked for, around the serving of one sale.

`serve.py` moves bytes and knows nothing of money; it calls the terms at the four moments that matter. If the process
dies after any line here, the ledger's state says who owes what (`core/payment.py`).
"""

import asyncio
from typing import Protocol

from obol.core.ledger import Change
from obol.core.networks import Catalogue
from obol.core.payment import Event, State
from obol.core.sale import Delivery, Sale
from obol.core.usage import Usage
from obol.gateway.answers import SETTLEMENT, receipt_headers
from obol.gateway.ports import Ports
from obol.gateway.replies import Reason, Refusal
from obol.gateway.settling import Settler
from obol.x402.facilitator import Settlement, SettleOutcome


class Terms(Protocol):
    """Called in this order: `stream_begins` or `answer_is_ready`, then `ended`; or `nothing_served` alone."""

    def headers(self) -> dict[str, str]:
        """The receipt headers of an answer, as things stand now."""
        ...

    async def stream_begins(self) -> asyncio.Task[Settlement] | None:
        """Output exists and is about to leave. A returned task may end in a definite refusal, which cuts the stream."""
        ...

    async def answer_is_ready(self) -> Refusal | None:
        """A whole plain answer is in hand and not released; a refusal means that it must not be."""
        ...

    async def ended(self, delivery: Delivery, usage: Usage) -> None:
        """The answer was handed over as far as `delivery` says, after `stream_begins` or `answer_is_ready`."""
        ...

    async def nothing_served(self, reason: str) -> None:
        """Nothing was handed over and nothing will be: the buyer must not lose the payment."""
        ...


class OnOutput:
    """Settle once output exists: a stream goes on while the facilitator is asked, a plain answer waits for it."""

    def __init__(self, sale: Sale, settler: Settler, ports: Ports) -> None:
        self._sale, self._settler, self._ports = sale, settler, ports
        self._is_stream = False
        self._settlement: Settlement | None = None
        self._unserved = ""

    def headers(self) -> dict[str, str]:
        if self._unserved:
            return unused_headers(self._sale, self._unserved, self._ports)
        return receipt_headers(self._sale, self._settlement, self._ports.catalogue)

    async def stream_begins(self) -> asyncio.Task[Settlement]:
        self._is_stream = True
        await self._record([Event.SERVE, Event.OUTPUT, Event.SETTLE], Change(delivery=Delivery.STARTED))
        return self._settler.settle(self._sale, [Event.SETTLED], [Event.SETTLED])

    async def answer_is_ready(self) -> Refusal | None:
        await self._record([Event.SERVE, Event.OUTPUT, Event.SETTLE], Change())
        held = [Event.SETTLED_UNDELIVERED, Event.SERVE]
        asking = self._settler.settle(self._sale, held, [Event.SETTLED_UNDELIVERED])
        self._settlement = await asyncio.shield(asking)
        return refusal_of_settlement(self._settlement, self._sale, self._ports.catalogue)

    async def ended(self, delivery: Delivery, usage: Usage) -> None:
        if self._is_stream:
            self._settler.record_soon(self._sale, [], Change(delivery=delivery, usage=usage))
        else:
            hand_over(self._settler, self._sale, delivery, usage)

    async def nothing_served(self, reason: str) -> None:
        self._unserved = reason
        await self._settler.release(self._sale, reason)

    async def _record(self, events: list[Event], change: Change) -> None:
        recorded = await self._ports.ledger.record(self._sale.id, events, change)
        self._ports.metrics.payment(recorded.offer, recorded.state)


class Paid:
    """The money has moved (settled before, or an owed answer): the sale is REDEEMING until something is handed over."""

    def __init__(self, sale: Sale, settler: Settler, ports: Ports) -> None:
        self._sale, self._settler, self._ports = sale, settler, ports
        self._is_stream = False

    def headers(self) -> dict[str, str]:
        settled = Settlement(SettleOutcome.SETTLED, self._sale.transaction)
        return receipt_headers(self._sale, settled, self._ports.catalogue)

    async def stream_begins(self) -> None:
        self._is_stream = True
        recorded = await self._ports.ledger.record(self._sale.id, [Event.OUTPUT], Change(delivery=Delivery.STARTED))
        self._ports.metrics.payment(recorded.offer, recorded.state)

    async def answer_is_ready(self) -> None:
        """The money has moved: nothing stands between the answer and its buyer."""

    async def ended(self, delivery: Delivery, usage: Usage) -> None:
        if self._is_stream:
            self._settler.record_soon(self._sale, [], Change(delivery=delivery, usage=usage))
        else:
            hand_over(self._settler, self._sale, delivery, usage)

    async def nothing_served(self, reason: str) -> None:
        await self._settler.release(self._sale, reason)


class Waived:
    """Verify-only: the payment is checked and used up, and never settled."""

    def __init__(self, sale: Sale, settler: Settler, ports: Ports) -> None:
        self._sale, self._settler, self._ports = sale, settler, ports
        self._unserved = ""

    def headers(self) -> dict[str, str]:
        if self._unserved:
            return unused_headers(self._sale, self._unserved, self._ports)
        return receipt_headers(self._sale, None, self._ports.catalogue) | {SETTLEMENT: "verify-only"}

    async def stream_begins(self) -> None:
        await self._waive()

    async def answer_is_ready(self) -> None:
        await self._waive()

    async def ended(self, delivery: Delivery, usage: Usage) -> None:
        self._settler.record_soon(self._sale, [], Change(delivery=delivery, usage=usage))

    async def nothing_served(self, reason: str) -> None:
        self._unserved = reason
        await self._settler.release(self._sale, reason)

    async def _waive(self) -> None:
        events = [Event.SERVE, Event.OUTPUT, Event.WAIVE]
        change = Change(delivery=Delivery.STARTED, settled_atomic=0, reason="verify_only")
        recorded = await self._ports.ledger.record(self._sale.id, events, change)
        self._ports.metrics.payment(recorded.offer, recorded.state)


class Free:
    """No payment gate: nothing is owed either way."""

    def headers(self) -> dict[str, str]:
        return {}

    async def stream_begins(self) -> None:
        """Nothing to write down."""

    async def answer_is_ready(self) -> None:
        """Nothing to write down."""

    async def ended(self, delivery: Delivery, usage: Usage) -> None:
        """Nothing to write down."""

    async def nothing_served(self, reason: str) -> None:
        """Nothing to write down."""


def unused_headers(sale: Sale, reason: str, ports: Ports) -> dict[str, str]:
    """The receipt headers of an answer that costs nothing, such as an upstream's error: no money moves for it."""
    nothing = Settlement(SettleOutcome.FAILED, reason=reason)
    return receipt_headers(sale, nothing, ports.catalogue) | {SETTLEMENT: State.RELEASED.value}


def hand_over(settler: Settler, sale: Sale, delivery: Delivery, usage: Usage) -> None:
    """End a REDEEMING sale: owed when nothing of its plain answer was handed over, else settled."""
    event = Event.RELEASE if delivery is Delivery.NONE else Event.OUTPUT
    settler.record_soon(sale, [event], Change(delivery=delivery, usage=usage))


def refusal_of_settlement(settlement: Settlement, sale: Sale, catalogue: Catalogue) -> Refusal | None:
    """Why an answer is not released, given what came of its settlement; says so in the settlement headers too."""
    headers = receipt_headers(sale, settlement, catalogue)
    match settlement.outcome:
        case SettleOutcome.SETTLED:
            return None
        case SettleOutcome.FAILED:
            text = f"the payment was refused when it was settled ({settlement.reason}); no money moved"
            return Refusal(Reason.SETTLEMENT_FAILED, text, sale_id=sale.id, headers=headers)
        case SettleOutcome.PENDING | SettleOutcome.UNKNOWN:
            text = (
                "it is not known yet whether the payment went through: do not pay again; "
                "present the same payment later, or watch the receipt"
            )
            return Refusal(Reason.SETTLEMENT_UNKNOWN, text, retry_after_s=5, sale_id=sale.id, headers=headers)
