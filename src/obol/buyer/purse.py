"""A buyer's purse: every signature that is out, the budget that holds it, and what may be presented again.

Thread-safe; each method is one atomic step. Rule 1: an amount is held before it is signed for, and the hold ends only
when the money moved (it is spent) or can no longer move (the authorization expired, and nothing says otherwise). So a
seller that says "not paid" and settles later cannot take more than the budget. Rule 2: what is out and unresolved is
presented again before anything new is signed.

Amounts of different assets are counted together, one unit as one unit: a purse is for assets of one currency.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass, field, replace

from obol.buyer.payment import EXPIRY_MARGIN_S, Payment, PaymentStatus
from obol.buyer.permits import PermitsOut
from obol.buyer.unresolved import KeptEntry
from obol.buyer.verdict import Verdict
from obol.core.budget import Budget
from obol.core.money import format_amount, parse_amount
from obol.core.networks import Asset
from obol.errors import BudgetExceededError, UnpayableError
from obol.x402.models import PaymentRequirements

MAX_RECORDS = 1000
"""How many payments are remembered for `payments`; the sums and what is out do not depend on it."""
UNIT_DECIMALS = 36
"""The finest asset that can be counted."""
MIN_LEFT_S = 15
"""Less time than this before `validBefore` is not enough to be served."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a payment is good for: one that bought nothing can pay another request on the same terms."""

    origin: str
    requirements: PaymentRequirements
    version: int


@dataclass(slots=True, eq=False)
class Signed:
    """A signature that is out. `payment` is its latest record; only the purse changes it."""

    terms: Terms
    purchase: str
    """Fingerprint of the request that it was last presented with."""
    payment: Payment
    units: int
    is_reusable: bool = False
    """True when the seller declined for now, not because of the payment."""
    kept: KeptEntry | None = None
    """Where it is kept beyond this process, if it is."""

    def is_alive(self, now_s: float) -> bool:
        """Whether it may still get an answer. One that is kept may for good: it may have been paid in time."""
        return self.kept is not None or self.payment.valid_before_s > now_s


@dataclass(slots=True)
class _Sums:
    unknown_units: int = 0
    unknown_count: int = 0


