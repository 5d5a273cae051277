"""Payments that outlive the process: written down before they leave, found again by the identical request.

Who is owed what if the process dies now? The file says it: from before the payment leaves until its answer was whole,
or the seller refused it for good, it is there, and whoever sends the same request with the same key presents it instead
of signing another. What is not known of it counts as unknown, so it is presented, also after it has expired: the seller
may have been paid in time, and owe the answer. Only what the seller declined for now is dropped when it has expired:
nothing can move it any more.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import msgspec

from obol.buyer.payment import EXPIRY_MARGIN_S, Payment, PaymentStatus
from obol.core.networks import Asset
from obol.errors import UnpayableError
from obol.x402.eip712 import checksum_address
from obol.x402.models import PaymentRequired, PaymentRequirements, ResourceInfo

UNREADABLE = "kept_payment_unreadable"
_FORMAT = 1


class KeptEntry(Protocol):
    """One payment's lines, and the sole right to present it until `release` or `remove`, which are idempotent."""

    @property
    def name(self) -> str:
        """Where it is, for messages."""
        ...

    @property
    def content(self) -> bytes:
        """All lines."""
        ...

    def append(self, line: bytes) -> None:
        """Add a line, durably."""
        ...

    def rename(self, purchase: str) -> None:
        """Keep it for another purchase, durably."""
        ...

    def release(self) -> None:
        """It stays, and others may take it."""
        ...

    def remove(self) -> None:
        """Nothing of it stays."""
        ...


class UnresolvedStore(Protocol):
    """Where payments are kept: durable, readable by the owner alone, as they are money. Safe among processes.

    Methods block briefly, and raise `SettingsError` where nothing can be kept.
    """

    def names(self) -> Sequence[str]:
        """Of all entries; each begins with its purchase."""
        ...

    def peek(self, name: str) -> bytes:
        """The lines of one, whoever has it; b"" where it is gone."""
        ...

    def take(self, name: str) -> KeptEntry | None:
        """The sole right to present one, or None: two never get the same. It ends with the process."""
        ...

    def add(self, purchase: str, line: bytes) -> KeptEntry:
        """Keep one: it is safe, and ours, when this returns."""
        ...


class KeptPayment(msgspec.Struct, frozen=True):
    """The first line: the payment as it was signed. `headers` are money until it is settled or has expired."""

    url: str
    version: int
    requirements: PaymentRequirements
    valid_before_s: int
    headers: dict[str, str]
    permit_nonce: int | None = None
    format: int = _FORMAT

    def __repr__(self) -> str:
        return f"KeptPayment(url={self.url!r}, headers=***)"


class Known(msgspec.Struct, frozen=True):
    """A later line: what the answers said so far."""

    status: PaymentStatus = PaymentStatus.UNKNOWN
    transaction: str = ""
    receipt_url: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Taken:
    """One that was kept, and is now ours alone."""

    entry: KeptEntry
    kept: KeptPayment
    known: Known

    @property
    def asked(self) -> PaymentRequired:
        """What it was signed for, as a challenge."""
        kept = self.kept
        return PaymentRequired(ResourceInfo(url=kept.url), [kept.requirements], x402_version=kept.version)

    def payment(self, id: int, asset: Asset) -> Payment:
        """The same as a payment of this process. What it was signed for must be payable."""
        return Payment(
            id=id,
            url=self.kept.url,
            amount_atomic=int(self.kept.requirements.amount),
            asset=asset,
            pay_to=checksum_address(self.kept.requirements.pay_to),
            valid_before_s=self.kept.valid_before_s,
            status=self.known.status,
            transaction=self.known.transaction,
            receipt_url=self.known.receipt_url,
            reason=self.known.reason,
            permit_nonce=self.kept.permit_nonce,
            headers=self.kept.headers,
        )


