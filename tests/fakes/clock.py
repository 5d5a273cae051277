"""A clock that stands still until a test moves it."""


class FakeClock:
    """The `Clock` of tests. `advance` is time passing; `set_wall` is somebody setting the machine's clock."""

    def __init__(self, now_s: float = 1_800_000_000.0, monotonic_s: float = 1_000.0) -> None:
        self._now_s = now_s
        self._monotonic_s = monotonic_s

    def now_s(self) -> float:
        return self._now_s

    def monotonic_s(self) -> float:
        return self._monotonic_s

    def advance(self, seconds: float) -> None:
        """Let time pass on both clocks. Raises `ValueError` for a negative step: time does not go back."""
        if seconds < 0:
            raise ValueError("time does not go back: use set_wall")
        self._now_s += seconds
        self._monotonic_s += seconds

    def set_wall(self, now_s: float) -> None:
        """Set the wall clock alone, forwards or back."""
        self._now_s = now_s
