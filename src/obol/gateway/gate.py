"""Waiting for a slot: the event loop's side of `core/capacity.py`."""

import asyncio

from obol.core.capacity import Admission, Capacity, Queued, Saturation, Slot
from obol.core.clock import Clock

UNLIMITED = Capacity()


class Gate:
    """Slots of one offer. A slot that `enter` returned is given back by exactly one `leave`."""

    def __init__(self, capacity: Capacity | None, clock: Clock) -> None:
        self.admission = Admission(capacity or UNLIMITED)
        self._clock = clock
        self._waiting: dict[int, asyncio.Future[Slot]] = {}

    async def enter(self, buyer: str) -> Slot | Saturation | None:
        """A slot, why there is none, or None when the wait in the queue was longer than `queue_timeout_s`.

        Cancellation while queued gives the place (or a slot that arrived meanwhile) back.
        """
        admitted = self.admission.enter(buyer, self._clock.monotonic_s())
        if not isinstance(admitted, Queued):
            return admitted
        arrival: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        self._waiting[admitted.number] = arrival
        try:
            async with asyncio.timeout(self.admission.capacity.queue_timeout_s):
                return await asyncio.shield(arrival)
        except TimeoutError:
            if arrival.done():  # the slot and the deadline arrived in the same turn of the loop
                return arrival.result()
            self._give_up(admitted)
            return None
        except asyncio.CancelledError:
            if arrival.done():
                self.leave(arrival.result(), served=False)
            else:
                self._give_up(admitted)
            raise

    def leave(self, slot: Slot, *, served: bool) -> None:
        """Give a slot back, or pass it to the first in the queue."""
        handed_on = self.admission.leave(slot, self._clock.monotonic_s(), served=served)
        if handed_on is not None:
            place, next_slot = handed_on
            self._waiting.pop(place.number).set_result(next_slot)

    def retry_after_s(self) -> int:
        """Whole seconds for `Retry-After`."""
        return self.admission.retry_after_s(self._clock.monotonic_s())

    def _give_up(self, place: Queued) -> None:
        self.admission.abandon(place)
        self._waiting.pop(place.number).cancel()
