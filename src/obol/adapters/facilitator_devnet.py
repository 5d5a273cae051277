"""A facilitator in this process, on the devnet: what `obol facilitator run --devnet` serves and the gateway embeds.

The checks are in the order of the official facilitator, cheap first; on the signature, the state of the authorization
and the balance the chain has the word. Source: x402 `exact` scheme on EVM.
"""

from obol.adapters.chain_devnet import DevnetChain
from obol.errors import FacilitatorUnavailableError, LedgerUnavailableError
from obol.x402.exact import SCHEME, SETTLE_MARGIN_S
from obol.x402.facilitator import Refused, Settlement, SettleOutcome, VerifyOutcome
from obol.x402.models import PaymentPayload, PaymentRequirements, SupportedKind, SupportedResponse
from obol.x402.reasons import Reason
from obol.x402.transfer_order import TransferOrder, read_order


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

    def _read(self, payload: PaymentPayload, requirements: PaymentRequirements) -> TransferOrder | Refused:
        if payload.payload.is_permit2:
            return Refused(Reason.INVALID_PAYLOAD, "permit2 is not supported on the devnet")
        return read_order(payload, requirements, self.chain.assets)

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
