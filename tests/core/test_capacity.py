from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from obol.core.capacity import (
    RETRY_AFTER_MAX_S,
    RETRY_AFTER_MIN_S,
    Admission,
    Capacity,
    Queued,
    Saturation,
    Slot,
)


def slot(outcome: Slot | Queued | Saturation) -> Slot:
    assert isinstance(outcome, Slot)
    return outcome


def place(outcome: Slot | Queued | Saturation) -> Queued:
    assert isinstance(outcome, Queued)
    return outcome


def test_no_declared_limit_admits_all() -> None:
    admission = Admission(Capacity())

    slots = [slot(admission.enter("a", 0)) for _ in range(1_000)]

    assert admission.in_flight == 1_000
    assert not admission.is_saturated
    for held in slots:
        assert admission.leave(held, 1, served=True) is None
    assert admission.in_flight == 0


def test_without_a_queue_the_one_too_many_is_refused() -> None:
    admission = Admission(Capacity(max_in_flight=2))
    first = slot(admission.enter("a", 0))
    slot(admission.enter("b", 0))

    assert admission.enter("c", 0) is Saturation.SATURATED
    assert admission.state == "Saturated"
    assert admission.leave(first, 1, served=True) is None
    assert admission.state == "Available"
    slot(admission.enter("c", 1))


def test_a_free_place_in_the_queue_is_not_saturated() -> None:
    admission = Admission(Capacity(max_in_flight=1, max_queue_depth=1))
    slot(admission.enter("a", 0))
    assert admission.state == "Available"

    place(admission.enter("b", 0))
    assert admission.state == "Saturated"
    assert admission.enter("c", 0) is Saturation.SATURATED


def test_the_first_in_the_queue_gets_the_slot() -> None:
    admission = Admission(Capacity(max_in_flight=1, max_queue_depth=3))
    held = slot(admission.enter("a", 0))
    places = [place(admission.enter(buyer, 0)) for buyer in "bcd"]
    admission.abandon(places[1])

    for expected in (places[0], places[2]):
        granted = admission.leave(held, 5, served=True)
        assert granted is not None
        assert granted[0] == expected
        held = granted[1]
        assert (held.buyer, held.since_s) == (expected.buyer, 5)
    assert admission.leave(held, 6, served=True) is None


def test_a_buyer_at_its_cap_does_not_block_others() -> None:
    admission = Admission(Capacity(max_in_flight=2, per_buyer_max_in_flight=1, max_queue_depth=2))
    greedy = slot(admission.enter("greedy", 0))

    assert admission.enter("greedy", 0) is Saturation.BUYER_SATURATED
    slot(admission.enter("other", 0))
    waiting = place(admission.enter("third", 0))
    assert admission.leave(greedy, 1, served=True) is not None
    assert waiting.buyer == "third"


def test_places_in_the_queue_count_towards_the_buyers_cap() -> None:
    admission = Admission(Capacity(max_in_flight=1, per_buyer_max_in_flight=2, max_queue_depth=9))
    slot(admission.enter("a", 0))
    waiting = place(admission.enter("a", 0))

    assert admission.enter("a", 0) is Saturation.BUYER_SATURATED
    admission.abandon(waiting)
    place(admission.enter("a", 0))


def test_a_cap_holds_where_there_is_no_global_limit() -> None:
    admission = Admission(Capacity(per_buyer_max_in_flight=1))
    slot(admission.enter("a", 0))

    assert admission.enter("a", 0) is Saturation.BUYER_SATURATED
    slot(admission.enter("b", 0))


def test_a_slot_ends_once() -> None:
    admission = Admission(Capacity(max_in_flight=2, per_buyer_max_in_flight=2))
    held = slot(admission.enter("a", 0))
    slot(admission.enter("a", 0))
    admission.leave(held, 1, served=True)

    with pytest.raises(KeyError):
        admission.leave(held, 1, served=True)
    assert admission.in_flight == 1


def test_a_place_ends_once() -> None:
    admission = Admission(Capacity(max_in_flight=1, max_queue_depth=2))
    held = slot(admission.enter("a", 0))
    granted, given_up = place(admission.enter("b", 0)), place(admission.enter("c", 0))
    admission.abandon(given_up)
    admission.leave(held, 1, served=True)

    for gone in (granted, given_up):
        with pytest.raises(KeyError):
            admission.abandon(gone)


def test_retry_after_follows_the_observed_service_time_and_the_queue() -> None:
    admission = Admission(Capacity(max_in_flight=1, max_queue_depth=1))
    admission.leave(slot(admission.enter("a", 0)), 9.5, served=True)
    slot(admission.enter("a", 10))
    assert admission.retry_after_s(10) == 10

    place(admission.enter("b", 10))
    assert admission.retry_after_s(10) == 19


def test_retry_after_is_shorter_with_more_slots() -> None:
    admission = Admission(Capacity(max_in_flight=4))
    admission.leave(slot(admission.enter("a", 0)), 20, served=True)

    assert admission.retry_after_s(20) == 5


