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