class Unresolved:
    """The unresolved payments of a store, as `PaymentAuth` uses them.

    `on_found` is called with each payment of an earlier process before it is presented again. With `is_ignored` none
    is: it is called all the same, and a new payment is signed beside it.
    """

    def __init__(
        self,
        store: UnresolvedStore,
        *,
        on_found: Callable[[Payment], None] | None = None,
        is_ignored: bool = False,
    ) -> None:
        self._store = store
        self._on_found = on_found
        self.is_ignored = is_ignored

    def add(self, key: str, payment: Payment, requirements: PaymentRequirements, version: int) -> KeptEntry:
        """Write a payment down; it may leave when this returns. Raises `SettingsError` where that cannot be done."""
        kept = KeptPayment(
            payment.url, version, requirements, payment.valid_before_s, dict(payment.headers), payment.permit_nonce
        )
        return self._store.add(key, msgspec.json.encode(kept))

    def take_open(self, key: str) -> Taken | None:
        """One of unknown fate, or that an answer is owed for."""
        return self._take(key, lambda taken: taken.known.status is not PaymentStatus.UNPAID)

    def take_declined(self, key: str, requirements: PaymentRequirements, *, after_s: float) -> Taken | None:
        """One that the seller declined for now, of just these requirements, and that is valid after then."""
        return self._take(
            key,
            lambda taken: (
                taken.known.status is PaymentStatus.UNPAID
                and taken.kept.requirements == requirements
                and taken.kept.valid_before_s > after_s
            ),
        )

    def found(self, payment: Payment) -> None:
        """Tell of one that was taken."""
        if self._on_found is not None:
            self._on_found(payment)

    def drop_expired(self, now_s: float) -> None:
        """Drop what was declined and has expired: no money can move for it."""
        for name in self._store.names():
            if not _is_over(self._store.peek(name), now_s):
                continue
            entry = self._store.take(name)
            if entry is None:
                continue
            if _is_over(entry.content, now_s):
                entry.remove()
            entry.release()

    def _take(self, key: str, is_wanted: Callable[[Taken], bool]) -> Taken | None:
        for name in self._store.names():
            entry = self._store.take(name) if name.startswith(key) else None
            if entry is None:
                continue
            taken = _read(entry)
            if is_wanted(taken):
                return taken
            entry.release()
        return None


def purchase_key(payer: str, purchase: str) -> str:
    """What a payment is found by: who pays, and the fingerprint of the request."""
    return hashlib.sha256(f"{payer.lower()}\n{purchase}".encode()).hexdigest()


def note(entry: KeptEntry | None, payment: Payment) -> None:
    """Write down what is known of a payment now, where it is kept."""
    if entry is not None:
        status = PaymentStatus.UNKNOWN if payment.status is PaymentStatus.SENT else payment.status
        entry.append(msgspec.json.encode(Known(status, payment.transaction, payment.receipt_url, payment.reason)))


def as_sent(payment: Payment) -> Payment:
    """A declined payment as it is presented once more."""
    return replace(payment, status=PaymentStatus.SENT, reason="")


def _read(entry: KeptEntry) -> Taken:
    """Raises `UnpayableError` for what is not ours to understand: it may be a payment, so none is signed over it."""
    parsed = _parse(entry.content)
    if parsed is None:
        entry.release()
        raise UnpayableError(
            f"{entry.name} may be a payment of this request, and cannot be read: move it away to pay anew",
            reason=UNREADABLE,
        )
    return Taken(entry, *parsed)


def _parse(content: bytes) -> tuple[KeptPayment, Known] | None:
    first, *later = content.splitlines() or [b""]
    try:
        kept = msgspec.json.decode(first, type=KeptPayment)
        known = msgspec.json.decode(later[-1], type=Known) if later else Known()
    except msgspec.MsgspecError:
        return None
    return (kept, known) if kept.format == _FORMAT else None


def _is_over(content: bytes, now_s: float) -> bool:
    parsed = _parse(content)
    if parsed is None:
        return False
    kept, known = parsed
    return known.status is PaymentStatus.UNPAID and kept.valid_before_s + EXPIRY_MARGIN_S < now_s
