"""A slot that comes back on every path out, once."""

from obol.core.capacity import Slot
from obol.gateway.gate import Gate


class HeldSlot:
    """Freed when the upstream is done, or on whatever other path out; later calls do nothing."""

    def __init__(self, gate: Gate, slot: Slot) -> None:
        self._gate = gate
        self._slot: Slot | None = slot

    def free(self, *, served: bool) -> None:
        """Give the slot back. `served`: its time tells how long a service takes."""
        if self._slot is not None:
            self._gate.leave(self._slot, served=served)
            self._slot = None
