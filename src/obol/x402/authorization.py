"""The EIP-3009 authorization with typed values, and the strict reading of one from its wire form.

Strict, because the same authorization must have one form here: numbers are canonical decimal strings, the nonce is
`0x` + 64 hex digits. What is tolerated is letter case in hex, which changes nothing that is signed.
"""

from dataclasses import dataclass

from obol.core.money import parse_atomic
from obol.core.networks import canonical_address
from obol.errors import MalformedPaymentError
from obol.x402.models import ExactPayload

MAX_SIGNATURE_CHARS = 8 * 1024
_NONCE_BYTES = 32


@dataclass(frozen=True, slots=True)
class Authorization:
    """`TransferWithAuthorization`: addresses and nonce in lower-case hex with `0x`, times in Unix seconds."""

    payer: str
    to: str
    value_atomic: int
    valid_after_s: int
    valid_before_s: int
    nonce: str


def parse_authorization(payload: ExactPayload) -> Authorization:
    """The typed authorization of a payload.

    Raises `MalformedPaymentError`, naming the field, for a number that is not a canonical decimal uint256 string, an
    address that is not 20 bytes of hex, or a nonce that is not `0x` + 64 hex digits.
    """
    wire = payload.authorization
    nonce = _hex(wire.nonce)
    if nonce is None or len(nonce) != _NONCE_BYTES:
        raise MalformedPaymentError("authorization.nonce is not 0x and 64 hex digits")
    return Authorization(
        payer=_address(wire.from_, "from"),
        to=_address(wire.to, "to"),
        value_atomic=_uint256(wire.value, "value"),
        valid_after_s=_uint256(wire.valid_after, "validAfter"),
        valid_before_s=_uint256(wire.valid_before, "validBefore"),
        nonce=wire.nonce.lower(),
    )


def parse_signature(payload: ExactPayload) -> bytes:
    """The signature's bytes, of any length above 0. Raises `MalformedPaymentError` if it is not `0x` + hex, ≤ 8 KiB."""
    signature = _hex(payload.signature) if len(payload.signature) <= MAX_SIGNATURE_CHARS else None
    if not signature:
        raise MalformedPaymentError(f"signature is not 0x and hex digits, at most {MAX_SIGNATURE_CHARS} characters")
    return signature


def _hex(text: str) -> bytes | None:
    """The bytes of `0x` and hex digits. `fromhex` skips blanks: then the lengths differ."""
    try:
        value = bytes.fromhex(text[2:])
    except ValueError:
        return None
    return value if text.startswith("0x") and len(text) == 2 + 2 * len(value) else None


def _address(text: str, name: str) -> str:
    address = canonical_address(text)
    if address is None:
        raise MalformedPaymentError(f"authorization.{name} is not an address: 0x and 40 hex digits")
    return address


def _uint256(text: str, name: str) -> int:
    value = parse_atomic(text)
    if value is None:
        raise MalformedPaymentError(f"authorization.{name} is not a canonical decimal uint256 string")
    return value
