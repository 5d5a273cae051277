"""How many of a payer's settlements may revert before nothing more is tried for it: reverting costs us gas."""

from collections import OrderedDict

from obol.core.clock import Clock

FAILURES = 3
WINDOW_S = 3600.0
REMEMBERED = 100_000
"""Payers; the one that failed longest ago is forgotten first. A restart forgets all."""


class FailureBudget:
    """`failures` per payer in any `window_s`."""

    def __init__(self, clock: Clock, *, failures: int = FAILURES, window_s: float = WINDOW_S) -> None:
        self._clock = clock
        self._failures = failures
        self._window_s = window_s
        self._failed_s: OrderedDict[str, dict[str, float]] = OrderedDict()
        """By payer: when which of its payments failed, oldest first."""

    def is_spent(self, payer: str) -> bool:
        """Whether this payer has failed too often of late."""
        failed_s = self._failed_s.get(payer)
        if failed_s is None or len(failed_s) < self._failures:
            return False
        return self._clock.monotonic_s() - next(iter(failed_s.values())) < self._window_s

    def note_failure(self, payer: str, payment: str) -> None:
        """A payment failed. Noted once, however often it is asked about."""
        failed_s = self._failed_s.setdefault(payer, {})
        if payment in failed_s:
            return
        failed_s[payment] = self._clock.monotonic_s()
        if len(failed_s) > self._failures:
            del failed_s[next(iter(failed_s))]
        self._failed_s.move_to_end(payer)
        while len(self._failed_s) > REMEMBERED:
            self._failed_s.popitem(last=False)
