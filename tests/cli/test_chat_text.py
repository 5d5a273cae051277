import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obol.cli.chat_text import MAX_LINE_BYTES, ChatText
from obol.errors import PeerProtocolError


def event(text: str) -> bytes:
    return f"data: {json.dumps({'choices': [{'delta': {'content': text}}]}, ensure_ascii=False)}\n\n".encode()


@given(st.lists(st.text(), max_size=8), st.integers(1, 30))
def test_any_split_of_a_stream_gives_the_same_text(words: list[str], size: int) -> None:
    stream = b": hello\n\n" + b"".join(map(event, words)) + b"data: [DONE]\n\n"
    text = ChatText("text/event-stream; charset=utf-8")

    got = "".join(text.feed(stream[at : at + size]) for at in range(0, len(stream), size)) + text.end()

    assert got == "".join(words)


def test_a_word_is_there_as_soon_as_its_event_is() -> None:
    assert ChatText("text/event-stream").feed(event("one") + event("two")[:10]) == "one"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"choices": [{"message": {"content": "hi"}}]}, "hi"),
        ({"choices": [{"text": "hi"}]}, "hi"),
        ({"choices": [{"message": {"content": None}}]}, ""),
        ({"choices": [None, 3]}, ""),
        ({"choices": 3}, ""),
        ([], ""),
    ],
)
def test_a_plain_answer_gives_its_text(answer: object, expected: str) -> None:
    text = ChatText("application/json")

    assert (text.feed(json.dumps(answer).encode()), text.end()) == ("", expected)


def test_a_line_without_end_is_not_collected_for_ever() -> None:
    with pytest.raises(PeerProtocolError):
        ChatText("text/event-stream").feed(b"x" * (MAX_LINE_BYTES + 1))
