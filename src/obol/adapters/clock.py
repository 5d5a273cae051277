"""The machine's clocks, the only place that reads them."""

import time


class SystemClock:
    """The `Clock` of a running program."""

    def now_s(self) -> float:
        """Seconds since the Unix epoch; follows corrections of the machine's clock."""
        return time.time()

    def monotonic_s(self) -> float:
        """Seconds from an arbitrary start; never goes back."""
        return time.monotonic()
