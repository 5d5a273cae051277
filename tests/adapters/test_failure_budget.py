"""How many settlements of one payer may fail."""

from obol.adapters import failure_budget
from obol.adapters.failure_budget import FAILURES, WINDOW_S, FailureBudget
from tests.fakes.clock import FakeClock


def test_so_many_may_fail_in_a_window_and_no_more() -> None:
    clock = FakeClock()
    budget = FailureBudget(clock)
    for number in range(FAILURES):
        assert not budget.is_spent("a")
        budget.note_failure("a", str(number))
    assert budget.is_spent("a")
    assert not budget.is_spent("b")
    clock.advance(WINDOW_S)
    assert not budget.is_spent("a")


def test_the_window_slides() -> None:
    clock = FakeClock()
    budget = FailureBudget(clock)
    for number in range(FAILURES):
        budget.note_failure("a", str(number))
        clock.advance(WINDOW_S / 2)
    assert not budget.is_spent("a")  # the first is long ago
    budget.note_failure("a", "one more")
    assert not budget.is_spent("a")


def test_a_payment_counts_once() -> None:
    budget = FailureBudget(FakeClock())
    for _ in range(2 * FAILURES):
        budget.note_failure("a", "the same")
    assert not budget.is_spent("a")


def test_what_is_remembered_is_bounded() -> None:
    budget = FailureBudget(FakeClock())
    for number in range(failure_budget.REMEMBERED + 10):
        budget.note_failure(str(number), "")
    assert len(budget._failed_s) == failure_budget.REMEMBERED
