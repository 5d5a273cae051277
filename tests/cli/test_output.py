import contextlib
import io
import json
from collections.abc import Callable

import pytest

from obol.cli import output

RECORD = {"pay_to": "0x209693Bc6afc0C5328bA36FaF03C514EF312287C", "price": "0.001", "limit": None}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(action: Callable[[], None], *, on_terminal: bool) -> str:
    stream = Terminal() if on_terminal else io.StringIO()
    with contextlib.redirect_stdout(stream):
        action()
    return stream.getvalue()


def test_a_record_is_one_line_of_json_when_piped() -> None:
    text = printed(lambda: output.show(RECORD, title="Offer"), on_terminal=False)

    assert (json.loads(text), text.count("\n")) == (RECORD, 1)


def test_machine_output_is_never_wrapped() -> None:
    text = printed(lambda: output.show({"long": "word " * 500}, title="x"), on_terminal=False)

    assert text.count("\n") == 1


def test_a_record_is_a_panel_on_a_terminal() -> None:
    text = printed(lambda: output.show(RECORD, title="Offer"), on_terminal=True)

    assert "Offer" in text
    assert "pay to" in text
    assert "unknown" in text  # None is not "None", and not empty
    assert "{" not in text


def test_json_is_had_on_a_terminal_too() -> None:
    text = printed(lambda: output.show(RECORD, title="Offer", as_json=True), on_terminal=True)

    assert json.loads(text) == RECORD


def test_rows_are_a_table_or_an_array() -> None:
    rows = [{"model": "a", "price": "1"}, {"model": "b", "price": "2"}]

    assert json.loads(printed(lambda: output.show_table(rows, title="Models"), on_terminal=False)) == rows
    table = printed(lambda: output.show_table(rows, title="Models"), on_terminal=True)
    assert [word in table for word in ("Models", "model", "price", "a", "b")] == [True] * 5


def test_no_rows_are_an_empty_array_or_table() -> None:
    assert json.loads(printed(lambda: output.show_table([], title="Models"), on_terminal=False)) == []
    assert printed(lambda: output.show_table([], title="Models"), on_terminal=True) == "Models: none\n"


def test_a_value_is_shown_as_it_is_and_not_read_as_markup() -> None:
    text = printed(lambda: output.show({"name": "[red]x[/red]"}, title="t"), on_terminal=True)

    assert "[red]x[/red]" in text


@pytest.mark.parametrize("evil", ["\x1b[2J", "\r", "\x07", "\x9b1m", "\u202e"])
def test_a_peers_words_cannot_steer_the_terminal(evil: str, capsys: pytest.CaptureFixture[str]) -> None:
    output.error(f"the seller says {evil}", hint=evil)
    output.note(evil)

    assert evil not in capsys.readouterr().err
    assert evil not in printed(lambda: output.show({"name": evil}, title="t"), on_terminal=True).replace("\r\n", "\n")


def test_a_peers_words_stay_in_their_line() -> None:
    assert output.one_line("insufficient\nobol: paid") == "insufficient obol: paid"
