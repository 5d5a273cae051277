"""Waiting for a slot, on the real event loop: whatever arrives, ends, times out or is cancelled, no slot is lost."""

import asyncio
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from obol.core.capacity import Capacity, Saturation, Slot
from obol.gateway.gate import Gate
from obol.gateway.slots import HeldSlot
from tests.fakes.clock import FakeClock

FOREVER_S = 3600.0


def gate(slots: int | None = 1, *, queue: int = 0, per_buyer: int | None = None, timeout_s: float = FOREVER_S) -> Gate:
    return Gate(Capacity(slots, per_buyer, queue, timeout_s), FakeClock())


async def take(place: Gate, buyer: str = "a") -> Slot:
    slot = await place.enter(buyer)
    assert isinstance(slot, Slot)
    return slot


async def queue(place: Gate, buyer: str = "a") -> asyncio.Task[Slot | Saturation | None]:
    """A sale that waits."""
    before = place.admission.queued
    task = asyncio.get_running_loop().create_task(place.enter(buyer))
    await asyncio.sleep(0)
    assert place.admission.queued == before + 1
    return task


async def test_no_declared_capacity_is_no_limit() -> None:
    place = Gate(None, FakeClock())
    slots = [await take(place) for _ in range(1000)]
    for slot in slots:
        place.leave(slot, served=True)
    assert place.admission.in_flight == 0


async def test_a_full_gate_says_so_at_once() -> None:
    place = gate()
    await take(place)
    assert await place.enter("b") is Saturation.SATURATED


async def test_a_buyer_at_its_cap_does_not_stop_others() -> None:
    place = gate(3, per_buyer=1)
    await take(place, "a")
    assert await place.enter("a") is Saturation.BUYER_SATURATED
    await take(place, "b")


async def test_the_first_in_the_queue_gets_the_next_slot() -> None:
    place = gate(queue=2)
    slot = await take(place)
    first, second = await queue(place, "b"), await queue(place, "c")
    place.leave(slot, served=True)
    got = await first
    assert isinstance(got, Slot)
    assert not second.done()
    place.leave(got, served=True)
    assert isinstance(await second, Slot)


async def test_a_deadline_ends_the_wait_and_gives_the_place_back() -> None:
    place = gate(queue=1, timeout_s=0.01)
    slot = await take(place)
    assert await place.enter("b") is None
    assert place.admission.queued == 0
    place.leave(slot, served=True)
    await take(place, "c")


async def test_a_cancelled_wait_gives_the_place_back() -> None:
    place = gate(queue=1)
    slot = await take(place)
    waiting = await queue(place)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert place.admission.queued == 0
    place.leave(slot, served=False)
    assert place.admission.in_flight == 0


async def test_a_slot_that_arrives_together_with_a_cancellation_comes_back() -> None:
    for cancel_first in (False, True):
        place = gate(queue=1)
        slot = await take(place)
        waiting = await queue(place)
        if cancel_first:
            waiting.cancel()
        place.leave(slot, served=True)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (place.admission.in_flight, place.admission.queued) == (0, 0)


async def test_a_slot_that_arrives_together_with_the_deadline_is_taken() -> None:
    place = gate(queue=1, timeout_s=0.01)
    slot = await take(place)
    waiting = await queue(place)
    loop = asyncio.get_running_loop()
    loop.call_at(loop.time() + 0.01, lambda: place.leave(slot, served=True))
    got = await waiting
    if got is not None:
        place.leave(got, served=True)  # type: ignore[arg-type]
    assert (place.admission.in_flight, place.admission.queued) == (0, 0)


async def test_a_held_slot_is_freed_once() -> None:
    place = gate()
    held = HeldSlot(place, await take(place))
    held.free(served=True)
    held.free(served=False)
    assert place.admission.in_flight == 0


@dataclass(frozen=True)
class Step:
    """What happens next: somebody comes, the n-th of those inside leaves, the n-th of those waiting gives up."""

    kind: str
    index: int
    settles: bool
    """Whether the event loop gets to run before the step after it."""


STEPS = st.lists(
    st.builds(Step, st.sampled_from(["come", "come", "leave", "give up"]), st.integers(0, 7), st.booleans()),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(
    steps=STEPS,
    slots=st.integers(1, 3),
    depth=st.integers(0, 3),
    per_buyer=st.none() | st.integers(1, 2),
    timeout_s=st.sampled_from([0.0, 0.0005, FOREVER_S]),
)
def test_no_interleaving_exceeds_a_limit_or_loses_a_slot(
    steps: list[Step], slots: int, depth: int, per_buyer: int | None, timeout_s: float
) -> None:
    place = gate(slots, queue=depth, per_buyer=per_buyer, timeout_s=timeout_s)
    asyncio.run(_play(place, steps))


class _Crowd:
    """Buyers before a gate, those who wait and those inside."""

    def __init__(self, place: Gate) -> None:
        self.place = place
        self.inside: list[Slot] = []
        self.waiting: list[asyncio.Task[None]] = []

    async def take(self, step: Step) -> None:
        self.waiting = [task for task in self.waiting if not task.done()]
        if step.kind == "come":
            self.waiting.append(asyncio.get_running_loop().create_task(self._come("abcd"[step.index % 4])))
        elif step.kind == "leave" and self.inside:
            self.place.leave(self.inside.pop(step.index % len(self.inside)), served=step.settles)
        elif step.kind == "give up" and self.waiting:
            self.waiting[step.index % len(self.waiting)].cancel()
        if step.settles:
            await asyncio.sleep(0)

    async def _come(self, buyer: str) -> None:
        outcome = await self.place.enter(buyer)
        if isinstance(outcome, Slot):
            self.inside.append(outcome)


async def _play(place: Gate, steps: list[Step]) -> None:
    crowd = _Crowd(place)
    for step in steps:
        await crowd.take(step)
        _check(place)
    for task in crowd.waiting:
        task.cancel()
    await asyncio.gather(*crowd.waiting, return_exceptions=True)
    assert place.admission.queued == 0
    assert place.admission.in_flight == len(crowd.inside)
    for slot in crowd.inside:
        place.leave(slot, served=True)
    assert place.admission.in_flight == 0
    assert isinstance(await place.enter("a"), Slot)


def _check(place: Gate) -> None:
    capacity = place.admission.capacity
    assert place.admission.in_flight <= (capacity.max_in_flight or 0)
    assert place.admission.queued <= capacity.max_queue_depth
    held = Counter(slot.buyer for slot in place.admission._slots.values())
    assert all(count <= (capacity.per_buyer_max_in_flight or count) for count in held.values())
