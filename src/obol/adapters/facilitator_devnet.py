"""A facilitator in this process, on the devnet: what `obol facilitator run --devnet` serves and the gateway embeds.

The checks, their order (cheap first) and their reasons are those of the official facilitator for exact EVM; on the
signature, the authorization's state and the balance the chain has the word. Source: x402 `exact` scheme on EVM.
"""

from dataclasses import dataclass

from obol.adapters.chain_devnet import DevnetChain
from obol.core.money import parse_atomic
from obol.core.networks import Asset, canonical_address
from obol.errors import FacilitatorUnavailableError, LedgerUnavailableError, MalformedPaymentError
from obol.x402.authorization import Authorization, parse_authorization, parse_signature
from obol.x402.exact import SCHEME, SETTLE_MARGIN_S
from obol.x402.facilitator import Refused, Settlement, SettleOutcome, VerifyOutcome
from obol.x402.models import PaymentPayload, PaymentRequirements, SupportedKind, SupportedResponse
from obol.x402.reasons import Reason


@dataclass(frozen=True, slots=True)
class _Order:
    """A payment that fits its requirements: what to ask the chain for."""

    authorization: Authorization
    signature: bytes
    asset: Asset


class DevnetFacilitator:
    """Implements `x402.facilitator.Facilitator`; takes over `chain`, which its `close` closes."""

    def __init__(self, chain: DevnetChain) -> None:
        self.chain = chain

    async def verify(self, payload: PaymentPayload, requirements: PaymentRequirements) -> VerifyOutcome:
        """See the port. The window must be open for `SETTLE_MARGIN_S` more, so that settling can follow."""
        order = self._read(payload, requirements)
        if isinstance(order, Refused):
            return order
        if order.authorization.valid_before_s < self.chain.now_s() + SETTLE_MARGIN_S:
            return Refused(Reason.VALID_BEFORE, "the authorization has expired or is about to")
        try:
            return await self.chain.verify(order.authorization, order.signature, order.asset)
        except LedgerUnavailableError as error:
            raise FacilitatorUnavailableError("the devnet cannot be read") from error

    async def settle(self, payload: PaymentPayload, requirements: PaymentRequirements) -> Settlement:
        """See the port. A settlement that was made is found again, however late it is asked for."""
        order = self._read(payload, requirements)
        if isinstance(order, Refused):
            return Settlement(SettleOutcome.FAILED, "", order.reason, order.message)
        try:
            return await self.chain.settle(order.authorization, order.signature, order.asset)
        except LedgerUnavailableError:
            return Settlement(
                SettleOutcome.UNKNOWN, "", Reason.UNEXPECTED_SETTLE_ERROR, "the devnet cannot be written: ask again"
            )

    async def supported(self) -> SupportedResponse:
        """Both protocol versions of `exact` on every network of the chain."""
        kinds = [
            SupportedKind(version, SCHEME, name)
            for network in self.chain.networks
            for version, name in ((2, network.caip2), (1, network.name))
        ]
        return SupportedResponse(kinds)

    async def close(self) -> None:
        """See the port."""
        await self.chain.close()

    def _read(self, payload: PaymentPayload, requirements: PaymentRequirements) -> _Order | Refused:
        """What is asked of the chain, once payment and requirements fit each other and the devnet."""
        asset = self._asset(payload, requirements)
        if isinstance(asset, Refused):
            return asset
        try:
            authorization, signature = parse_authorization(payload.payload), parse_signature(payload.payload)
        except MalformedPaymentError as error:
            return Refused(Reason.INVALID_PAYLOAD, str(error))
        if authorization.to != canonical_address(requirements.pay_to):
            return Refused(Reason.RECIPIENT_MISMATCH, "authorized for another recipient")
        if authorization.value_atomic != parse_atomic(requirements.amount):
            return Refused(Reason.VALUE_MISMATCH, "authorized is not exactly the amount")
        return _Order(authorization, signature, asset)

    def _asset(self, payload: PaymentPayload, requirements: PaymentRequirements) -> Asset | Refused:
        """The token to be moved, named the same by requirements, payload and chain."""
        if not payload.accepted.scheme == requirements.scheme == SCHEME:
            return Refused(Reason.UNSUPPORTED_SCHEME, f"only {SCHEME} is supported")
        if payload.accepted.network != requirements.network:
            return Refused(Reason.NETWORK_MISMATCH, "accepted for another network")
        if requirements.network not in {network.caip2 for network in self.chain.networks}:
            return Refused(Reason.INVALID_NETWORK, "this devnet does not have that network")
        asset = self.chain.asset(requirements.network, requirements.asset)
        if asset is None:
            return Refused(Reason.ASSET_NOT_SUPPORTED, "this devnet does not have that token")
        return _domain_flaw(requirements, asset) or asset


def _domain_flaw(requirements: PaymentRequirements, asset: Asset) -> Refused | None:
    """Requirements name the token's EIP-712 domain; a wrong name is the most common fault of a seller."""
    extra = requirements.extra or {}
    if "name" not in extra or "version" not in extra:
        return Refused(Reason.MISSING_EIP712_DOMAIN, "extra.name and extra.version are needed")
    if extra["name"] != asset.eip712_name:
        return Refused(Reason.TOKEN_NAME_MISMATCH, f"the token's EIP-712 name is {asset.eip712_name!r}")
    if extra["version"] != asset.eip712_version:
        return Refused(Reason.TOKEN_VERSION_MISMATCH, f"the token's EIP-712 version is {asset.eip712_version!r}")
    return None
