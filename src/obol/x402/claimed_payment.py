"""What cannot be true of a sale beside the signed payment that it was claimed with."""

from collections.abc import Iterator

import msgspec

from obol.core.sale import Sale
from obol.errors import MalformedPaymentError
from obol.x402.authorization import Authorization, parse_authorization
from obol.x402.models import PaymentPayload, PaymentRequirements


def payment_flaws(sale: Sale) -> Iterator[str]:
    """What is wrong, in words without secrets: a payment that cannot be read, or is not the one that the sale tells of.

    Requirements that are no JSON are `core.integrity`'s to tell.
    """
    try:
        payment = msgspec.json.decode(sale.payload, type=PaymentPayload)
        authorization = parse_authorization(payment.payload)
    except (msgspec.DecodeError, MalformedPaymentError):
        yield "its payment cannot be read: it could not be settled"
        return
    yield from _differences(sale, authorization)
    try:
        wanted = msgspec.json.decode(sale.requirements, type=PaymentRequirements)
    except msgspec.ValidationError:
        yield "its requirements are not complete: it could not be settled"
    except msgspec.DecodeError:
        return
    else:
        if payment.accepted != wanted:
            yield "its payment was made for other requirements"


def _differences(sale: Sale, authorization: Authorization) -> Iterator[str]:
    signed = {
        "payer": (sale.key.payer, authorization.payer),
        "nonce": (sale.key.nonce, authorization.nonce),
        "amount": (sale.authorized_atomic, authorization.value_atomic),
        "payTo": (sale.pay_to.lower(), authorization.to),
        "end of the window": (sale.valid_before_s, authorization.valid_before_s),
    }
    if authorization.permit is not None:
        signed["asset"] = (sale.key.asset, authorization.permit.token)
    for name, (recorded, authorized) in signed.items():
        if recorded != authorized:
            yield f"its payment authorizes another {name}"
