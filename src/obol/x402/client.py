"""The buyer's side: reading a seller's challenge and receipt, choosing what to pay, signing it. Pure: no I/O, no clock.

A buyer signs only for assets it knows, with the EIP-712 domain it knows: a seller who could choose the domain could get
a signature for another token than the one in the quote.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET

from obol.core.money import format_amount, parse_amount, parse_atomic
from obol.core.networks import Asset, Catalogue, TransferMethod, canonical_address
from obol.errors import BudgetExceededError, MalformedPaymentError, PeerProtocolError, UnpayableError
from obol.x402.authorization import Authorization, Permit, parse_authorization
from obol.x402.eip712 import authorization_digest, signing_domain
from obol.x402.exact import SCHEME
from obol.x402.gas_sponsoring import GAS_SPONSORING, sign_token_permit, write_token_permit
from obol.x402.headers import (
    PAYMENT_REQUIRED,
    PAYMENT_RESPONSE,
    PAYMENT_SIGNATURE,
    X_PAYMENT,
    X_PAYMENT_RESPONSE,
    decode_header,
    encode_header,
)
from obol.x402.models import (
    PaymentPayload,
    PaymentRequired,
    PaymentRequirements,
    ResourceInfo,
    SettleResponse,
)
from obol.x402.permit2 import EXACT_PROXY
from obol.x402.signer import Signer
from obol.x402.v1 import V1Requirements, requirements_from_v1, v1_payload
from obol.x402.wire_form import wire_form

MAX_VALIDITY_S = 24 * 3600
"""The longest that we make an authorization valid, whatever `maxTimeoutSeconds` asks."""
V1_SKEW_S = 600
"""How far v1 dates `validAfter` back: sellers' clocks differ, and v1 facilitators compare strictly."""
NONCE_BYTES = 32

_PAYMENT_REQUIRED_STATUS = 402
_FLOWS = (None, "authorization", "upfront")
_SHOWN_CHARS = 80

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class BuyerPolicy:
    """What a buyer is ready to pay. None is no limit."""

    max_price: str | None = None
    """Decimal string in whole units of the asset, such as "0.01"; meant for assets of one currency."""
    networks: frozenset[str] | None = None
    """CAIP-2 ids."""
    assets: frozenset[str] | None = None
    """Symbols, as the catalogue writes them."""


ANYTHING = BuyerPolicy()


class _Challenge(msgspec.Struct, rename="camel"):
    """Either version's challenge, as leniently as it can be read: one strange entry does not spoil the others."""

    x402_version: int = msgspec.field(name="x402Version")
    accepts: list[Any]
    resource: Any = None
    error: Any = None
    extensions: Any = None


def read_challenge(status: int, headers: Mapping[str, str], body: bytes) -> PaymentRequired:
    """The challenge of a 402 of any seller: `PAYMENT-REQUIRED` first, then a v1 or v2 JSON body.

    Header names in any letter case. `x402_version` of the result is the version to answer in. Requirements of v1 are in
    v2 form, their network by the name the seller gave it; entries that cannot be read are left out.
    Raises `PeerProtocolError` when there is no challenge.
    """
    if status != _PAYMENT_REQUIRED_STATUS:
        raise PeerProtocolError(f"a challenge comes with status 402, this is {status}")
    header = _find(headers, PAYMENT_REQUIRED)
    try:
        wire = decode_header(header, _Challenge) if header else msgspec.json.decode(body, type=_Challenge)
    except (MalformedPaymentError, msgspec.MsgspecError, ValueError, RecursionError):
        where = PAYMENT_REQUIRED if header else "body"
        raise PeerProtocolError(f"the seller answered 402 without an x402 challenge in its {where}") from None
    if wire.x402_version not in (1, 2):
        raise PeerProtocolError(f"the seller's challenge has x402Version {wire.x402_version}: 1 and 2 are understood")
    entries = [_read_entry(entry, wire.x402_version) for entry in wire.accepts]
    return PaymentRequired(
        resource=_convert(wire.resource, ResourceInfo) or ResourceInfo(url=""),
        accepts=[entry for entry in entries if entry is not None],
        x402_version=wire.x402_version,
        error=wire.error if isinstance(wire.error, str) else "",
        extensions=wire.extensions if isinstance(wire.extensions, dict) else UNSET,
    )


