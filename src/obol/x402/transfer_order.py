"""What a facilitator is asked to move: a payment that fits the requirements it is shown with, and its token.

The checks, their order (cheap first) and their reasons are those of the official facilitator for exact EVM. Signature,
window, balance and the authorization's state are the chain's to judge. Source: x402 `exact` scheme on EVM.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

from obol.core.money import parse_atomic
from obol.core.networks import Asset, TransferMethod, canonical_address
from obol.errors import MalformedPaymentError
from obol.x402.authorization import Authorization, parse_authorization, parse_signature
from obol.x402.checks import misfit
from obol.x402.exact import SCHEME
from obol.x402.facilitator import Refused
from obol.x402.gas_sponsoring import TokenPermit, permit_misfit, read_token_permit
from obol.x402.models import PaymentPayload, PaymentRequirements
from obol.x402.reasons import Reason


@dataclass(frozen=True, slots=True)
class TransferOrder:
    """A payment that fits its requirements: what to ask the chain for, by the asset's transfer method."""

    authorization: Authorization
    signature: bytes = field(repr=False)
    asset: Asset
    token_permit: TokenPermit | None = None
    """Allows Permit2 to move it, where the chain does not yet; its deadline was not looked at."""


def read_order(
    payload: PaymentPayload, requirements: PaymentRequirements, assets: Collection[Asset]
) -> TransferOrder | Refused:
    """The order that a payment is, if it fits; `assets` are those that can be moved."""
    asset = _asset(payload, requirements, assets)
    if isinstance(asset, Refused):
        return asset
    try:
        authorization, signature = parse_authorization(payload.payload), parse_signature(payload.payload)
    except MalformedPaymentError as error:
        return Refused(Reason.INVALID_PAYLOAD, str(error))
    pay_to, amount_atomic = canonical_address(requirements.pay_to) or "", parse_atomic(requirements.amount)
    if amount_atomic == 0:
        return Refused(Reason.INVALID_REQUIREMENTS, "nothing is moved for an amount of 0")
    refused = misfit(authorization, asset, pay_to=pay_to, amount_atomic=amount_atomic)
    if refused is not None:
        return refused
    permit = read_token_permit(payload.extensions) if payload.payload.is_permit2 else None
    if permit is not None:
        refused = permit_misfit(permit, authorization, asset)
    return refused or TransferOrder(authorization, signature, asset, permit)


def _asset(payload: PaymentPayload, requirements: PaymentRequirements, assets: Collection[Asset]) -> Asset | Refused:
    """The token to be moved, named the same by requirements, payload and facilitator."""
    if not payload.accepted.scheme == requirements.scheme == SCHEME:
        return Refused(Reason.UNSUPPORTED_SCHEME, f"only {SCHEME} is supported")
    if payload.accepted.network != requirements.network:
        return Refused(Reason.NETWORK_MISMATCH, "accepted for another network")
    there = [asset for asset in assets if asset.network.caip2 == requirements.network]
    if not there:
        return Refused(Reason.INVALID_NETWORK, "this facilitator does not have that network")
    wanted = canonical_address(requirements.asset)
    asset = next((asset for asset in there if asset.address.lower() == wanted), None)
    if asset is None:
        return Refused(Reason.ASSET_NOT_SUPPORTED, "this facilitator does not have that token")
    return _domain_flaw(requirements, asset) or asset


def _domain_flaw(requirements: PaymentRequirements, asset: Asset) -> Refused | None:
    """Requirements name the token's EIP-712 domain; a wrong name is the most common fault of a seller. Permit2 has a
    domain of its own, and sellers need not name the token's."""
    if asset.transfer_method is TransferMethod.PERMIT2:
        return None
    extra = requirements.extra or {}
    if "name" not in extra or "version" not in extra:
        return Refused(Reason.MISSING_EIP712_DOMAIN, "extra.name and extra.version are needed")
    if extra["name"] != asset.eip712_name:
        return Refused(Reason.TOKEN_NAME_MISMATCH, f"the token's EIP-712 name is {asset.eip712_name!r}")
    if extra["version"] != asset.eip712_version:
        return Refused(Reason.TOKEN_VERSION_MISMATCH, f"the token's EIP-712 version is {asset.eip712_version!r}")
    return None
