"""The extension `eip2612GasSponsoring`: a payer who has no gas lets Permit2 move a token by a signature.

A seller declares it in its challenge where its facilitator supports it. A buyer adds, to `extensions` of the payload,
an EIP-2612 permit of exactly the amount for Permit2; the facilitator hands it in with the payment. Clients that sign
none repeat the seller's declaration as it is. Source: x402 extension `eip2612GasSponsoring`, EIP-2612.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from obol.core.money import parse_atomic
from obol.core.networks import Asset, canonical_address
from obol.x402.authorization import Authorization
from obol.x402.checks import SETTLE_MARGIN_S
from obol.x402.eip712 import address_word, checksum_address, domain_separator, keccak, recover
from obol.x402.facilitator import Refused
from obol.x402.permit2 import PERMIT2_ADDRESS
from obol.x402.reasons import Reason
from obol.x402.signer import Signer

GAS_SPONSORING = "eip2612GasSponsoring"
"""Its key in `extensions`, and its name in a facilitator's `/supported`."""
_VERSION = "1"
_DESCRIPTION = "The facilitator accepts EIP-2612 gasless Permit to Permit2 canonical contract."
_PERMIT2 = PERMIT2_ADDRESS.lower()
_SIGNATURE_CHARS = 2 + 2 * 65
_PERMIT_TYPE_HASH = keccak(b"Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)")
_PATTERNS = {
    **dict.fromkeys(("from", "asset", "spender"), "^0x[a-fA-F0-9]{40}$"),
    **dict.fromkeys(("amount", "nonce", "deadline"), "^[0-9]+$"),
    "signature": "^0x[a-fA-F0-9]+$",
    "version": r"^[0-9]+(\.[0-9]+)*$",
}


class _Info(msgspec.Struct, frozen=True):
    """A permit on the wire: numbers are decimal strings."""

    from_: str = msgspec.field(name="from")
    asset: str
    spender: str
    amount: str
    nonce: str
    deadline: str
    signature: str
    version: str = _VERSION


class _Extension(msgspec.Struct, frozen=True):
    info: _Info


@dataclass(frozen=True, slots=True)
class TokenPermit:
    """An EIP-2612 permit: `owner` lets `spender` move `value_atomic` of `token`. Addresses in lower case."""

    owner: str
    token: str
    spender: str
    value_atomic: int
    nonce: int
    """The token's own count of the owner's permits."""
    deadline_s: int
    """Unix time, the last second in which it is valid."""
    signature: bytes = field(repr=False, default=b"")
    """65 bytes `r || s || v`, v 27 or 28."""


def declare_gas_sponsoring() -> dict[str, Any]:
    """What a seller adds to `extensions` of a challenge whose asset is moved by Permit2."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {name: {"type": "string", "pattern": pattern} for name, pattern in _PATTERNS.items()},
        "required": list(_PATTERNS),
    }
    return {GAS_SPONSORING: {"info": {"description": _DESCRIPTION, "version": _VERSION}, "schema": schema}}


def read_token_permit(extensions: object) -> TokenPermit | None:
    """The permit in `extensions` of a payload, or None where there is none: also where it is not well formed.

    A repeated declaration has no permit in it, and what else a buyer may have put there is not for us.
    """
    if not isinstance(extensions, Mapping):
        return None
    try:
        info = msgspec.convert(extensions.get(GAS_SPONSORING), _Extension).info
    except msgspec.ValidationError:
        return None
    addresses = [canonical_address(text) for text in (info.from_, info.asset, info.spender)]
    numbers = [parse_atomic(text) for text in (info.amount, info.nonce, info.deadline)]
    signature = _signature(info.signature)
    if None in addresses or None in numbers or signature is None:
        return None
    owner, token, spender = (str(address) for address in addresses)
    value_atomic, nonce, deadline_s = (int(number or 0) for number in numbers)
    return TokenPermit(owner, token, spender, value_atomic, nonce, deadline_s, signature)


def write_token_permit(permit: TokenPermit) -> dict[str, Any]:
    """The inverse of `read_token_permit`: `extensions` of a payload."""
    info = _Info(
        from_=checksum_address(permit.owner),
        asset=checksum_address(permit.token),
        spender=checksum_address(permit.spender),
        amount=str(permit.value_atomic),
        nonce=str(permit.nonce),
        deadline=str(permit.deadline_s),
        signature="0x" + permit.signature.hex(),
    )
    return {GAS_SPONSORING: {"info": msgspec.to_builtins(info)}}


def sign_token_permit(signer: Signer, asset: Asset, authorization: Authorization, *, nonce: int) -> TokenPermit:
    """The permit that goes with a payment by Permit2. `nonce` is what the token's `nonces(payer)` says now."""
    permit = TokenPermit(
        owner=authorization.payer,
        token=asset.address.lower(),
        spender=_PERMIT2,
        value_atomic=authorization.value_atomic,
        nonce=nonce,
        deadline_s=authorization.valid_before_s,
    )
    return replace(permit, signature=signer.sign_digest(token_permit_digest(asset, permit)))


def permit_misfit(permit: TokenPermit, authorization: Authorization, asset: Asset) -> Refused | None:
    """Why a permit does not let Permit2 move exactly what the payment moves, or None. Its deadline is not looked at,
    nor its nonce, which only the token knows."""
    if permit.owner != authorization.payer:
        return Refused(Reason.EIP2612_PAYER_MISMATCH, "the permit is of another owner than the payer")
    if permit.token != asset.address.lower():
        return Refused(Reason.EIP2612_ASSET_MISMATCH, "the permit is for another token")
    if permit.spender != _PERMIT2:
        return Refused(Reason.EIP2612_SPENDER, "the permit's spender is not Permit2")
    if permit.value_atomic != authorization.value_atomic:
        return Refused(Reason.EIP2612_AMOUNT_MISMATCH, "the permit is not for exactly the amount")
    if recover(token_permit_digest(asset, permit), permit.signature) != permit.owner:
        return Refused(Reason.EIP2612_SIGNATURE, "the permit is not signed by the payer")
    return None


def permit_expired(permit: TokenPermit, now_s: float) -> Refused | None:
    """Why a permit is too old to be handed in, or None. `now_s` in Unix seconds."""
    if permit.deadline_s >= now_s + SETTLE_MARGIN_S:
        return None
    return Refused(Reason.EIP2612_EXPIRED, "the permit has expired or is about to")


def token_permit_digest(asset: Asset, permit: TokenPermit) -> bytes:
    """The 32 bytes that the owner signs, in the token's own domain."""
    struct = b"".join(
        (
            _PERMIT_TYPE_HASH,
            address_word(permit.owner),
            address_word(permit.spender),
            permit.value_atomic.to_bytes(32, "big"),
            permit.nonce.to_bytes(32, "big"),
            permit.deadline_s.to_bytes(32, "big"),
        )
    )
    domain = domain_separator(asset.eip712_name, asset.eip712_version, asset.network.chain_id, asset.address)
    return keccak(b"\x19\x01" + domain + keccak(struct))


def _signature(text: str) -> bytes | None:
    """65 bytes with v 27 or 28: tokens take r, s and v apart, and revert on 0 and 1."""
    if len(text) != _SIGNATURE_CHARS or not text.startswith("0x"):
        return None
    try:
        signature = bytes.fromhex(text[2:])
    except ValueError:
        return None
    if len(signature) != 65 or signature[64] not in (0, 1, 27, 28):
        return None
    return signature if signature[64] >= 27 else signature[:64] + bytes((signature[64] + 27,))
