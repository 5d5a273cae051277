"""What the answers of a sale say of its payment, in headers; the final receipt is at the address they name."""

import msgspec

from obol.core.networks import Catalogue
from obol.core.payment import State
from obol.core.sale import Sale
from obol.gateway.call import Call
from obol.x402.eip712 import checksum_address
from obol.x402.facilitator import Settlement, SettleOutcome
from obol.x402.headers import PAYMENT_RESPONSE, X_PAYMENT_RESPONSE
from obol.x402.models import SettleResponse
from obol.x402.receipts import settle_header

RECEIPT = "X-Obol-Receipt"
SETTLEMENT = "X-Obol-Settlement"
PENDING_REASON = "settlement_pending"
"""The x402 SDKs' `errorReason` for a settlement whose end is not known: never a reason to pay again."""

Headers = dict[str, str]


class ReceiptHeaders:
    """The receipt headers of one sale to one buyer's call."""

    def __init__(self, call: Call, sale: Sale, catalogue: Catalogue) -> None:
        self._address = {RECEIPT: call.receipt_path(sale.id)}
        self._sale = sale
        self._catalogue = catalogue

    def address(self) -> Headers:
        """Only where the receipt is."""
        return dict(self._address)

    def under_way(self) -> Headers:
        """The answer is handed over while its settlement is asked for: `success`, and no transaction yet."""
        return self._build(True, "", None, SettleOutcome.PENDING.value)

    def settled(self, transaction: str) -> Headers:
        """Money moved."""
        return self._build(True, transaction, None, SettleOutcome.SETTLED.value)

    def owed(self, transaction: str) -> Headers:
        """Money moved, and this answer is not what it bought: present the same payment again."""
        return self._build(True, transaction, None, State.OWED.value)

    def refused(self, settlement: Settlement) -> Headers:
        """A settlement that was refused, or (PENDING, UNKNOWN) that nobody knows the end of."""
        if settlement.outcome is SettleOutcome.FAILED:
            reason = settlement.reason or "settlement_failed"
        else:
            reason = PENDING_REASON
        return self._build(False, settlement.transaction, reason, settlement.outcome.value)

    def unused(self, reason: str) -> Headers:
        """The answer costs nothing: no money moves for it, and the payment may be presented again."""
        return self._build(False, "", reason, State.RELEASED.value)

    def waived(self) -> Headers:
        """Verify-only: handed over, and never settled. Not `success`: no money will move."""
        return self._build(False, "", "verify_only", "verify-only")

    def used(self) -> Headers:
        """The payment was used before: what came of it then."""
        if self._sale.state is State.SETTLED:
            return self.settled(self._sale.transaction)
        if self._sale.state is State.SETTLE_FAILED:
            return self.refused(Settlement(SettleOutcome.FAILED, reason=self._sale.reason))
        return {**self._address, SETTLEMENT: self._sale.state.value}

    def _build(self, success: bool, transaction: str, reason: str | None, settlement: str) -> Headers:
        """v2 clients read `PAYMENT-RESPONSE`, v1 clients `X-PAYMENT-RESPONSE` with the network's legacy name."""
        caip2 = self._sale.key.network
        network = self._catalogue.find_network(caip2)
        payer = checksum_address(self._sale.key.payer)
        v2 = SettleResponse(success, transaction, caip2, payer=payer, error_reason=reason)
        v1 = msgspec.structs.replace(v2, network=network.name if network else caip2)
        return {
            **self._address,
            PAYMENT_RESPONSE: settle_header(v2),
            X_PAYMENT_RESPONSE: settle_header(v1),
            SETTLEMENT: settlement,
            "Cache-Control": "private, no-store",
        }