def choose(required: PaymentRequired, catalogue: Catalogue, policy: BuyerPolicy = ANYTHING) -> PaymentRequirements:
    """The first of the seller's requirements that we can sign and that the policy allows, as the seller wrote it.

    Raises `UnpayableError`, saying why for each, when there is none that we can sign; `BudgetExceededError` when those
    that we could sign are above `max_price`; `SettingsError` when `max_price` is not an amount of the asset.
    """
    obstacles: list[str] = []
    too_dear = ""
    for requirements in required.accepts:
        asset = find_asset(requirements, catalogue)
        obstacle = _obstacle(requirements, asset, policy) or _version_obstacle(required.x402_version, asset)
        if obstacle or asset is None:
            obstacles.append(f"{_shown(requirements.network)}: {obstacle}")
            continue
        too_dear = _over_limit(requirements, asset, policy)
        if not too_dear:
            return requirements
    if too_dear:
        raise BudgetExceededError(too_dear)
    raise UnpayableError("; ".join(obstacles) or "the seller's challenge has no requirements that can be read")


def find_asset(requirements: PaymentRequirements, catalogue: Catalogue) -> Asset | None:
    """The known asset that requirements ask for, by contract address, or None."""
    network = catalogue.find_network(requirements.network)
    address = canonical_address(requirements.asset)
    return catalogue.find_asset(network, address) if network and address else None


def sign_exact(
    signer: Signer, requirements: PaymentRequirements, asset: Asset, *, now_s: float, nonce: bytes, version: int = 2
) -> PaymentPayload:
    """A payload that pays `requirements`, as returned by `choose`, of `asset`, as returned by `find_asset`, by the
    asset's transfer method.

    `nonce` is 32 random bytes, never used before; `version` is the challenge's. Valid from the beginning (v1: from 10
    minutes ago) until `maxTimeoutSeconds` from now, at most 24 hours. Raises `ValueError` for what `choose` would not
    return.
    """
    value_atomic, pay_to = parse_atomic(requirements.amount), canonical_address(requirements.pay_to)
    if value_atomic is None or pay_to is None or canonical_address(requirements.asset) != asset.address.lower():
        raise ValueError("these requirements are not payable with this asset")
    if _version_obstacle(version, asset):
        raise ValueError("these requirements are not payable by x402 v1")
    if len(nonce) != NONCE_BYTES:
        raise ValueError(f"a nonce has {NONCE_BYTES} bytes")
    authorization = Authorization(
        payer=signer.address.lower(),
        to=pay_to,
        value_atomic=value_atomic,
        valid_after_s=int(now_s) - V1_SKEW_S if version == 1 else 0,
        valid_before_s=int(now_s) + min(requirements.max_timeout_seconds, MAX_VALIDITY_S),
        nonce="0x" + nonce.hex(),
        permit=_permit(asset),
    )
    signature = signer.sign_digest(authorization_digest(signing_domain(asset), authorization))
    return PaymentPayload(accepted=requirements, payload=wire_form(authorization, signature))


def offers_gas(required: PaymentRequired, asset: Asset) -> bool:
    """Whether the seller hands in a permit with a payment of this asset: see `sponsor_gas`."""
    return asset.transfer_method is TransferMethod.PERMIT2 and _declaration(required) is not None


def sponsor_gas(
    payload: PaymentPayload, required: PaymentRequired, signer: Signer, asset: Asset, *, token_nonce: int
) -> PaymentPayload:
    """The payload, with a permit that lets Permit2 move what it pays, for a payer who has not allowed that on the
    chain.

    `token_nonce` is what the token's `nonces(payer)` says. Raises `UnpayableError` where the seller's challenge does
    not offer to hand it in.
    """
    declared = _declaration(required)
    if not payload.payload.is_permit2 or declared is None:
        raise UnpayableError(f"the seller does not offer {GAS_SPONSORING} for this payment")
    permit = sign_token_permit(signer, asset, parse_authorization(payload.payload), nonce=token_nonce)
    return msgspec.structs.replace(payload, extensions=_overlaid(declared, write_token_permit(permit)))


def _declaration(required: PaymentRequired) -> dict[str, Any] | None:
    """What the seller declares of gas sponsoring, or None."""
    extensions = {} if required.extensions is UNSET else required.extensions
    declared = extensions.get(GAS_SPONSORING)
    return declared if isinstance(declared, dict) else None


