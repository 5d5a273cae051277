"""Sale and Receipt: the seller's durable record of one payment, and what the buyer may see of it."""

from dataclasses import dataclass, field
from enum import StrEnum

from obol.core.payment import PAID, State
from obol.core.usage import UNKNOWN_USAGE, Usage


class Delivery(StrEnum):
    """How far the answer got to the buyer."""

    NONE = "none"
    STARTED = "started"
    COMPLETE = "complete"
    ABANDONED_BY_BUYER = "abandoned_by_buyer"
    BROKEN_BY_UPSTREAM = "broken_by_upstream"


@dataclass(frozen=True, slots=True)
class ClaimKey:
    """What makes an authorization one: no two sales share it. All lower case; independent of bytes, header or offer."""

    network: str
    """CAIP-2."""
    asset: str
    payer: str
    nonce: str
    """0x + 64 hex digits."""


@dataclass(frozen=True, slots=True)
class NewSale:
    """What a claim records before the upstream is contacted; enough to settle after a crash."""

    id: str
    key: ClaimKey
    offer: str
    pay_to: str
    authorized_atomic: int
    valid_before_s: int
    api: str
    model: str
    payload: bytes = field(repr=False)
    """The decoded payment payload as v2 JSON: what `settle` is asked with. Secret: never shown or logged."""
    requirements: bytes
    """Our own requirements as v2 JSON, as they stood when the payment was matched."""
    created_s: float


@dataclass(frozen=True, slots=True)
class Sale(NewSale):
    """One row of the ledger: what was claimed, and what became of it. `transaction` "" until one is known."""

    state: State
    delivery: Delivery = Delivery.NONE
    settled_atomic: int | None = None
    """None while it is not known."""
    transaction: str = ""
    reason: str = ""
    usage: Usage = UNKNOWN_USAGE
    updated_s: float = 0.0
    attempt: str = ""
    """Id of the `NewSale` that holds the sale: the sale's own, or that of the presentation that redeems it."""
    log_index: int | None = None
    """Of the transfer's log in its block; None while it is not known. Payments can share a transaction."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """The public part of a sale."""

    id: str
    offer: str
    model: str
    payer: str
    pay_to: str
    network: str
    asset: str
    authorized_atomic: int
    settled_atomic: int | None
    """None while it is not known."""
    state: State
    delivery: Delivery
    transaction: str
    reason: str
    usage: Usage
    created_s: float
    updated_s: float
    log_index: int | None = None
    """Of the transfer's log in its block, where it is known."""

    @property
    def is_paid(self) -> bool:
        """True when money is known to have moved."""
        return self.state in PAID


def receipt_of(sale: Sale) -> Receipt:
    """What a buyer may see of a sale: everything but the signed payload."""
    return Receipt(
        id=sale.id,
        offer=sale.offer,
        model=sale.model,
        payer=sale.key.payer,
        pay_to=sale.pay_to,
        network=sale.key.network,
        asset=sale.key.asset,
        authorized_atomic=sale.authorized_atomic,
        settled_atomic=sale.settled_atomic,
        state=sale.state,
        delivery=sale.delivery,
        transaction=sale.transaction,
        reason=sale.reason,
        usage=sale.usage,
        created_s=sale.created_s,
        updated_s=sale.updated_s,
        log_index=sale.log_index,
    )
