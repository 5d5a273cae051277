from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obol.core import payment
from obol.core.payment import FINAL, FOUND, PAID, TABLE, Event, State, advance
from obol.errors import IllegalTransitionError

STEPS = [(state, event, following) for state, row in TABLE.items() for event, following in row.items()]
MONEY_MOVED = {Event.SETTLED, Event.SETTLED_UNDELIVERED, *FOUND}


def reachable_from(start: State) -> set[State]:
    found = {start}
    frontier = [start]
    while frontier:
        new = set(TABLE[frontier.pop()].values()) - found
        found |= new
        frontier += new
    return found


def paths(state: State = State.REQUIRED, taken: tuple[tuple[State, Event], ...] = ()) -> Iterator[tuple[Event, ...]]:
    """Every way through the table that takes no step twice, to its end; loops are walked once."""
    steps = [(event, after) for event, after in TABLE[state].items() if (state, event) not in taken]
    if not steps:
        yield tuple(event for _, event in taken)
    for event, after in steps:
        yield from paths(after, (*taken, (state, event)))


ALL_PATHS = list(paths())


def test_every_state_has_a_row() -> None:
    assert set(TABLE) == set(State)


def test_every_event_is_used() -> None:
    assert {event for _, event, _ in STEPS} == set(Event)


def test_every_state_is_reachable() -> None:
    assert reachable_from(State.REQUIRED) == set(State)


def test_only_final_states_end() -> None:
    assert {state for state, row in TABLE.items() if not set(row) - FOUND} == FINAL
    assert set(FINAL) == {State.REJECTED, State.RELEASED, State.SETTLED, State.SETTLE_FAILED, State.WAIVED}


def test_only_what_was_refused_is_found_to_be_paid() -> None:
    found = [(state, event, after) for state, event, after in STEPS if event in FOUND]
    assert found == [
        (State.SETTLE_FAILED, Event.FOUND_PAID, State.SETTLED),
        (State.SETTLE_FAILED, Event.FOUND_PAID_UNDELIVERED, State.OWED),
    ]


def test_every_state_can_still_end() -> None:
    for state in State:
        assert reachable_from(state) & FINAL


def test_no_path_settles_twice() -> None:
    for path in ALL_PATHS:
        assert path.count(Event.SETTLE) <= 1


def test_nothing_after_a_settle_leads_to_another() -> None:
    for state, row in TABLE.items():
        if Event.SETTLE in row:
            later = reachable_from(row[Event.SETTLE])
            assert not [after for after in later if Event.SETTLE in TABLE[after]], state


def test_no_path_moves_money_twice_or_without_a_settle() -> None:
    for path in ALL_PATHS:
        moved = [event for event in path if event in MONEY_MOVED]
        assert len(moved) <= 1
        assert not moved or path.index(Event.SETTLE) < path.index(moved[0])


def test_paid_is_exactly_where_money_has_moved() -> None:
    for path in ALL_PATHS:
        for end in range(len(path) + 1):
            has_moved = bool(MONEY_MOVED & set(path[:end]))
            assert (advance(State.REQUIRED, path[:end]) in PAID) == has_moved


def test_money_that_has_moved_ends_in_an_answer_or_stays_owed() -> None:
    for state in PAID:
        assert reachable_from(state) <= {State.OWED, State.REDEEMING, State.SETTLED}


def test_nothing_is_served_or_settled_before_it_is_claimed() -> None:
    for path in ALL_PATHS:
        for event in (Event.SERVE, Event.SETTLE):
            assert event not in path or path.index(Event.CLAIM) < path.index(event)


def test_nobody_was_asked_for_the_money_of_a_released_payment() -> None:
    for path in ALL_PATHS:
        if advance(State.REQUIRED, path) is State.RELEASED:
            assert Event.SETTLE not in path


@given(st.sampled_from(State), st.lists(st.sampled_from(Event), max_size=6))
def test_advancing_never_leaves_the_table(state: State, events: list[Event]) -> None:
    expected: State | None = state
    for event in events:
        expected = TABLE[expected].get(event) if expected is not None else None

    if expected is None:
        with pytest.raises(IllegalTransitionError):
            advance(state, events)
    else:
        assert advance(state, iter(events)) is expected


def test_an_illegal_step_is_named() -> None:
    with pytest.raises(IllegalTransitionError, match="a payment that is settled cannot settle"):
        advance(State.SETTLED, [Event.SETTLE])


def test_every_state_is_in_the_drawing() -> None:
    assert payment.__doc__ is not None
    assert [state for state in State if state.name not in payment.__doc__] == []


def test_every_state_says_who_owes_what() -> None:
    # The docstrings under members are for readers; the values are what is stored, so they must not change.
    assert [state.value for state in State] == [state.name.lower() for state in State]
