"""The port through which everything learns the time."""

from typing import Protocol


class Clock(Protocol):
    """Two clocks: wall time for protocol windows, monotonic time for durations. Both in seconds."""

    def now_s(self) -> float:
        """Seconds since the Unix epoch."""
        ...

    def monotonic_s(self) -> float:
        """Seconds from an arbitrary start; never goes back."""
        ...
