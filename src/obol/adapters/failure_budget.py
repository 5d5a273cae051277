"""How often a payer's settlements may revert before nothing more is tried for it: reverting costs us gas."""

from collections import OrderedDict, deque

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
        self._failed_s: OrderedDict[str, deque[float]] = OrderedDict()

    def is_spent(self, payer: str) -> bool:
        """Whether this payer has failed too often of late."""
        failed_s = self._failed_s.get(payer)
        if failed_s is None:
            return False
        return len(failed_s) == self._failures and self._clock.monotonic_s() - failed_s[0] < self._window_s

    def note_failure(self, payer: str) -> None:
        """One more."""
        failed_s = self._failed_s.setdefault(payer, deque(maxlen=self._failures))
        failed_s.append(self._clock.monotonic_s())
        self._failed_s.move_to_end(payer)
        while len(self._failed_s) > REMEMBERED:
            self._failed_s.popitem(last=False)
