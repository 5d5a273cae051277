"""Text of chat answers, plain or streamed, as it arrives: for people at a terminal. Pure."""

import json
from collections.abc import Iterator
from typing import Any

from obol.errors import PeerProtocolError

MAX_LINE_BYTES = 4 * 1024 * 1024
_DATA = b"data:"


class ChatText:
    """Fed the bytes of an answer in any split, gives the text in it as soon as it can be read.

    Reads OpenAI chat completions and completions. Reasoning, tool calls and whatever is not text are left out.
    Raises `PeerProtocolError` for a line that is longer than 4 MiB.
    """

    def __init__(self, content_type: str) -> None:
        self._is_stream = content_type.partition(";")[0].strip().lower() == "text/event-stream"
        self._rest = b""

    def feed(self, chunk: bytes) -> str:
        """The text that this chunk completes; "" where it completes none."""
        self._rest += chunk
        if not self._is_stream:
            return ""
        *lines, self._rest = self._rest.split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            raise PeerProtocolError("the stream has a line that is longer than any event")
        return "".join(_text(line[len(_DATA) :]) for line in lines if line.startswith(_DATA))

    def end(self) -> str:
        """The text of what is left: all of a plain answer."""
        rest, self._rest = self._rest, b""
        if self._is_stream:
            return _text(rest[len(_DATA) :]) if rest.startswith(_DATA) else ""
        return _text(rest)


def _text(document: bytes) -> str:
    try:
        value = json.loads(document)
    except ValueError:  # `[DONE]`, or not an answer
        return ""
    return "".join(_choice_texts(value))


def _choice_texts(value: Any) -> Iterator[str]:
    choices = value.get("choices") if isinstance(value, dict) else None
    for choice in choices if isinstance(choices, list) else ():
        if not isinstance(choice, dict):
            continue
        message = choice.get("delta") or choice.get("message")
        text = message.get("content") if isinstance(message, dict) else choice.get("text")
        if isinstance(text, str):
            yield text
