"""Sellers' answers: reading a 402 or 409 whole but bounded, and what must not be tried again."""

import json
from collections.abc import Generator
from typing import Any

import httpx2

from obol.buyer.payment import Payment, PaymentStatus
from obol.buyer.streams import LimitedStream
from obol.core.networks import TransferMethod
from obol.errors import PaymentRefusedError, PeerProtocolError, UnpayableError
from obol.x402.client import read_challenge
from obol.x402.permit2 import allowance_advice
from obol.x402.reasons import Reason

PAYMENT_REQUIRED_STATUS = 402
BUSY_STATUSES = (429, 503)
"""A seller that declines for now."""
MAX_ERROR_BYTES = 64 * 1024
MAX_REASON_CHARS = 200
USED = "payment_used"
"""Our sellers' reason for a payment that has had its answer."""
IN_USE = "payment_in_use"
"""Their reason for one that another request presents, or whose end they do not know yet."""
NOT_ALLOWED = Reason.PERMIT2_ALLOWANCE_REQUIRED.value
"""The reason of a refusal because Permit2 may not move the amount."""

_CONFLICT_STATUS = 409
_NO_ALLOWANCE_STATUS = 412
"""Some sellers' answer to a payment by Permit2 that the payer has not allowed Permit2 to make."""


def read_error(response: httpx2.Response) -> Generator[httpx2.Response, httpx2.Response, bytes]:
    """The body of a 402 or 409, which is never longer than a challenge; b"" of any other answer, which is not touched.

    The client reads a 402 anyway before it sends again: read here, what goes wrong with it goes wrong before anything
    is signed.
    """
    if response.status_code not in (PAYMENT_REQUIRED_STATUS, _CONFLICT_STATUS):
        return b""
    response.stream = LimitedStream(response.stream, MAX_ERROR_BYTES)
    return (yield response).content


def refuse_foreign(addressed: httpx2.Request, asked: httpx2.Request) -> None:
    """Raises `UnpayableError` where a redirect led to another origin: the caller did not mean to pay that one."""
    if asked.url.origin != addressed.url.origin:
        raise UnpayableError(
            f"{addressed.url.host} redirected to {asked.url.host}, which asks for payment: send the request there "
            "to pay it",
            reason="redirected",
        )


def raise_if_refused(response: httpx2.Response, error: bytes, payment: Payment) -> None:
    """Raises `PaymentRefusedError` where asking again would buy nothing, or buy twice. Other answers pass.

    Its reason is `NOT_ALLOWED` where Permit2 would have to be allowed to move the amount.
    """
    is_permit2 = payment.asset.transfer_method is TransferMethod.PERMIT2
    is_not_allowed = is_permit2 and response.status_code == _NO_ALLOWANCE_STATUS
    if response.status_code == PAYMENT_REQUIRED_STATUS or is_not_allowed:
        why = _refusal(response, error) or payment.reason
        is_not_allowed |= is_permit2 and NOT_ALLOWED in f"{why} {payment.reason}"  # sellers put it in a sentence, too
        advice = f". {allowance_advice(payment.asset)}" if is_not_allowed else ""
        reason = NOT_ALLOWED if is_not_allowed else None
        raise PaymentRefusedError(f"the seller refused the payment: {why}{advice}", reason=reason)
    if _is_used(response, error, payment):
        where = f"; its receipt is at {payment.receipt_url}" if payment.receipt_url else ""
        raise PaymentRefusedError(f"this payment was used before{where}", reason=USED)


def is_open(response: httpx2.Response, error: bytes, payment: Payment) -> bool:
    """True when the same request should present the same payment again: money may have moved, for no answer yet."""
    is_refused = response.status_code == PAYMENT_REQUIRED_STATUS
    return payment.status is not PaymentStatus.UNPAID and not is_refused and not _is_used(response, error, payment)


def is_declined(response: httpx2.Response, payment: Payment) -> bool:
    """True when the seller left the payment unused for reasons of its own: it is still good for the same request."""
    is_its_own = response.status_code in BUSY_STATUSES or response.is_server_error
    return payment.status is PaymentStatus.UNPAID and is_its_own


def _is_used(response: httpx2.Response, error: bytes, payment: Payment) -> bool:
    if response.status_code != _CONFLICT_STATUS:
        return False
    codes = _error_codes(error)
    return USED in codes or (payment.status is PaymentStatus.PAID and IN_USE not in codes)


def _error_codes(body: bytes) -> tuple[Any, Any]:
    """`error.code` of a body in the OpenAI error shape, and the `reason` beside it."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None, None
    if not isinstance(value, dict):
        return None, None
    error = value.get("error")
    return error.get("code") if isinstance(error, dict) else None, value.get("reason")


def _refusal(response: httpx2.Response, body: bytes) -> str:
    """The seller's own words, cut short, or "" where it has none."""
    try:
        return read_challenge(response.status_code, response.headers, body).error[:MAX_REASON_CHARS]
    except PeerProtocolError:
        return ""
