"""Transfer: one movement of a token to a seller, as a chain's logs tell it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Transfer:
    """Addresses and hashes in lower case. `transaction` and `log_index` together name it."""

    transaction: str
    log_index: int
    """In its block."""
    block: int
    """0 where there are none: on the devnet."""
    payer: str
    pay_to: str
    amount_atomic: int
    nonce: str | None = None
    """Of the payer's EIP-3009 authorization that made it; "" where none did, None where that is not known."""
    time_s: float | None = None
    """Of its block, in Unix seconds, where it was asked for."""