def _overlaid(declared: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Ours, and what the seller declared, which it wants repeated as it was; on a conflict the seller's stays."""
    info = declared.get("info")
    merged = ours[GAS_SPONSORING]["info"] | (info if isinstance(info, dict) else {})
    return {GAS_SPONSORING: {**declared, "info": merged}}


def payment_headers(payload: PaymentPayload, version: int) -> dict[str, str]:
    """The header that carries a payload: `PAYMENT-SIGNATURE`, or `X-PAYMENT` when the challenge was v1."""
    if version == 1:
        return {X_PAYMENT: encode_header(v1_payload(payload, payload.accepted.network))}
    fields: dict[str, Any] = msgspec.to_builtins(payload)
    if payload.accepted.extra is None:  # repeated as the seller wrote it: absent, not null
        del fields["accepted"]["extra"]
    return {PAYMENT_SIGNATURE: encode_header(fields)}


def read_receipt(headers: Mapping[str, str]) -> SettleResponse | None:
    """The seller's settlement, of v2 or v1, or None when it sent none. Raises `PeerProtocolError` for nonsense."""
    text = _find(headers, PAYMENT_RESPONSE) or _find(headers, X_PAYMENT_RESPONSE)
    if not text:
        return None
    try:
        return decode_header(text, SettleResponse)
    except MalformedPaymentError as error:
        raise PeerProtocolError(f"the seller's {PAYMENT_RESPONSE} cannot be read: {error}") from None


def _permit(asset: Asset) -> Permit | None:
    """What a payment of this asset names besides amount and recipient."""
    if asset.transfer_method is not TransferMethod.PERMIT2:
        return None
    return Permit(token=asset.address.lower(), spender=EXACT_PROXY)


def _find(headers: Mapping[str, str], name: str) -> str | None:
    wanted = name.lower()
    return next((value for key, value in headers.items() if key.lower() == wanted), None)


def _read_entry(entry: object, version: int) -> PaymentRequirements | None:
    if version == 2:
        return _convert(entry, PaymentRequirements)
    old = _convert(entry, V1Requirements)
    return None if old is None else requirements_from_v1(old, old.network)


def _convert(value: object, type: type[T]) -> T | None:
    try:
        return msgspec.convert(value, type)
    except msgspec.ValidationError:
        return None


def _obstacle(requirements: PaymentRequirements, asset: Asset | None, policy: BuyerPolicy) -> str:
    """Why we cannot or may not sign, or ""."""
    if requirements.scheme != SCHEME:
        return f"scheme {_shown(requirements.scheme)} is not supported"
    if asset is None:
        return f"asset {_shown(requirements.asset)} is not known there"
    if policy.networks is not None and asset.network.caip2 not in policy.networks:
        return "not among the allowed networks"
    if policy.assets is not None and asset.symbol not in policy.assets:
        return f"{asset.symbol} is not among the allowed assets"
    if parse_atomic(requirements.amount) is None or canonical_address(requirements.pay_to) is None:
        return "the amount or the recipient is not written as x402 says"
    if requirements.max_timeout_seconds <= 0:
        return "maxTimeoutSeconds leaves no time to pay"
    return _extra_obstacle(requirements.extra or {}, asset)


def _version_obstacle(version: int, asset: Asset | None) -> str:
    if version == 1 and asset is not None and asset.transfer_method is not TransferMethod.EIP3009:
        return f"{asset.symbol} is moved by {asset.transfer_method}, which x402 v1 does not have"
    return ""


def _extra_obstacle(extra: Mapping[str, Any], asset: Asset) -> str:
    method = extra.get("assetTransferMethod") or TransferMethod.EIP3009.value
    if method != asset.transfer_method:
        return f"{asset.symbol} would be moved by {_shown(method)}: only {asset.transfer_method} can be signed for it"
    if extra.get("paymentFlow") not in _FLOWS:
        return f"payment flow {_shown(extra.get('paymentFlow'))} is not supported"
    ours = (asset.eip712_name, asset.eip712_version)
    theirs = (extra.get("name", ours[0]), extra.get("version", ours[1]))
    if theirs != ours and asset.transfer_method is TransferMethod.EIP3009:  # Permit2 has a domain of its own
        return f"the seller's signing domain of {asset.symbol} is {_shown(theirs)}, ours is {ours!r}"
    return ""


def _over_limit(requirements: PaymentRequirements, asset: Asset, policy: BuyerPolicy) -> str:
    if policy.max_price is None:
        return ""
    amount_atomic = int(requirements.amount)
    if amount_atomic <= parse_amount(policy.max_price, asset.decimals, field="--max-price"):
        return ""
    asked = format_amount(amount_atomic, asset.decimals)
    return f"the seller asks for {asked} {asset.symbol}, the limit per request is {policy.max_price}"


def _shown(value: object) -> str:
    """A seller's value in a message: quoted, so that it cannot pass for our own words, and short."""
    return repr(value)[:_SHOWN_CHARS]
