"""Transfer: one movement of a token to a seller, as a chain's logs tell it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Transfer:
    """Addresses and hashes in lower case. `transaction` and `log_index` together name it."""

    transaction: str
    log_index: int
    """In its block."""
    block: int
    payer: str
    pay_to: str
    amount_atomic: int
