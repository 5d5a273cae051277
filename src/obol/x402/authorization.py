"""The authorization with typed values, of EIP-3009 or of Permit2, and the strict reading of one from its wire form.

Strict, because the same authorization must have one form here: numbers are canonical decimal strings, an EIP-3009 nonce
is `0x` + 64 hex digits. What is tolerated is letter case in hex, which changes nothing that is signed.
"""

from dataclasses import dataclass

from msgspec import UNSET

from obol.core.money import parse_atomic
from obol.core.networks import TransferMethod, canonical_address
from obol.errors import MalformedPaymentError
from obol.x402.models import ExactAuthorization, ExactPayload, ExactPermit2Authorization

MAX_SIGNATURE_CHARS = 8 * 1024
_NONCE_BYTES = 32
_EIP3009_FIELD = "authorization"
_PERMIT2_FIELD = "permit2Authorization"


@dataclass(frozen=True, slots=True)
class Permit:
    """What a Permit2 authorization names and an EIP-3009 one does not: there, the signing domain is the token's.

    Addresses in lower case.
    """

    token: str
    spender: str
    """Who may have it moved: for x402, only the exact proxy."""


@dataclass(frozen=True, slots=True)
class Authorization:
    """What a payer signs, by either method: addresses and nonce in lower-case hex with `0x`, times in Unix seconds."""

    payer: str
    to: str
    value_atomic: int
    valid_after_s: int
    valid_before_s: int
    """EIP-3009: the first second in which it is no longer valid; Permit2's `deadline`: the last in which it is."""
    nonce: str
    """0x + 64 hex digits, also of Permit2's uint256. An EIP-3009 nonce is used up per token, one of Permit2 for all."""
    permit: Permit | None = None
    """None: EIP-3009."""

    @property
    def method(self) -> TransferMethod:
        """How it is moved."""
        return TransferMethod.EIP3009 if self.permit is None else TransferMethod.PERMIT2


def parse_authorization(payload: ExactPayload) -> Authorization:
    """The typed authorization of a payload.

    Raises `MalformedPaymentError`, naming the field, for a number that is not a canonical decimal uint256 string, an
    address that is not 20 bytes of hex, or an EIP-3009 nonce that is not `0x` + 64 hex digits.
    """
    if payload.permit2_authorization is not UNSET:
        return _parse_permit2(payload.permit2_authorization)
    if payload.authorization is not UNSET:
        return _parse_eip3009(payload.authorization)
    raise MalformedPaymentError(f"exactly one of {_EIP3009_FIELD} and {_PERMIT2_FIELD} must be there")


def parse_signature(payload: ExactPayload) -> bytes:
    """The signature's bytes, of any length above 0. Raises `MalformedPaymentError` if it is not `0x` + hex, ≤ 8 KiB."""
    signature = _hex(payload.signature) if len(payload.signature) <= MAX_SIGNATURE_CHARS else None
    if not signature:
        raise MalformedPaymentError(f"signature is not 0x and hex digits, at most {MAX_SIGNATURE_CHARS} characters")
    return signature


def nonce_of(number: int) -> str:
    """A Permit2 nonce as everything here writes nonces: 0x + 64 hex digits."""
    return f"0x{number:064x}"


def _parse_eip3009(wire: ExactAuthorization) -> Authorization:
    nonce = _hex(wire.nonce)
    if nonce is None or len(nonce) != _NONCE_BYTES:
        raise MalformedPaymentError(f"{_EIP3009_FIELD}.nonce is not 0x and 64 hex digits")
    return Authorization(
        payer=_address(wire.from_, f"{_EIP3009_FIELD}.from"),
        to=_address(wire.to, f"{_EIP3009_FIELD}.to"),
        value_atomic=_uint256(wire.value, f"{_EIP3009_FIELD}.value"),
        valid_after_s=_uint256(wire.valid_after, f"{_EIP3009_FIELD}.validAfter"),
        valid_before_s=_uint256(wire.valid_before, f"{_EIP3009_FIELD}.validBefore"),
        nonce=wire.nonce.lower(),
    )


def _parse_permit2(wire: ExactPermit2Authorization) -> Authorization:
    return Authorization(
        payer=_address(wire.from_, f"{_PERMIT2_FIELD}.from"),
        to=_address(wire.witness.to, f"{_PERMIT2_FIELD}.witness.to"),
        value_atomic=_uint256(wire.permitted.amount, f"{_PERMIT2_FIELD}.permitted.amount"),
        valid_after_s=_uint256(wire.witness.valid_after, f"{_PERMIT2_FIELD}.witness.validAfter"),
        valid_before_s=_uint256(wire.deadline, f"{_PERMIT2_FIELD}.deadline"),
        nonce=nonce_of(_uint256(wire.nonce, f"{_PERMIT2_FIELD}.nonce")),
        permit=Permit(
            token=_address(wire.permitted.token, f"{_PERMIT2_FIELD}.permitted.token"),
            spender=_address(wire.spender, f"{_PERMIT2_FIELD}.spender"),
        ),
    )


def _hex(text: str) -> bytes | None:
    """The bytes of `0x` and hex digits. `fromhex` skips blanks: then the lengths differ."""
    try:
        value = bytes.fromhex(text[2:])
    except ValueError:
        return None
    return value if text.startswith("0x") and len(text) == 2 + 2 * len(value) else None


def _address(text: str, place: str) -> str:
    address = canonical_address(text)
    if address is None:
        raise MalformedPaymentError(f"{place} is not an address: 0x and 40 hex digits")
    return address


def _uint256(text: str, place: str) -> int:
    value = parse_atomic(text)
    if value is None:
        raise MalformedPaymentError(f"{place} is not a canonical decimal uint256 string")
    return value
