"""Payment: what a buyer may know of one payment that left this process."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from obol.core.money import format_amount
from obol.core.networks import Asset

EXPIRY_MARGIN_S = 60
"""How long after `validBefore` by our clock a settlement is still thought possible: clocks differ."""


class PaymentStatus(StrEnum):
    """What is known of the money. Unknown is not unpaid."""

    SENT = "sent"
    """Presented; no answer yet."""
    PAID = "paid"
    """The seller says that it is paid, or settles it later: the receipt has the transaction."""
    UNPAID = "unpaid"
    """The seller answered without taking it. It could still be settled until `valid_before_s`."""
    UNKNOWN = "unknown"
    """The answer was lost, or does not say. The amount counts as gone until it is known."""


@dataclass(frozen=True, slots=True)
class Payment:
    """One payment, as last known. Times in Unix seconds; `transaction` and `receipt_url` are "" where there is none."""

    id: int
    url: str
    amount_atomic: int
    asset: Asset
    pay_to: str
    valid_before_s: int
    status: PaymentStatus
    transaction: str = ""
    receipt_url: str = ""
    reason: str = ""
    """The seller's code, or ours, where the status is not `paid`."""
    permit_nonce: int | None = None
    """The token's nonce of the permit that goes with it; None where it needs none."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The signed payload as the header that carried it: money until it is settled or expires. Sending exactly this
    again with the same request is safe after a lost answer: it pays once."""

    @property
    def amount(self) -> str:
        """The amount as a decimal string of the asset."""
        return format_amount(self.amount_atomic, self.asset.decimals)

    @property
    def network(self) -> str:
        """The network's name."""
        return self.asset.network.name
