"""One sale, from a presented payment to its answer: check, claim, slot, terms, serve.

The order decides who can lose what (DESIGN section 5). Whatever returns before the claim leaves the payment untouched;
whatever returns after it goes through the terms, which write down what is owed.
"""

import asyncio
from dataclasses import replace

import msgspec
from aiohttp import web

from obol.core.capacity import Slot
from obol.core.ledger import Claimed, InUse, Redeeming, Used
from obol.core.offer import SettlementPolicy
from obol.core.payment import Event
from obol.core.sale import NewSale, Sale
from obol.errors import LedgerUnavailableError
from obol.gateway.call import Call
from obol.gateway.checking import Checked, check, is_for
from obol.gateway.order import Order
from obol.gateway.patience import GONE, BuyerGone, buyer_patience
from obol.gateway.receipts import Headers, ReceiptHeaders
from obol.gateway.replies import Reason, Refusal
from obol.gateway.serve import serve
from obol.gateway.slots import HeldSlot
from obol.gateway.terms import Free, OnOutput, Paid, Terms, Waived, refusal_of_settlement, steps_of_held_answer
from obol.gateway.till import Till
from obol.x402.exact import SETTLE_MARGIN_S
from obol.x402.presented import Presented

FOREVER_S = 2**62
"""What a ledger can hold of a time: the nonce of a payment that has bought its answer can be signed with any."""


async def sell(till: Till, call: Call, order: Order, presented: Presented) -> web.StreamResponse | Refusal:
    """Steps 5 to 10 of a sale. Runs in a task of its own: a buyer who hangs up does not stop it.

    Raises `FacilitatorUnavailableError`, `PeerProtocolError` (nothing was claimed) and `LedgerUnavailableError`.
    """
    checked = await check(till, call, presented)
    if isinstance(checked, Refusal):
        return checked
    claimed = await _claim(till, call, checked, order)
    if isinstance(claimed, Refusal):
        return claimed
    has_ended = False
    try:
        answer = await _fulfil(till, call, order, checked, claimed)
        has_ended = True
        return answer
    finally:
        if not has_ended:  # by a bug, or cut off at the end of the process: the payment must not stay locked
            till.settler.let_go(claimed.sale, Reason.INTERNAL.value)


async def _fulfil(
    till: Till, call: Call, order: Order, checked: Checked, claimed: Claimed | Redeeming
) -> web.StreamResponse | Refusal:
    receipt = ReceiptHeaders(call, claimed.sale, till.ports.catalogue)
    slot = await _enter(till, call, checked, is_paid=isinstance(claimed, Redeeming))
    if isinstance(slot, Refusal):
        await till.settler.release(claimed.sale, slot.reason.value)
        return replace(slot, headers=_untouched(claimed, receipt, slot.reason))
    held = HeldSlot(till.live.gate, slot)
    try:
        terms = await _terms(till, claimed, receipt)
        if isinstance(terms, Refusal):
            return terms
        return await serve(till, call, order, terms, held)
    finally:
        held.free(served=False)


async def serve_free(till: Till, call: Call, order: Order) -> web.StreamResponse | Refusal:
    """An answer without a payment gate; slots are counted per address."""
    slot = await _wait_for_slot(till, call, call.request.remote or "")
    if isinstance(slot, Refusal):
        return slot
    held = HeldSlot(till.live.gate, slot)
    try:
        return await serve(till, call, order, Free(), held)
    finally:
        held.free(served=False)


