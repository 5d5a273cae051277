"""The life of one payment at the seller, as one table.

Rule 1: every state and every step that a payment can take is in `TABLE`; nothing else moves a payment.
Rule 2: a state says who owes what to whom if the process dies right now; the ledger holds it.

    REQUIRED ─▶ PRESENTED ─▶ VERIFIED ─▶ CLAIMED ─▶ SERVING ─▶ SERVED ─▶ SETTLING ─▶ SETTLED
                    │            │          │  │        │         │         ├──▶ SETTLE_FAILED
                REJECTED     REJECTED  RELEASED│    RELEASED   WAIVED       ├──▶ SETTLE_UNKNOWN ─▶ the other three
                                               └─(settle first)─▶ SETTLING ─┴──▶ OWED ⇄ REDEEMING ─▶ SETTLED

Two orders share the table. Serve first: SETTLE is asked once output exists. Settle first: SETTLE is asked from CLAIMED,
and money that has moved before anything was handed over is OWED until it is.

SETTLE_FAILED is the end of what a gateway does. Where the chain shows the money all the same, whoever keeps the books
writes that down, and nothing else does: OWED where nothing was handed over, else SETTLED.
"""

from collections.abc import Iterable
from enum import StrEnum

from obol.errors import IllegalTransitionError


class State(StrEnum):
    """What a payment is. In brackets: who owes what if the process dies now."""

    REQUIRED = "required"
    """A 402 was sent [nobody]."""
    PRESENTED = "presented"
    """A payload was read [nobody]."""
    VERIFIED = "verified"
    """The signature, amount, window and domain are right [nobody]."""
    REJECTED = "rejected"
    """It was refused; it was never claimed [nobody]."""
    CLAIMED = "claimed"
    """This sale alone may use the authorization; nothing was delivered [nobody]."""
    SERVING = "serving"
    """The upstream was contacted; no output exists yet [nobody]."""
    RELEASED = "released"
    """Nothing was delivered, nothing will be settled; the authorization may be presented again [nobody]."""
    SERVED = "served"
    """Output exists and settlement was not asked for [the buyer owes the amount, if any of it was handed over]."""
    SETTLING = "settling"
    """The facilitator was asked and has not answered [unknown until asked again]."""
    SETTLE_UNKNOWN = "settle_unknown"
    """The facilitator's answer was lost [unknown until asked again]."""
    SETTLED = "settled"
    """Money moved and output was handed over [nobody]."""
    SETTLE_FAILED = "settle_failed"
    """A definite no: money did not move, for all that is known [the loss, if any, is the seller's and is in the
    receipt]."""
    OWED = "owed"
    """Money moved and nothing was handed over [the seller owes an answer]."""
    REDEEMING = "redeeming"
    """An owed answer is being served [the seller owes an answer]."""
    WAIVED = "waived"
    """Verify-only: output was handed over and will not be settled [nobody]."""


class Event(StrEnum):
    """What can happen to a payment."""

    PRESENT = "present"
    ACCEPT = "accept"
    REFUSE = "refuse"
    CLAIM = "claim"
    SERVE = "serve"
    OUTPUT = "output"
    """Output exists: the first of a stream, or a whole plain answer. From REDEEMING: it was handed over."""
    RELEASE = "release"
    SETTLE = "settle"
    SETTLED = "settled"
    """Money moved; output was handed over already, or is being streamed."""
    SETTLED_UNDELIVERED = "settled_undelivered"
    """Money moved; nothing was handed over yet."""
    SETTLE_FAILED = "settle_failed"
    SETTLE_UNKNOWN = "settle_unknown"
    WAIVE = "waive"
    FOUND_PAID = "found_paid"
    """The chain shows that what was refused has moved, and output was handed over. Of a reconciliation only."""
    FOUND_PAID_UNDELIVERED = "found_paid_undelivered"
    """The same, and nothing was handed over."""


FOUND = frozenset({Event.FOUND_PAID, Event.FOUND_PAID_UNDELIVERED})
"""What only the chain can say, to whoever keeps the books: no gateway, buyer or facilitator does."""


TABLE: dict[State, dict[Event, State]] = {
    State.REQUIRED: {Event.PRESENT: State.PRESENTED},
    State.PRESENTED: {Event.ACCEPT: State.VERIFIED, Event.REFUSE: State.REJECTED},
    State.VERIFIED: {Event.CLAIM: State.CLAIMED, Event.REFUSE: State.REJECTED},
    State.CLAIMED: {Event.SERVE: State.SERVING, Event.SETTLE: State.SETTLING, Event.RELEASE: State.RELEASED},
    State.SERVING: {Event.OUTPUT: State.SERVED, Event.RELEASE: State.RELEASED},
    State.SERVED: {Event.SETTLE: State.SETTLING, Event.WAIVE: State.WAIVED, Event.RELEASE: State.RELEASED},
    State.SETTLING: {
        Event.SETTLED: State.SETTLED,
        Event.SETTLED_UNDELIVERED: State.OWED,
        Event.SETTLE_FAILED: State.SETTLE_FAILED,
        Event.SETTLE_UNKNOWN: State.SETTLE_UNKNOWN,
    },
    State.SETTLE_UNKNOWN: {
        Event.SETTLED: State.SETTLED,
        Event.SETTLED_UNDELIVERED: State.OWED,
        Event.SETTLE_FAILED: State.SETTLE_FAILED,
    },
    State.OWED: {Event.SERVE: State.REDEEMING},
    State.REDEEMING: {Event.OUTPUT: State.SETTLED, Event.RELEASE: State.OWED},
    State.REJECTED: {},
    State.RELEASED: {},
    State.SETTLED: {},
    State.SETTLE_FAILED: {Event.FOUND_PAID: State.SETTLED, Event.FOUND_PAID_UNDELIVERED: State.OWED},
    State.WAIVED: {},
}

FINAL = frozenset(state for state, steps in TABLE.items() if not steps.keys() - FOUND)
"""States that a payment never leaves by itself: nobody goes on with it, and its authorization is used up."""

PAID = frozenset({State.SETTLED, State.OWED, State.REDEEMING})
"""States in which money has moved to the seller."""


def advance(state: State, events: Iterable[Event]) -> State:
    """The state after `events`, in order. Raises `IllegalTransitionError` where the table has no such step."""
    for event in events:
        following = TABLE[state].get(event)
        if following is None:
            raise IllegalTransitionError(f"a payment that is {state} cannot {event}")
        state = following
    return state