def test_retry_after_moves_slowly_with_new_service_times() -> None:
    admission = Admission(Capacity(max_in_flight=1))
    admission.leave(slot(admission.enter("a", 0)), 10, served=True)
    admission.leave(slot(admission.enter("a", 10)), 30, served=True)

    assert admission.retry_after_s(30) == 12


def test_what_was_not_served_teaches_nothing() -> None:
    admission = Admission(Capacity(max_in_flight=1))
    admission.leave(slot(admission.enter("a", 0)), 20, served=True)
    admission.leave(slot(admission.enter("a", 20)), 20.001, served=False)

    assert admission.retry_after_s(30) == 20


def test_before_anything_finished_the_oldest_sale_in_flight_is_the_guess() -> None:
    admission = Admission(Capacity(max_in_flight=1))
    assert admission.retry_after_s(0) == RETRY_AFTER_MIN_S
    slot(admission.enter("a", 0))

    assert admission.retry_after_s(7.2) == 8
    assert admission.retry_after_s(1_000_000) == RETRY_AFTER_MAX_S


class AdmissionMachine(RuleBasedStateMachine):
    """Any interleaving of arrivals, endings and second thoughts against plain lists."""

    def __init__(self) -> None:
        super().__init__()
        self.admission = Admission(Capacity())
        self.now_s = 0.0
        self.slots: list[Slot] = []
        self.queue: list[Queued] = []

    @initialize(
        max_in_flight=st.none() | st.integers(1, 4),
        per_buyer_max_in_flight=st.none() | st.integers(1, 3),
        max_queue_depth=st.integers(0, 4),
    )
    def declare(self, max_in_flight: int | None, per_buyer_max_in_flight: int | None, max_queue_depth: int) -> None:
        self.admission = Admission(Capacity(max_in_flight, per_buyer_max_in_flight, max_queue_depth))

    @rule(buyer=st.sampled_from("abc"), pause_s=st.floats(0, 1e6))
    def enter(self, buyer: str, pause_s: float) -> None:
        self.now_s += pause_s
        capacity = self.admission.capacity
        held = [*(slot.buyer for slot in self.slots), *(place.buyer for place in self.queue)].count(buyer)
        is_full = capacity.max_in_flight is not None and len(self.slots) >= capacity.max_in_flight
        was_saturated = self.admission.is_saturated

        outcome = self.admission.enter(buyer, self.now_s)

        if capacity.per_buyer_max_in_flight is not None and held >= capacity.per_buyer_max_in_flight:
            assert outcome is Saturation.BUYER_SATURATED
        elif not is_full:
            self.slots.append(slot(outcome))
        elif len(self.queue) < capacity.max_queue_depth:
            self.queue.append(place(outcome))
        else:
            assert was_saturated
            assert outcome is Saturation.SATURATED

    @precondition(lambda self: self.slots)
    @rule(choice=st.integers(0, 99), pause_s=st.floats(0, 1e6), served=st.booleans())
    def leave(self, choice: int, pause_s: float, served: bool) -> None:
        self.now_s += pause_s
        granted = self.admission.leave(self.slots.pop(choice % len(self.slots)), self.now_s, served=served)

        if self.queue:
            assert granted is not None
            assert granted[0] == self.queue.pop(0)
            assert granted[1].buyer == granted[0].buyer
            self.slots.append(granted[1])
        else:
            assert granted is None

    @precondition(lambda self: self.queue)
    @rule(choice=st.integers(0, 99))
    def abandon(self, choice: int) -> None:
        self.admission.abandon(self.queue.pop(choice % len(self.queue)))

    @invariant()
    def no_slot_is_lost_and_no_limit_is_passed(self) -> None:
        capacity = self.admission.capacity
        assert (self.admission.in_flight, self.admission.queued) == (len(self.slots), len(self.queue))
        assert len(self.queue) <= capacity.max_queue_depth
        if capacity.max_in_flight is not None:
            assert len(self.slots) <= capacity.max_in_flight
        if capacity.per_buyer_max_in_flight is not None:
            assert (
                max(Counter(held.buyer for held in self.slots).values(), default=0) <= capacity.per_buyer_max_in_flight
            )

    @invariant()
    def nobody_waits_while_a_slot_is_free(self) -> None:
        assert not self.queue or len(self.slots) == self.admission.capacity.max_in_flight

    @invariant()
    def numbers_are_never_reused(self) -> None:
        numbers = [*(slot.number for slot in self.slots), *(place.number for place in self.queue)]
        assert len(numbers) == len(set(numbers))

    @invariant()
    def retry_after_is_between_a_second_and_a_minute(self) -> None:
        assert RETRY_AFTER_MIN_S <= self.admission.retry_after_s(self.now_s) <= RETRY_AFTER_MAX_S

    def teardown(self) -> None:
        while self.slots:
            self.leave(choice=0, pause_s=0, served=True)
        assert (self.admission.in_flight, self.admission.queued) == (0, 0)


TestAdmissionMachine = AdmissionMachine.TestCase
TestAdmissionMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