async def _claim(till: Till, call: Call, checked: Checked, order: Order) -> Claimed | Redeeming | Refusal:
    started_s = till.ports.clock.monotonic_s()
    new = _new_sale(till, checked, order)
    try:
        claimed = await till.ports.ledger.claim(new)
    except Exception:  # foreseen or not: it may have been recorded all the same
        await till.settler.release(new, Reason.LEDGER_UNAVAILABLE.value)
        raise
    till.ports.metrics.claim_s.observe(till.ports.clock.monotonic_s() - started_s)
    match claimed:
        case InUse(sale):
            text = "this payment is being used by another request, or its settlement is not resolved yet"
            receipt = ReceiptHeaders(call, sale, till.ports.catalogue)
            return Refusal(Reason.PAYMENT_IN_USE, text, retry_after_s=1, headers=receipt.address())
        case Used(sale):
            receipt = ReceiptHeaders(call, sale, till.ports.catalogue)
            return Refusal(Reason.PAYMENT_USED, "this payment was used before; see its receipt", headers=receipt.used())
        case Claimed(sale) if not checked.is_fresh:
            await till.settler.release(sale, Reason.PAYMENT_INVALID.value)
            return Refusal(Reason.PAYMENT_INVALID, "the payment is no longer valid, and it bought nothing here")
        case Redeeming(sale) if not is_for(sale, till.live.offer):
            await till.settler.release(sale, Reason.PAYMENT_INVALID.value)
            return Refusal(Reason.PAYMENT_INVALID, "the nonce of the payment was used to pay for something else")
    till.ports.metrics.payment(till.live.offer.name, claimed.sale.state)
    return claimed


def _new_sale(till: Till, checked: Checked, order: Order) -> NewSale:
    payment, offer = checked.payment, till.live.offer
    return NewSale(
        id=till.ports.entropy(16).hex(),
        key=payment.key,
        offer=offer.name,
        pay_to=offer.pay_to,
        authorized_atomic=payment.authorization.value_atomic,
        valid_before_s=min(payment.authorization.valid_before_s, FOREVER_S),
        api=order.api.value,
        model=order.model.public,
        payload=msgspec.json.encode(payment.payload),
        requirements=msgspec.json.encode(till.live.requirements),
        created_s=till.ports.clock.now_s(),
    )


async def _enter(till: Till, call: Call, checked: Checked, *, is_paid: bool) -> Slot | Refusal:
    slot = await _wait_for_slot(till, call, checked.payment.key.payer)
    if isinstance(slot, Refusal):
        return slot
    expires_s = checked.payment.authorization.valid_before_s
    if not is_paid and expires_s < till.ports.clock.now_s() + SETTLE_MARGIN_S:
        till.live.gate.leave(slot, served=False)
        return Refusal(Reason.PAYMENT_INVALID, "the payment expired while the request waited for a slot")
    return slot


async def _wait_for_slot(till: Till, call: Call, buyer: str) -> Slot | Refusal:
    try:
        async with buyer_patience(call):
            slot = await till.live.gate.enter(buyer)
    except BuyerGone:
        return GONE
    if isinstance(slot, Slot):
        return slot
    return till.live.saturated(Reason.QUEUE_TIMEOUT if slot is None else Reason(slot.value))


def _untouched(claimed: Claimed | Redeeming, receipt: ReceiptHeaders, reason: Reason) -> Headers:
    if isinstance(claimed, Redeeming):
        return receipt.owed(claimed.sale.transaction)
    return receipt.unused(reason.value)


async def _terms(till: Till, claimed: Claimed | Redeeming, receipt: ReceiptHeaders) -> Terms | Refusal:
    sale = claimed.sale
    if isinstance(claimed, Redeeming):
        return Paid(sale, till, receipt)
    if till.live.offer.verify_only:
        return Waived(sale, till, receipt)
    if till.live.offer.settlement is SettlementPolicy.BEFORE:
        return await _settle_first(till, sale, receipt)
    return OnOutput(sale, till, receipt)


async def _settle_first(till: Till, sale: Sale, receipt: ReceiptHeaders) -> Paid | Refusal:
    """Policy `before`: money moves, is written down as owed to the buyer, and only then is the upstream contacted."""
    try:
        await till.ports.ledger.record(sale.id, [Event.SETTLE])
        settlement = await asyncio.shield(till.settler.settle(sale, steps_of_held_answer))
    except LedgerUnavailableError:
        await till.settler.release(sale, Reason.LEDGER_UNAVAILABLE.value)
        raise
    refusal = refusal_of_settlement(settlement, receipt)
    return refusal or Paid(replace(sale, transaction=settlement.transaction), till, receipt)