@dataclass(slots=True)
class Purse:
    """`budget` is a decimal string or None. Raises `SettingsError` for one that is not an amount."""

    budget: str | None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _resting: list[Signed] = field(default_factory=list, repr=False)
    """Declined and not expired: still held."""
    _unresolved: dict[str, list[Signed]] = field(default_factory=dict, repr=False)
    """By purchase: to be presented again with the same request."""
    _records: OrderedDict[int, Payment] = field(default_factory=OrderedDict, repr=False)
    _sums: _Sums = field(default_factory=_Sums, repr=False)
    _permits: PermitsOut = field(default_factory=PermitsOut, repr=False)
    _held: Budget = field(init=False, repr=False)

    def __post_init__(self) -> None:
        total = None if self.budget is None else parse_amount(self.budget, UNIT_DECIMALS, field="budget")
        self._held = Budget(max_per_request_atomic=None, total_atomic=total)

    def reserve(self, asset: Asset, amount_atomic: int, now_s: float) -> int:
        """Hold an amount before it is signed for; the answer is the hold in units.

        Raises `BudgetExceededError`, holding nothing, where the budget does not allow it.
        """
        units = to_units(asset, amount_atomic)
        with self._lock:
            self._expire(now_s)
            try:
                self._held.reserve(units)
            except BudgetExceededError:
                quote = format_amount(amount_atomic, asset.decimals)
                left = format_amount(self._left_units() or 0, UNIT_DECIMALS)
                message = f"the seller asks for {quote} {asset.symbol}, {left} of the budget of {self.budget} is left"
                raise BudgetExceededError(message) from None
        return units

    def release(self, units: int) -> None:
        """Give a hold back for which nothing was signed."""
        with self._lock:
            self._held.release(units)

    def add(self, signed: Signed) -> None:
        """Remember a signature, held by `reserve`, before it leaves: a new one, or one that an earlier process left.

        Raises `UnpayableError`, remembering nothing, where its permit's nonce is that of a payment that is out.
        """
        with self._lock:
            self._permits.take(signed.payment)
            self._count(PaymentStatus.SENT, signed.payment.status, signed.units)
            self._record(signed.payment)

    def take_unresolved(self, purchase: str, now_s: float) -> Signed | None:
        """A payment whose answer to this very request was lost: present it again. It is the caller's alone now."""
        with self._lock:
            self._expire(now_s)
            waiting = self._unresolved.get(purchase, [])
            taken = next((s for s in waiting if s.is_alive(now_s + MIN_LEFT_S)), None)
            if taken is not None:
                waiting.remove(taken)
            return taken

    def take_resting(self, terms: Terms, purchase: str, now_s: float) -> Signed | None:
        """A declined payment on the same terms: present it instead of signing anew. It is the caller's alone now."""
        with self._lock:
            for signed in self._resting:
                is_usable = signed.payment.valid_before_s - MIN_LEFT_S > now_s and self._permits.is_free(signed.payment)
                if signed.is_reusable and signed.terms == terms and is_usable:
                    self._resting.remove(signed)
                    self._permits.take(signed.payment)
                    signed.purchase = purchase
                    self._update(signed, replace(signed.payment, status=PaymentStatus.SENT, reason=""))
                    return signed
        return None

    def conclude(
        self, signed: Signed, verdict: Verdict, *, receipt_url: str = "", is_reusable: bool = False
    ) -> Payment:
        """Take in what an answer says. A verdict never makes less known, nor an unknown payment unpaid."""
        with self._lock:
            before = signed.payment.status
            after = verdict.status
            if before is PaymentStatus.PAID or (before is PaymentStatus.UNKNOWN and after is PaymentStatus.UNPAID):
                after = before
            self._count(before, after, signed.units)
            if after is PaymentStatus.UNPAID:
                signed.is_reusable = is_reusable
                self._resting.append(signed)
            changed = replace(
                signed.payment,
                status=after,
                transaction=verdict.transaction or signed.payment.transaction,
                receipt_url=receipt_url or signed.payment.receipt_url,
                reason="" if after is PaymentStatus.PAID else verdict.reason,
            )
            return self._update(signed, changed)

    def keep(self, signed: Signed) -> None:
        """The answer is lost or incomplete: the next identical request presents this payment again."""
        with self._lock:
            self._unresolved.setdefault(signed.purchase, []).append(signed)

    @property
    def payments(self) -> tuple[Payment, ...]:
        """The latest payments, oldest first, as last known."""
        with self._lock:
            return tuple(self._records.values())

    @property
    def spent(self) -> str:
        """What is known to be paid, as a decimal string."""
        with self._lock:
            return format_amount(self._held.spent_atomic, UNIT_DECIMALS)

    @property
    def unknown(self) -> str:
        """What may have been paid: held until it is known."""
        with self._lock:
            return format_amount(self._sums.unknown_units, UNIT_DECIMALS)

    @property
    def unknown_count(self) -> int:
        """How many payments are of unknown fate."""
        with self._lock:
            return self._sums.unknown_count

    def remaining(self, now_s: float) -> str | None:
        """What may still be signed for: the budget less what is spent and held. None without a budget."""
        with self._lock:
            self._expire(now_s)
            left = self._left_units()
            return None if left is None else format_amount(left, UNIT_DECIMALS)

    def _left_units(self) -> int | None:
        held = self._held
        return None if held.total_atomic is None else held.total_atomic - held.spent_atomic - held.reserved_atomic

    def _count(self, before: PaymentStatus, after: PaymentStatus, units: int) -> None:
        step = (after is PaymentStatus.UNKNOWN) - (before is PaymentStatus.UNKNOWN)
        self._sums.unknown_units += step * units
        self._sums.unknown_count += step
        if after is PaymentStatus.PAID and before is not PaymentStatus.PAID:
            self._held.debit(units)

    def _expire(self, now_s: float) -> None:
        """Let go of what can no longer be settled or presented. What is unknown stays held: it may have been paid."""
        self._permits.expire(now_s - EXPIRY_MARGIN_S)
        for signed in [s for s in self._resting if s.payment.valid_before_s + EXPIRY_MARGIN_S < now_s]:
            self._resting.remove(signed)
            self._held.release(signed.units)
            if signed.kept is not None:
                signed.kept.release()
        for purchase, waiting in list(self._unresolved.items()):
            alive = [s for s in waiting if s.is_alive(now_s)]
            if alive:
                self._unresolved[purchase] = alive
            else:
                del self._unresolved[purchase]

    def _update(self, signed: Signed, payment: Payment) -> Payment:
        signed.payment = payment
        self._permits.update(payment)
        self._record(payment)
        return payment

    def _record(self, payment: Payment) -> None:
        self._records[payment.id] = payment
        while len(self._records) > MAX_RECORDS:
            self._records.popitem(last=False)


def to_units(asset: Asset, amount_atomic: int) -> int:
    """An amount in the purse's unit. Raises `UnpayableError` for an asset that is finer than can be counted."""
    if asset.decimals > UNIT_DECIMALS:
        raise UnpayableError(f"{asset.symbol} has more than {UNIT_DECIMALS} decimal places")
    return amount_atomic * int(10 ** (UNIT_DECIMALS - asset.decimals))
