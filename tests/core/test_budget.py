import contextlib

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from obol.core.budget import Budget
from obol.errors import BudgetExceededError


def test_a_quote_above_the_limit_per_request_is_refused() -> None:
    budget = Budget(max_per_request_atomic=100, total_atomic=None)

    budget.reserve(100)
    with pytest.raises(BudgetExceededError, match=r"101 .* 100"):
        budget.reserve(101)
    assert budget.reserved_atomic == 100


def test_what_is_held_counts_towards_the_total() -> None:
    budget = Budget(max_per_request_atomic=None, total_atomic=100)
    budget.reserve(60)

    with pytest.raises(BudgetExceededError, match=r"41 .* 40 are left"):
        budget.reserve(41)
    budget.reserve(40)


def test_what_is_given_back_can_be_spent_and_what_is_spent_cannot() -> None:
    budget = Budget(max_per_request_atomic=None, total_atomic=100)
    budget.reserve(100)
    budget.release(30)
    budget.debit(70)
    assert (budget.spent_atomic, budget.reserved_atomic) == (70, 0)

    budget.reserve(30)
    with pytest.raises(BudgetExceededError):
        budget.reserve(1)


def test_no_limit_is_no_limit() -> None:
    budget = Budget(None, None)
    budget.reserve(2**256)
    budget.debit(2**256)

    assert budget.spent_atomic == 2**256


@pytest.mark.parametrize("method", ["release", "debit"])
def test_more_than_is_held_is_a_bug_and_changes_nothing(method: str) -> None:
    budget = Budget(None, 100)
    budget.reserve(10)

    with pytest.raises(ValueError, match="more released than reserved"):
        getattr(budget, method)(11)
    assert (budget.spent_atomic, budget.reserved_atomic) == (0, 10)


class BudgetMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.budget = Budget(None, None)
        self.held: list[int] = []
        self.spent: list[int] = []

    @initialize(per_request=st.none() | st.integers(0, 60), total=st.integers(0, 100), spent=st.integers(0, 50))
    def start(self, per_request: int | None, total: int, spent: int) -> None:
        self.budget = Budget(per_request, max(total, spent), spent)
        self.spent = [spent]

    @rule(amount_atomic=st.integers(0, 80))
    def reserve(self, amount_atomic: int) -> None:
        with contextlib.suppress(BudgetExceededError):
            self.budget.reserve(amount_atomic)
            self.held.append(amount_atomic)
            return
        limit, total = self.budget.max_per_request_atomic, self.budget.total_atomic
        assert total is not None
        assert (limit is not None and amount_atomic > limit) or amount_atomic + sum(self.held) + sum(self.spent) > total

    @precondition(lambda self: self.held)
    @rule(choice=st.integers(0, 99))
    def debit(self, choice: int) -> None:
        amount_atomic = self.held.pop(choice % len(self.held))
        self.budget.debit(amount_atomic)
        self.spent.append(amount_atomic)

    @precondition(lambda self: self.held)
    @rule(choice=st.integers(0, 99))
    def release(self, choice: int) -> None:
        self.budget.release(self.held.pop(choice % len(self.held)))

    @invariant()
    def spent_and_reserved_never_pass_the_total(self) -> None:
        assert (self.budget.spent_atomic, self.budget.reserved_atomic) == (sum(self.spent), sum(self.held))
        assert self.budget.total_atomic is None or sum(self.spent) + sum(self.held) <= self.budget.total_atomic


TestBudgetMachine = BudgetMachine.TestCase
TestBudgetMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize("step", ["reserve", "debit", "release"])
def test_a_negative_amount_is_a_bug_of_the_caller(step: str) -> None:
    budget = Budget(max_per_request_atomic=None, total_atomic=None)
    with pytest.raises(ValueError, match=r"negative|released"):
        getattr(budget, step)(-1)
