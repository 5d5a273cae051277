"""The x402 headers: their names, base64 JSON out and in, and the reading of a presented payment.

What is emitted is standard padded base64, the only form that every official client accepts. What is read may also have
the url alphabet and lack its padding; anything else is refused, because two readers who understand different bytes
differently are how one payment is spent twice.
"""

import binascii
import json
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from obol.core.networks import Catalogue
from obol.errors import MalformedPaymentError
from obol.x402.gas_sponsoring import read_token_permit
from obol.x402.models import ExactPayload, PaymentRequirements
from obol.x402.presented import Presented
from obol.x402.v1 import caip2_of

PAYMENT_REQUIRED = "PAYMENT-REQUIRED"
PAYMENT_SIGNATURE = "PAYMENT-SIGNATURE"
X_PAYMENT = "X-PAYMENT"
PAYMENT_RESPONSE = "PAYMENT-RESPONSE"
X_PAYMENT_RESPONSE = "X-PAYMENT-RESPONSE"

MAX_HEADER_BYTES = 16 * 1024
"""The longest header value that is read, before decoding. A real payment has about 1 kB."""

T = TypeVar("T")

_URL_TO_STANDARD = str.maketrans("-_", "+/")


class _Wire(msgspec.Struct, rename="camel"):
    """The fields of a v1 and of a v2 payload; which must be there depends on the version."""

    payload: ExactPayload
    x402_version: int = msgspec.field(name="x402Version")
    accepted: PaymentRequirements | None = None
    scheme: str | None = None
    network: str | None = None
    extensions: Any = None


def encode_header(value: object) -> str:
    """A header value: JSON in standard padded base64."""
    return binascii.b2a_base64(msgspec.json.encode(value), newline=False).decode("ascii")


def decode_header(text: str, type: type[T]) -> T:
    """The value of a header as `type`. Raises `MalformedPaymentError`; the message holds nothing of the value."""
    return _decode_json(_decode_base64(text), type)


def read_presented(
    x_payment: Sequence[str], payment_signature: Sequence[str], catalogue: Catalogue
) -> Presented | None:
    """The payment that a request presents, or None when it has neither header.

    Each argument holds all values of that header, in order. Both protocol versions are read from either header.
    Raises `MalformedPaymentError` for a header that is there twice or merged, both headers with different payments,
    an unknown version, duplicate JSON keys, and whatever is not a payment in base64 JSON.
    """
    old = _read_one(X_PAYMENT, x_payment, catalogue)
    new = _read_one(PAYMENT_SIGNATURE, payment_signature, catalogue)
    if old is None or new is None:
        return new or old
    if not _is_same(old, new):
        raise MalformedPaymentError(f"{X_PAYMENT} and {PAYMENT_SIGNATURE} carry different payments: send one")
    return new if new.version >= old.version else old


def _read_one(name: str, values: Sequence[str], catalogue: Catalogue) -> Presented | None:
    if not values:
        return None
    if len(values) > 1 or "," in values[0]:  # a comma is how proxies merge repeated headers; base64 has none
        raise MalformedPaymentError(f"{name} was sent more than once: send one payment")
    raw = _decode_base64(values[0])
    _refuse_duplicate_keys(raw)
    return _presented(_decode_json(raw, _Wire), catalogue)


def _presented(wire: _Wire, catalogue: Catalogue) -> Presented:
    if wire.x402_version == 2:
        if wire.accepted is None:
            raise MalformedPaymentError("a v2 payment payload needs `accepted`")
        scheme, network, accepted = wire.accepted.scheme, wire.accepted.network, wire.accepted
    elif wire.x402_version == 1:
        if wire.scheme is None or wire.network is None:
            raise MalformedPaymentError("a v1 payment payload needs `scheme` and `network`")
        if wire.payload.is_permit2:
            raise MalformedPaymentError("x402 v1 has no Permit2: pay by v2")
        scheme, network, accepted = wire.scheme, wire.network, None
    else:
        raise MalformedPaymentError("unknown x402Version: 1 and 2 are understood")
    permit = read_token_permit(wire.extensions) if wire.payload.is_permit2 else None
    return Presented(wire.x402_version, scheme, caip2_of(network, catalogue), accepted, wire.payload, permit)


def _is_same(old: Presented, new: Presented) -> bool:
    """Whether two headers carry one payment, be it in the forms of both versions."""
    if old.version == new.version:
        return old == new
    return (old.scheme, old.network, old.payload) == (new.scheme, new.network, new.payload)


def _decode_base64(text: str) -> bytes:
    if len(text) > MAX_HEADER_BYTES:
        raise MalformedPaymentError(f"the payment header is longer than {MAX_HEADER_BYTES} bytes")
    digits = text.rstrip("=")
    padding = -len(digits) % 4
    if len(text) - len(digits) not in (0, padding):
        raise MalformedPaymentError("the payment header is not base64: wrong padding")
    if "-" in digits or "_" in digits:
        digits = digits.translate(_URL_TO_STANDARD)
    try:
        return binascii.a2b_base64(digits + "=" * padding, strict_mode=True)
    except ValueError:  # also what is not ASCII
        raise MalformedPaymentError("the payment header is not base64") from None


def _decode_json(raw: bytes, type: type[T]) -> T:
    try:
        return msgspec.json.decode(raw, type=type)
    except msgspec.ValidationError as error:  # names the field and the expected type, not the value
        raise MalformedPaymentError(f"the payment header's JSON is not what x402 says: {error}") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise MalformedPaymentError("the payment header is not base64 of JSON") from None


def _refuse_duplicate_keys(raw: bytes) -> None:
    """Two readers may take different ones of two equal keys. JSON that equals its own re-encoding has none: that is
    quick to see, and true of what clients send. Blanks, escapes and the like go through the slow reader, which sees
    every pair as it stands after unescaping.
    """
    try:
        if msgspec.json.encode(msgspec.json.decode(raw)) == raw:
            return
        json.loads(raw.decode(), object_pairs_hook=_refuse_repeats)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise MalformedPaymentError("the payment header is not base64 of JSON") from None


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> None:
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise MalformedPaymentError("the header's JSON has a key twice in one object")
