"""Shelf: where a purchase finds a payment that is out already, of this process or of an earlier one.

First this process's own, then what earlier processes left in `Unresolved`, where there is one. A payment of an earlier
process becomes one of the purse's: it is within the limits of this one too, because its money may move only now.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import httpx2

from obol.buyer.payment import PaymentStatus
from obol.buyer.purse import MIN_LEFT_S, Purse, Signed, Terms
from obol.buyer.unresolved import UNREADABLE, Taken, Unresolved, as_sent, note, purchase_key
from obol.buyer.verdict import Verdict
from obol.core.networks import Catalogue
from obol.errors import BudgetExceededError, SettingsError, UnpayableError
from obol.x402.client import BuyerPolicy, choose, find_asset


@dataclass(frozen=True, slots=True)
class Shelf:
    """`payer` is the address that signs; `ids` numbers the payments. Without `unresolved` nothing outlives the process.

    Methods raise `SettingsError` where nothing can be kept, `UnpayableError` for what is kept and cannot be read, and
    what `choose` and `Purse.add` raise; a payment that was found stays kept then.
    """

    payer: str
    catalogue: Catalogue
    policy: BuyerPolicy
    purse: Purse
    ids: Iterator[int]
    unresolved: Unresolved | None

    def take_open(self, purchase: str, now_s: float) -> Signed | None:
        """A payment of this very purchase, of unknown fate, or that an answer is owed for. The caller's alone now."""
        signed = self.purse.take_unresolved(purchase, now_s)
        if signed is not None or self.unresolved is None:
            return signed
        self.unresolved.drop_expired(now_s)
        taken = self.unresolved.take_open(purchase_key(self.payer, purchase))
        return None if taken is None else self._adopt(self.unresolved, taken, purchase, now_s)

    def take_declined(self, terms: Terms, purchase: str, now_s: float) -> Signed | None:
        """A payment on these terms that the seller declined for now: it counts as sent again. The caller's alone now.

        One of an earlier process only for the very purchase that it was declined for.
        """
        signed = self.purse.take_resting(terms, purchase, now_s)
        if signed is not None:
            self._rewrite(signed)
        if signed is not None or self.unresolved is None:
            return signed
        key = purchase_key(self.payer, purchase)
        taken = self.unresolved.take_declined(key, terms.requirements, after_s=now_s + MIN_LEFT_S)
        return None if taken is None else self._adopt(self.unresolved, taken, purchase, now_s)

    def write_down(self, signed: Signed) -> None:
        """Before it leaves: from here on it is found again, whatever becomes of this process."""
        if self.unresolved is not None:
            key, terms = purchase_key(self.payer, signed.purchase), signed.terms
            signed.kept = self.unresolved.add(key, signed.payment, terms.requirements, terms.version)

    def _rewrite(self, signed: Signed) -> None:
        """What was declined goes out again, perhaps for another purchase."""
        if signed.kept is None:
            return
        try:
            signed.kept.rename(purchase_key(self.payer, signed.purchase))
            note(signed.kept, signed.payment)
        except SettingsError:  # so it does not leave
            self.purse.conclude(signed, Verdict(PaymentStatus.UNPAID), is_reusable=True)
            raise

    def _adopt(self, unresolved: Unresolved, taken: Taken, purchase: str, now_s: float) -> Signed | None:
        try:
            signed = self._read(taken, purchase)
            if not unresolved.is_ignored:
                self._hold(signed, taken, now_s)
            unresolved.found(signed.payment)
        except BaseException:
            taken.entry.release()
            raise
        if unresolved.is_ignored:
            taken.entry.release()
            return None
        return signed

    def _read(self, taken: Taken, purchase: str) -> Signed:
        kept = taken.kept
        asset = find_asset(choose(taken.asked, self.catalogue), self.catalogue)
        if asset is None:
            raise UnpayableError(f"{taken.entry.name} is a payment of an unknown asset", reason=UNREADABLE)
        payment = taken.payment(next(self.ids), asset)
        terms = Terms(str(httpx2.URL(kept.url).origin), kept.requirements, kept.version)
        return Signed(terms=terms, purchase=purchase, payment=payment, units=0, kept=taken.entry)

    def _hold(self, signed: Signed, taken: Taken, now_s: float) -> None:
        payment = signed.payment
        try:
            choose(taken.asked, self.catalogue, self.policy)
            signed.units = self.purse.reserve(payment.asset, payment.amount_atomic, now_s)
        except BudgetExceededError as error:
            raise BudgetExceededError(
                f"an earlier payment of this request is kept, and not resolved: {error}"
            ) from None
        try:
            if payment.status is PaymentStatus.UNPAID:
                signed.payment = as_sent(payment)
                note(signed.kept, signed.payment)
            self.purse.add(signed)
        except BaseException:
            self.purse.release(signed.units)
            raise
