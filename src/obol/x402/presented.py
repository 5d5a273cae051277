"""Presented: what a buyer presented as payment, whichever header and protocol version carried it."""

from dataclasses import dataclass, field

from obol.x402.gas_sponsoring import TokenPermit
from obol.x402.models import ExactPayload, PaymentRequirements


@dataclass(frozen=True, slots=True)
class Presented:
    """A payment as read, nothing checked. The signed part stays out of `repr`: it is money until it is settled."""

    version: int
    """1 or 2."""
    scheme: str
    network: str
    """CAIP-2 where the network is known to us; else as the buyer wrote it (and so equal to none of ours)."""
    accepted: PaymentRequirements | None
    """The requirements that the buyer says it chose; None in v1, which does not say."""
    payload: ExactPayload = field(repr=False)
    token_permit: TokenPermit | None = None
    """What goes with a payment by Permit2 whose payer has not allowed Permit2 on the chain."""
