from obol.core.payment import State
from obol.core.state_words import STATE_WORDS


def test_every_state_has_its_words() -> None:
    assert list(STATE_WORDS) == list(State)


def test_of_an_owed_answer_it_says_who_owes_it_and_when_it_is_served() -> None:
    assert "you owe an answer" in STATE_WORDS[State.OWED]
    assert "same payment comes again" in STATE_WORDS[State.OWED]
