import pytest
from hypothesis import given
from hypothesis import strategies as st

from obol.adapters.circuit_breaker import CircuitBreaker
from tests.fakes.clock import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def breaker(clock: FakeClock) -> CircuitBreaker:
    return CircuitBreaker(clock, failures=3, wait_s=5.0)


def fail(breaker: CircuitBreaker, times: int) -> None:
    for _ in range(times):
        breaker.note(is_answered=False)


def test_it_opens_after_so_many_failures_in_a_row(breaker: CircuitBreaker) -> None:
    fail(breaker, 2)
    breaker.note(is_answered=True)
    fail(breaker, 2)
    assert breaker.may_ask()
    fail(breaker, 1)
    assert not breaker.may_ask()


def test_after_the_wait_one_may_ask_and_the_others_wait_on(breaker: CircuitBreaker, clock: FakeClock) -> None:
    fail(breaker, 3)
    clock.advance(5)
    assert [breaker.may_ask() for _ in range(3)] == [True, False, False]
    clock.advance(5)  # whoever asked was cancelled: the next may
    assert breaker.may_ask()


def test_an_answer_closes_it_and_a_failure_keeps_it_open(breaker: CircuitBreaker, clock: FakeClock) -> None:
    fail(breaker, 3)
    clock.advance(5)
    assert breaker.may_ask()
    fail(breaker, 1)
    assert not breaker.may_ask()
    clock.advance(5)
    assert breaker.may_ask()
    breaker.note(is_answered=True)
    assert [breaker.may_ask() for _ in range(3)] == [True, True, True]


@given(st.lists(st.one_of(st.booleans(), st.floats(0.1, 10))))
def test_it_is_never_open_for_longer_than_the_wait(steps: list[bool | float]) -> None:
    clock = FakeClock()
    breaker = CircuitBreaker(clock, failures=2, wait_s=3.0)
    for step in steps:
        if isinstance(step, bool):
            breaker.note(is_answered=step)
        else:
            clock.advance(step)
    clock.advance(3.0)
    assert breaker.may_ask()
