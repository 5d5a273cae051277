from obol.facilitator import told
from obol.facilitator.told import Told


def test_the_first_asker_hears_it_and_nobody_else() -> None:
    heard = Told()
    assert heard.may_hear("payment", "a")
    assert not heard.may_hear("payment", "b")
    assert not heard.may_hear("payment", "")
    assert heard.may_hear("another", "b")


def test_who_names_itself_may_ask_again() -> None:
    heard = Told()
    assert [heard.may_hear("payment", "a") for _ in range(3)] == [True, True, True]


def test_who_does_not_is_told_once() -> None:
    heard = Told()
    assert [heard.may_hear("payment", "") for _ in range(3)] == [True, False, False]


def test_what_is_remembered_is_bounded() -> None:
    heard = Told()
    for number in range(told.REMEMBERED + 10):
        heard.may_hear(str(number), "")
    assert len(heard._askers) == told.REMEMBERED


def test_the_first_to_ask_by_name_is_the_one_to_be_told() -> None:
    heard = Told()
    heard.asks("payment", "seller")
    heard.asks("payment", "observer")
    assert not heard.may_hear("payment", "")
    assert not heard.may_hear("payment", "observer")
    assert heard.may_hear("payment", "seller")


def test_who_asked_and_was_refused_keeps_nobody_from_being_told() -> None:
    heard = Told()
    assert heard.asks("payment", "stranger")
    assert not heard.asks("payment", "seller")
    assert not heard.asks("payment", "stranger")  # whoever asks by that name now did not make it the one to be told
    heard.forget("payment")
    assert heard.may_hear("payment", "seller")


def test_who_asks_without_a_name_owns_nothing() -> None:
    heard = Told()
    assert not heard.asks("payment", "")
    assert heard.may_hear("payment", "seller")
