"""What a `Sender` is asked to send, and what it says became of it."""

from dataclasses import dataclass, field

from obol.adapters.chain_evm import TransactionReceipt


@dataclass(frozen=True, slots=True)
class Call:
    """What to send. `keys` are its purposes: one that was sent is never sent again."""

    keys: tuple[str, ...]
    to: str
    data: bytes = field(repr=False)
    gas_limit: int
    is_alone: bool = False
    """It must have a transaction of its own."""


@dataclass(frozen=True, slots=True)
class Mined:
    """In a block that counts; `receipt.is_success` says how it ended."""

    receipt: TransactionReceipt


@dataclass(frozen=True, slots=True)
class Unmined:
    """Broadcast, or perhaps; it may be mined at any time."""

    transaction: str


@dataclass(frozen=True, slots=True)
class NotSent:
    """Nothing that left this machine can ever be mined. `reason` is a stable code."""

    reason: str
    message: str


Sent = Mined | Unmined
