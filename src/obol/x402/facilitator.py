"""The facilitator port: whoever checks a payment against the chain and moves the money."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from obol.x402.models import PaymentPayload, PaymentRequirements, SupportedResponse


@dataclass(frozen=True, slots=True)
class Accepted:
    """The payment is good now. `payer` in lower case."""

    payer: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The payment is not good. `reason` is the facilitator's own code: opaque, never branched on."""

    reason: str
    message: str = ""


VerifyOutcome = Accepted | Refused


class SettleOutcome(StrEnum):
    """What is known of a settlement after asking."""

    SETTLED = "settled"
    FAILED = "failed"
    """A definite no: money did not move for this authorization, and asking again will not move it."""
    PENDING = "pending"
    """Broadcast, not confirmed: ask again with the same payload."""
    UNKNOWN = "unknown"
    """The answer was lost, late or unintelligible: money may have moved. Ask again with the same payload."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """The answer to `settle`. `transaction` is "" where there is none."""

    outcome: SettleOutcome
    transaction: str = ""
    reason: str = ""
    message: str = ""
    log_index: int | None = None
    """Of the transfer's log in its block, where it is known: payments can share a transaction."""
    is_unsent: bool = False
    """UNKNOWN, and nothing of this ask left us: whatever is unknown was so before."""
    is_proven: bool = False
    """FAILED, and the chain itself says that it never moves: it holds also after an answer that was lost."""
    age_s: int = 0
    """SETTLED, and the chain has shown it for so long: what is older than a sale has paid for something else."""


class Facilitator(Protocol):
    """Asks by our own requirements, never by the buyer's `accepted`."""

    async def verify(self, payload: PaymentPayload, requirements: PaymentRequirements) -> VerifyOutcome:
        """Check signature, nonce, balance and window. Changes nothing; may be repeated.

        Raises `FacilitatorUnavailableError` when nobody answered in time, `PeerProtocolError` for nonsense.
        """
        ...

    async def settle(self, payload: PaymentPayload, requirements: PaymentRequirements) -> Settlement:
        """Move the money. Safe to repeat with the same payload: the authorization's nonce moves it once.

        Never raises for what a network or a peer can do: that is `UNKNOWN`.
        """
        ...

    async def supported(self) -> SupportedResponse:
        """What it can do. Raises like `verify`."""
        ...

    async def close(self) -> None:
        """Let go of connections. Idempotent."""
        ...
