"""The witness port: what a chain itself says became of a payment, whoever claims to have settled it."""

from dataclasses import dataclass
from typing import Protocol

from obol.x402.models import PaymentPayload, PaymentRequirements

CANCELLED = "authorization_cancelled"
USED_ELSEWHERE = "authorization_used_elsewhere"
EXPIRED = "authorization_expired"


@dataclass(frozen=True, slots=True)
class Moved:
    """This payment moved exactly its amount to the seller. By whom it was sent does not matter."""

    transaction: str
    """0x + 64 lower-case hex digits."""
    log_index: int
    """Of the token's Transfer log in its block: several payments can share a transaction."""


@dataclass(frozen=True, slots=True)
class NeverMoves:
    """It moved nothing to the seller, and never will. `reason` is one of this module's codes."""

    reason: str


@dataclass(frozen=True, slots=True)
class StillOpen:
    """Neither is final yet: it may still be settled."""


Fate = Moved | NeverMoves | StillOpen


class Witness(Protocol):
    """Only what is as many blocks deep as the witness was told to wait for counts as seen."""

    async def fate(self, payload: PaymentPayload, requirements: PaymentRequirements) -> Fate:
        """What became of a payment; `requirements` are our own. Raises `ChainUnavailableError` for "not known"."""
        ...

    async def close(self) -> None:
        """Let go of connections. Idempotent."""
        ...
