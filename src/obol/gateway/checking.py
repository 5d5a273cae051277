"""Checking a presented payment (step 5): locally first, then by whoever sees the chain; nothing is claimed here.

A payment that was used here before must not meet "invalid, pay again": it gets its receipt, or the answer it is owed.
So where a check says no, the ledger is asked whether it knows the payment, and the claim then decides.
"""

from dataclasses import dataclass

from obol.core.offer import SettlementPolicy
from obol.errors import FacilitatorUnavailableError, PeerProtocolError
from obol.gateway.call import Call
from obol.gateway.replies import Reason, Refusal
from obol.gateway.till import Till
from obol.x402.exact import Undecided, Verified, matches, parse_authorization
from obol.x402.facilitator import Refused
from obol.x402.presented import Presented

SETTLE_MARGIN_S = 6
"""A payment that expires sooner than this cannot be settled any more (x402 `exact`, verification step 5)."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A payment with a right signature (or one that the facilitator vouches for).

    `is_fresh` False: it is only good for what the ledger knows of it, never for a new sale.
    """

    payment: Verified | Undecided
    is_fresh: bool


async def check(till: Till, call: Call, presented: Presented) -> Checked | Refusal:
    """Raises `FacilitatorUnavailableError` and `PeerProtocolError` when nobody could say, `MalformedPaymentError`."""
    live, ports = till.live, till.ports
    if not matches(presented, live.requirements, ports.catalogue):
        text = "the payment does not fit this offer: take the requirements of this answer"
        return Refusal(Reason.NO_MATCHING_REQUIREMENT, text)
    started_s = ports.clock.monotonic_s()
    payment = live.verifier.verify(presented, ports.clock.now_s())
    ports.metrics.verification_s.observe(ports.clock.monotonic_s() - started_s)
    if isinstance(payment, Refused):
        return await _known_outside_window(till, presented) or _invalid(payment)
    if isinstance(payment, Verified) and live.offer.settlement is SettlementPolicy.BEFORE:
        return Checked(payment, is_fresh=True)  # settling comes next and asks the same questions
    try:
        outcome = await ports.facilitator.verify(payment.payload, live.requirements)
    except (FacilitatorUnavailableError, PeerProtocolError):
        if not await _is_known(till, payment):
            raise
        return Checked(payment, is_fresh=False)
    if not isinstance(outcome, Refused):
        return Checked(payment, is_fresh=True)
    if await _is_known(till, payment):
        return Checked(payment, is_fresh=False)
    ports.log.info("payment_refused", request=call.id, offer=live.offer.name, reason=outcome.reason)
    return _invalid(outcome)


async def _known_outside_window(till: Till, presented: Presented) -> Checked | None:
    """The payment, if only its time window is wrong and the ledger knows it: an owed answer does not expire."""
    inside_s = parse_authorization(presented.payload).valid_before_s - SETTLE_MARGIN_S
    payment = till.live.verifier.verify(presented, inside_s)
    if isinstance(payment, Verified) and await _is_known(till, payment):
        return Checked(payment, is_fresh=False)
    return None


async def _is_known(till: Till, payment: Verified | Undecided) -> bool:
    """Only a right signature is looked up: nobody learns of another's sale."""
    return isinstance(payment, Verified) and await till.ports.ledger.find(payment.key) is not None


def _invalid(refused: Refused) -> Refusal:
    text = f"the payment is not valid: {refused.reason}"
    return Refusal(Reason.PAYMENT_INVALID, f"{text} ({refused.message})" if refused.message else text)
