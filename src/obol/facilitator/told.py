"""Who was told that a payment is settled: one asker each.

A seller that does not claim payments itself (the official middleware does not) serves whoever it hears "settled" for.
Asked ten times at once for one payment, only one of the askers may hear it. An asker that names itself, by the same
`Idempotency-Key`, may ask as often as it likes: its answer may have been lost.
"""

from collections import OrderedDict

REMEMBERED = 100_000
"""Payments; the oldest is forgotten first. By then its nonce is used on the chain, and `/verify` refuses it."""


class Told:
    """In memory: after a restart a payment that is settled does not verify any more."""

    def __init__(self) -> None:
        self._askers: OrderedDict[str, str] = OrderedDict()

    def may_hear(self, payment: str, asker: str) -> bool:
        """Whether this asker may be told that `payment` is settled; from then on it alone. "" is nobody in particular,
        and never the same as before."""
        if payment not in self._askers:
            self._askers[payment] = asker
            while len(self._askers) > REMEMBERED:
                self._askers.popitem(last=False)
            return True
        return asker != "" and self._askers[payment] == asker
