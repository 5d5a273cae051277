"""What became of payments, remembered."""

from dataclasses import replace

import pytest

from obol.adapters.fate_memory import FINAL_AFTER_S, FateMemory, Question, Seen
from obol.x402.authorization import parse_authorization
from obol.x402.witness import EXPIRED, Fate, Moved, NeverMoves, StillOpen, Unconfirmed, Used
from tests.adapters.payments import PRICE_ATOMIC, requirements, unsigned

AUTHORIZATION = parse_authorization(unsigned(requirements()).payload)
MOVED = Moved("0x" + "ab" * 32, 3)


def question(number: int = 1, price_atomic: int = PRICE_ATOMIC) -> Question:
    authorization = replace(AUTHORIZATION, nonce=f"0x{number:064x}")
    return Question.of(authorization, requirements(price_atomic))


@pytest.mark.parametrize("fate", [MOVED, NeverMoves(EXPIRED)])
def test_what_is_long_final_is_remembered(fate: Fate) -> None:
    memory = FateMemory()
    memory.keep(question(), Seen(fate, FINAL_AFTER_S), 0)
    assert memory.recall(question(), 1) == fate
    assert memory.recall(question(2), 1) is None
    assert memory.recall(question(1, PRICE_ATOMIC + 1), 1) is None


@pytest.mark.parametrize("fate", [StillOpen(), Unconfirmed(), Used()])
def test_what_is_not_final_is_not_remembered(fate: Fate) -> None:
    memory = FateMemory()
    memory.keep(question(), Seen(fate, FINAL_AFTER_S), 0)
    assert memory.recall(question(), 0) is None


@pytest.mark.parametrize("fate", [MOVED, NeverMoves(EXPIRED)])
def test_what_a_reorganisation_could_take_back_is_not_remembered(fate: Fate) -> None:
    memory = FateMemory()
    memory.keep(question(), Seen(fate, FINAL_AFTER_S - 1), 0)
    assert memory.recall(question(), 10 * FINAL_AFTER_S) is None


def test_what_moved_goes_on_getting_older() -> None:
    memory = FateMemory()
    memory.keep(question(), Seen(MOVED, 700), 1000)
    recalled = memory.recall(question(), 1250)
    assert isinstance(recalled, Moved)
    assert recalled.age_s == 950


def test_the_one_that_was_asked_about_longest_ago_is_forgotten() -> None:
    memory = FateMemory(most=2)
    for number in (1, 2):
        memory.keep(question(number), Seen(MOVED, 700), 0)
    memory.recall(question(1), 0)
    memory.keep(question(3), Seen(MOVED, 700), 0)
    assert [memory.recall(question(number), 0) is not None for number in (1, 2, 3)] == [True, False, True]
