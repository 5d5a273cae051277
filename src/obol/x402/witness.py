"""The witness port: what a chain itself says became of a payment, whoever claims to have settled it.

Nothing here says "not used" of what was: a node that shows a use and not by what it was gives `Used`, never less.
"""

from dataclasses import dataclass, field
from typing import Protocol

from obol.x402.facilitator import Refused
from obol.x402.models import PaymentPayload, PaymentRequirements

CANCELLED = "authorization_cancelled"
USED_ELSEWHERE = "authorization_used_elsewhere"
EXPIRED = "authorization_expired"
USED_BEFORE = "authorization_used_before"
"""It moved to the seller, and before it was presented here: it has paid for something else."""
JUST_S = 15
"""What moved no longer than this before it was presented may have been sent by whoever saw it on its way here."""


@dataclass(frozen=True, slots=True)
class Moved:
    """This payment moved exactly its amount to the seller. By whom it was sent does not matter."""

    transaction: str
    """0x + 64 lower-case hex digits."""
    log_index: int
    """Of the token's Transfer log in its block: several payments can share a transaction."""
    age_s: int = field(default=0, compare=False)
    """How long it has been seen, by the chain's own clock; 0 in the newest block that counts."""


@dataclass(frozen=True, slots=True)
class NeverMoves:
    """It moved nothing to the seller, and never will. `reason` is one of this module's codes."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unconfirmed:
    """Its authorization was used or cancelled, in a block that is not deep enough to stay."""


@dataclass(frozen=True, slots=True)
class Used:
    """Its authorization is used, and the chain does not show by what: it may have moved to the seller."""

    why: str = field(default="", compare=False)
    """What is not shown, for logs."""


@dataclass(frozen=True, slots=True)
class StillOpen:
    """Its authorization is not used: it may still be settled."""


Fate = Moved | NeverMoves | Unconfirmed | Used | StillOpen


@dataclass(frozen=True, slots=True)
class PaidAlready(Refused):
    """A facilitator does not take the payment, and the chain shows why not: it has moved to the seller already.

    Whoever presents it may have read it from the chain: it is good only with the payer's own signature.
    """


class Witness(Protocol):
    """Only what is as many blocks deep as the witness was told to wait for counts as seen."""

    async def fate(self, payload: PaymentPayload, requirements: PaymentRequirements) -> Fate:
        """What became of a payment; `requirements` are our own. Raises `ChainUnavailableError` for "not known"."""
        ...

    async def is_just_used(self, payload: PaymentPayload, requirements: PaymentRequirements) -> bool:
        """Whether its authorization was used or cancelled a moment ago, and not long before: three questions at most.

        Raises `ChainUnavailableError`.
        """
        ...

    async def close(self) -> None:
        """Let go of connections. Idempotent."""
        ...
