"""Admission to an upstream of fixed capacity: global slots, slots per buyer, a bounded queue, and Retry-After.

Pure: the caller passes the time and does the waiting. One `Admission` is used from one event loop, so every method is
one atomic step. Seller-declared numbers only (`mode: external-static`): nothing is scaled, restarted or scheduled.
"""

import math
from collections import Counter, OrderedDict
from dataclasses import dataclass
from enum import StrEnum

RETRY_AFTER_MIN_S = 1
RETRY_AFTER_MAX_S = 60
_SMOOTHING = 0.2
"""Weight of the newest service time in the moving average."""


class CapacityState(StrEnum):
    """The `state` of the status capacity block."""

    AVAILABLE = "Available"
    SATURATED = "Saturated"
    UNKNOWN = "Unknown"


@dataclass(frozen=True, slots=True)
class Capacity:
    """The seller's declared envelope. `max_in_flight` None means no limit. Waits in seconds."""

    max_in_flight: int | None = None
    per_buyer_max_in_flight: int | None = None
    max_queue_depth: int = 0
    queue_timeout_s: float = 10.0
    gpu_count: int | None = None
    mode: str = "external-static"


class Saturation(StrEnum):
    """Why there is no slot."""

    SATURATED = "saturated"
    BUYER_SATURATED = "buyer_saturated"


@dataclass(frozen=True, slots=True)
class Slot:
    """The right of one sale to use the upstream; given back by `Admission.leave`."""

    number: int
    buyer: str
    since_s: float


@dataclass(frozen=True, slots=True)
class Queued:
    """A place in the queue; becomes a slot in the answer of a later `leave`, or is given up by `abandon`."""

    number: int
    buyer: str


class Admission:
    """The slots and the queue of one offer.

    Invariants: slots held never exceed `max_in_flight`; slots of one buyer never exceed `per_buyer_max_in_flight`; the
    queue never exceeds `max_queue_depth`; each slot and each place ends exactly once.
    """

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self._slots: dict[int, Slot] = {}
        self._queue: OrderedDict[int, Queued] = OrderedDict()
        self._per_buyer: Counter[str] = Counter()
        self._next = 0
        self._service_s: float | None = None

    @property
    def in_flight(self) -> int:
        """How many slots are held."""
        return len(self._slots)

    @property
    def queued(self) -> int:
        """How many sales wait for a slot."""
        return len(self._queue)

    @property
    def is_saturated(self) -> bool:
        """True when a sale that came now would be refused: no free slot and no free place in the queue."""
        limit = self.capacity.max_in_flight
        return limit is not None and self.in_flight >= limit and self.queued >= self.capacity.max_queue_depth

    @property
    def state(self) -> CapacityState:
        """Available or Saturated: this process counts its own slots, so it is never Unknown here."""
        return CapacityState.SATURATED if self.is_saturated else CapacityState.AVAILABLE

    def enter(self, buyer: str, now_s: float) -> Slot | Queued | Saturation:
        """Take a slot for `buyer`, or a place in the queue, or be told why not. A buyer at its own cap never queues."""
        cap = self.capacity.per_buyer_max_in_flight
        if cap is not None and self._held_by(buyer) >= cap:
            return Saturation.BUYER_SATURATED
        if not self._is_full:
            return self._take(buyer, now_s)
        if self.queued < self.capacity.max_queue_depth:
            self._next += 1
            self._queue[self._next] = Queued(self._next, buyer)
            return self._queue[self._next]
        return Saturation.SATURATED

    def leave(self, slot: Slot, now_s: float, *, served: bool) -> tuple[Queued, Slot] | None:
        """Give a slot back; when someone waits, the first in the queue gets it: its place and its new slot.

        `served` says whether the time since `slot.since_s` is a service time worth learning from.
        Raises `KeyError` when the slot was given back before: a slot ends once.
        """
        del self._slots[slot.number]
        self._per_buyer[slot.buyer] -= 1
        if not self._per_buyer[slot.buyer]:
            del self._per_buyer[slot.buyer]
        if served:
            self._learn(max(0.0, now_s - slot.since_s))
        if not self._queue or self._is_full:
            return None
        _, place = self._queue.popitem(last=False)
        return place, self._take(place.buyer, now_s)

    def abandon(self, place: Queued) -> None:
        """Give up a place in the queue (deadline, disconnect). Raises `KeyError` when it is no longer queued."""
        del self._queue[place.number]

    def retry_after_s(self, now_s: float) -> int:
        """Whole seconds (1 to 60) after which a slot is likely free, from observed service times."""
        expected = self._service_s
        if expected is None:  # nothing finished yet: the oldest sale in flight is the only thing observed
            expected = max((now_s - slot.since_s for slot in self._slots.values()), default=0.0)
        waves = (self.queued + 1) / max(1, self.capacity.max_in_flight or 1)
        return min(RETRY_AFTER_MAX_S, max(RETRY_AFTER_MIN_S, math.ceil(expected * waves)))

    @property
    def _is_full(self) -> bool:
        limit = self.capacity.max_in_flight
        return limit is not None and self.in_flight >= limit

    def _held_by(self, buyer: str) -> int:
        """Slots and places: whoever gets a place can always take the slot later, so nobody blocks the queue."""
        return self._per_buyer[buyer] + sum(1 for place in self._queue.values() if place.buyer == buyer)

    def _take(self, buyer: str, now_s: float) -> Slot:
        self._next += 1
        slot = self._slots[self._next] = Slot(self._next, buyer, now_s)
        self._per_buyer[buyer] += 1
        return slot

    def _learn(self, service_s: float) -> None:
        known = self._service_s
        self._service_s = service_s if known is None else known + _SMOOTHING * (service_s - known)
