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
        ({"type": "message", "content": [{"type": "text", "text": "hi"}, {"type": "tool_use"}, 3]}, "hi"),
        (
            {
                "object": "response",
                "output": [
                    {"type": "reasoning", "content": [{"type": "text", "text": "no"}]},
                    {"type": "message", "content": [{"type": "output_text", "text": "hi"}]},
                ],
            },
            "hi",
        ),
        ({"done": True, "message": {"content": "hi"}}, "hi"),
        ({"done": True, "response": "hi"}, "hi"),
    ],
)
def test_a_plain_answer_gives_its_text(answer: object, expected: str) -> None:
    text = ChatText("application/json")

    assert (text.feed(json.dumps(answer).encode()), text.end()) == ("", expected)


@pytest.mark.parametrize(
    "answer", [{"choices": [{"message": {"content": None}}]}, {"choices": [None, 3]}, {"choices": 3}, {"data": [1]}, []]
)
def test_a_plain_answer_without_text_is_given_as_it_is(answer: object) -> None:
    text = ChatText("application/json")

    assert (text.feed(json.dumps(answer).encode()), text.end()) == ("", json.dumps(answer))


RESPONSES = b"""data: {"type": "response.output_text.delta", "delta": "hi"}

data: {"type": "response.reasoning_text.delta", "delta": "no"}

data: {"type": "response.completed", "response": {"object": "response", "output": []}}

"""
MESSAGES = b"""data: {"type": "message_start", "message": {"type": "message", "content": []}}

data: {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "hi"}}

data: {"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "no"}}

"""
OLLAMA = b"""{"message": {"content": "h"}, "done": false}
{"response": "i", "done": false}
{"done": true}
"""


@pytest.mark.parametrize(
    ("content_type", "stream"),
    [("text/event-stream", RESPONSES), ("text/event-stream", MESSAGES), ("application/x-ndjson", OLLAMA)],
    ids=["responses", "messages", "ollama"],
)
def test_streams_of_the_other_apis_give_their_text(content_type: str, stream: bytes) -> None:
    text = ChatText(content_type)

    assert text.feed(stream) + text.end() == "hi"


def test_a_line_without_end_is_not_collected_for_ever() -> None:
    with pytest.raises(PeerProtocolError):
        ChatText("text/event-stream").feed(b"x" * (MAX_LINE_BYTES + 1))
