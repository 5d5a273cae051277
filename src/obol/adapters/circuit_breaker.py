"""A circuit breaker: who failed several times in a row is left alone for a while, then tried by one caller first."""

from obol.core.clock import Clock

FAILURES = 5
WAIT_S = 5.0


class CircuitBreaker:
    """Closed: everybody may ask. Open after `failures` in a row, for `wait_s`; then one may ask in every `wait_s`,
    until an answer closes it.
    """

    def __init__(self, clock: Clock, *, failures: int = FAILURES, wait_s: float = WAIT_S) -> None:
        self._clock = clock
        self._limit = failures
        self._wait_s = wait_s
        self._failed = 0
        self._closed_to_all_until_s = 0.0

    @property
    def is_open(self) -> bool:
        """Whether the last answers were all failures, and too many."""
        return self._failed >= self._limit

    def may_ask(self) -> bool:
        """Whether the caller may ask now. A yes while it is open is for this caller alone: it must `note` the end."""
        if not self.is_open:
            return True
        now_s = self._clock.monotonic_s()
        if now_s < self._closed_to_all_until_s:
            return False
        self._closed_to_all_until_s = now_s + self._wait_s
        return True

    def note(self, *, is_answered: bool) -> None:
        """What came of asking."""
        if is_answered:
            self._failed = 0
            return
        self._failed += 1
        self._closed_to_all_until_s = self._clock.monotonic_s() + self._wait_s
