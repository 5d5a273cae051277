"""Checking a presented payment (step 5): locally first, then by whoever sees the chain; nothing is claimed here.

A payment that was used here before must not meet "invalid, pay again": it gets its receipt, or the answer it is owed.
So where a check says no, the ledger is asked whether it knows the payment, and the claim then decides. One that paid
this seller before it came here, by a stranger's hand, is paid: with the payer's own signature it is good for one sale.
"""

from dataclasses import dataclass

import msgspec

from obol.core.money import UINT256_MAX
from obol.core.offer import Offer, SettlementPolicy, Standing
from obol.core.sale import Sale
from obol.errors import FacilitatorUnavailableError, PeerProtocolError
from obol.gateway.call import Call
from obol.gateway.replies import Reason, Refusal
from obol.gateway.till import Till
from obol.x402.exact import SETTLE_MARGIN_S, ExactVerifier, Undecided, Verified, matches, parse_authorization
from obol.x402.facilitator import Refused
from obol.x402.models import PaymentPayload
from obol.x402.presented import Presented
from obol.x402.witness import PaidAlready

_PAID_ONCE = Standing(after_sales=1, max_unsettled_atomic=UINT256_MAX)


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
        return await _sold_before(till, presented) or Refusal(Reason.NO_MATCHING_REQUIREMENT, text)
    started_s = ports.clock.monotonic_s()
    payment = live.verifier.verify(presented, ports.clock.now_s())
    ports.metrics.verification_s.observe(ports.clock.monotonic_s() - started_s)
    if isinstance(payment, Refused):
        return await _sold_before(till, presented) or _invalid(payment)
    if isinstance(payment, Verified) and _is_settled_next(live.offer) and await _has_paid(till, payment):
        return Checked(payment, is_fresh=True)  # settling asks the same questions
    if isinstance(payment, Verified) and await _has_standing(till, payment):
        return Checked(payment, is_fresh=True)
    return await _ask_facilitator(till, call, payment)


async def _ask_facilitator(till: Till, call: Call, payment: Verified | Undecided) -> Checked | Refusal:
    live, ports = till.live, till.ports
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
    if isinstance(outcome, PaidAlready) and isinstance(payment, Verified):
        return Checked(payment, is_fresh=True)
    ports.log.info("payment_refused", request=call.id, offer=live.offer.name, reason=outcome.reason)
    return _invalid(Refused(outcome.reason))  # its message is a peer's own words: not for buyers


def _is_settled_next(offer: Offer) -> bool:
    return offer.settlement is SettlementPolicy.BEFORE and not offer.verify_only


async def _has_paid(till: Till, payment: Verified) -> bool:
    """Whether the payer's last settlements were good. Who signs without money must not hold a slot while it is found
    out by settling."""
    return await till.ports.ledger.is_trusted(payment.key, 0, _PAID_ONCE)


async def _has_standing(till: Till, payment: Verified) -> bool:
    """Whether the payer's own record is reason enough to serve. Who is trusted from the first sale on is still asked
    about: a new payer may have no money at all."""
    standing = till.live.offer.standing
    if standing is None or not standing.after_sales:
        return False
    return await till.ports.ledger.is_trusted(payment.key, payment.authorization.value_atomic, standing)


async def _sold_before(till: Till, presented: Presented) -> Checked | None:
    """The payment, if it was right when this offer sold for it: neither time nor a new price or recipient takes away
    what it bought. A sale of another offer counts only where that asks for the same."""
    offer, asks = till.live.offer, till.live.requirements
    authorization = parse_authorization(presented.payload)
    asked = msgspec.structs.replace(asks, amount=str(authorization.value_atomic), pay_to=authorization.to)
    verifier = ExactVerifier(asked, offer.asset, max_validity_s=offer.max_validity_s)
    payment = verifier.verify(presented, authorization.valid_before_s - SETTLE_MARGIN_S)
    if isinstance(payment, Refused):
        return None
    sale = await _find(till, payment)
    return Checked(payment, is_fresh=False) if sale is not None and is_for(sale, offer) else None


def is_for(sale: Sale, offer: Offer) -> bool:
    """Whether what a sale was paid for is sold here: by this offer, whatever it asks now, or by one that asks for the
    same. Decided by what was paid: a payer can sign another amount with the same nonce."""
    paid = (sale.authorized_atomic, sale.pay_to.lower())
    return sale.offer == offer.name or paid == (offer.price_atomic, offer.pay_to.lower())


async def _is_known(till: Till, payment: Verified | Undecided) -> bool:
    return await _find(till, payment) is not None


async def _find(till: Till, payment: Verified | Undecided) -> Sale | None:
    """The sale of a payment, for a right signature only: nobody learns of another's sale. A contract wallet's is right
    when it is the one that a facilitator vouched for, before its nonce was used."""
    sale = await till.ports.ledger.find(payment.key)
    if sale is None or isinstance(payment, Verified):
        return sale
    vouched_for = msgspec.json.decode(sale.payload, type=PaymentPayload)
    return sale if vouched_for.payload == payment.payload.payload else None


def _invalid(refused: Refused) -> Refusal:
    text = f"the payment is not valid: {refused.reason}"
    return Refusal(Reason.PAYMENT_INVALID, f"{text} ({refused.message})" if refused.message else text)
