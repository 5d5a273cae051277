"""Text of answers, plain or streamed, as it arrives: for people at a terminal. Pure."""

import json
from collections.abc import Iterator
from typing import Any

from obol.errors import PeerProtocolError

MAX_LINE_BYTES = 4 * 1024 * 1024
_DATA = b"data:"


class ChatText:
    """Fed the bytes of an answer in any split, gives the text in it as soon as it can be read.

    Reads OpenAI's, Anthropic's and Ollama's answers. Reasoning, tool calls and whatever is not text are left out; but a
    plain answer without any text is given as it is, because it has been paid for.
    Raises `PeerProtocolError` for a line that is longer than 4 MiB.
    """

    def __init__(self, content_type: str) -> None:
        kind = content_type.partition(";")[0].strip().lower()
        self._is_stream = kind in ("text/event-stream", "application/x-ndjson")
        self._prefix = _DATA if kind == "text/event-stream" else b""
        self._rest = b""

    def feed(self, chunk: bytes) -> str:
        """The text that this chunk completes; "" where it completes none."""
        self._rest += chunk
        if not self._is_stream:
            return ""
        *lines, self._rest = self._rest.split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            raise PeerProtocolError("the stream has a line that is longer than any event")
        return "".join(map(self._line, lines))

    def end(self) -> str:
        """The text of what is left: all of a plain answer."""
        rest, self._rest = self._rest, b""
        if self._is_stream:
            return self._line(rest)
        return _text(rest) or rest.decode(errors="replace")

    def _line(self, line: bytes) -> str:
        return _text(line[len(self._prefix) :]) if line.startswith(self._prefix) else ""


def _text(document: bytes) -> str:
    try:
        value = json.loads(document)
    except ValueError:  # `[DONE]`, or not an answer
        return ""
    if not isinstance(value, dict):
        return ""
    return "".join([*_choice_texts(value), *_delta_texts(value), *_part_texts(value), *_ollama_texts(value)])


def _choice_texts(value: dict[str, Any]) -> Iterator[str]:
    """OpenAI chat completions and completions, plain and streamed."""
    for choice in _dicts(value.get("choices")):
        message = choice.get("delta") or choice.get("message")
        text = message.get("content") if isinstance(message, dict) else choice.get("text")
        if isinstance(text, str):
            yield text


def _delta_texts(value: dict[str, Any]) -> Iterator[str]:
    """Streamed OpenAI responses and Anthropic messages."""
    delta = value.get("delta")
    if value.get("type") == "content_block_delta" and isinstance(delta, dict):
        delta = delta.get("text")
    elif value.get("type") != "response.output_text.delta":
        return
    if isinstance(delta, str):
        yield delta


def _part_texts(value: dict[str, Any]) -> Iterator[str]:
    """Plain OpenAI responses and Anthropic messages: texts in parts, in messages."""
    messages = _dicts(value.get("output")) if value.get("object") == "response" else [value]
    for message in messages:
        if message.get("type") != "message":
            continue
        for part in _dicts(message.get("content")):
            if part.get("type") in ("text", "output_text") and isinstance(part.get("text"), str):
                yield part["text"]


def _ollama_texts(value: dict[str, Any]) -> Iterator[str]:
    """Ollama's chat and generate, plain and streamed: told from the others by `done`."""
    if not isinstance(value.get("done"), bool):
        return
    message = value.get("message")
    text = message.get("content") if isinstance(message, dict) else value.get("response")
    if isinstance(text, str):
        yield text


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
