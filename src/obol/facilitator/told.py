"""Who is told that a payment is settled: one asker each.

A seller that does not claim payments itself (the official middleware does not) serves whoever it hears "settled" for.
Asked ten times at once for one payment, only one of the askers may hear it. An asker that names itself, by the same
`Idempotency-Key`, may ask as often as it likes: its answer may have been lost. The first to ask by name is the one to
be told, whatever it is told first: it knew the payment before the chain made it public.
"""

from collections import OrderedDict

REMEMBERED = 100_000
"""Payments; the oldest is forgotten first. By then its nonce is used on the chain, and `/verify` refuses it."""


class Told:
    """In memory: after a restart a payment that is settled does not verify any more. "" is nobody in particular, and
    never the same as before."""

    def __init__(self) -> None:
        self._askers: OrderedDict[str, str] = OrderedDict()

    def asks(self, payment: str, asker: str) -> bool:
        """Somebody asks for a payment to be settled. Whether this very question makes it the one to be told."""
        if asker == "" or payment in self._askers:
            return False
        self._remember(payment, asker)
        return True

    def forget(self, payment: str) -> None:
        """The question that made its asker the one to be told was refused: it has no more to do with the payment."""
        self._askers.pop(payment, None)

    def may_hear(self, payment: str, asker: str) -> bool:
        """Whether this asker may be told that `payment` is settled; from then on it alone."""
        if payment not in self._askers:
            self._remember(payment, asker)
            return True
        return asker != "" and self._askers[payment] == asker

    def _remember(self, payment: str, asker: str) -> None:
        self._askers.setdefault(payment, asker)
        while len(self._askers) > REMEMBERED:
            self._askers.popitem(last=False)
