"""Cutting a streamed answer into events: server-sent events and newline-delimited JSON, from chunks split anywhere.

Only reads along for the meter: the stream itself goes to the buyer untouched. Memory is bounded: an event or line
above the limit is skipped and noted in `overflowed`, and reading goes on behind it.

Source: WHATWG HTML, section 9.2 (line ends LF, CRLF and CR; byte order mark; comments; `data` lines are joined).
"""

import re
from dataclasses import dataclass
from typing import Protocol

MAX_EVENT_BYTES = 1024 * 1024

_LINE_END = re.compile(rb"[\r\n]")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Event:
    """One event; `name` is b"" where the stream gives none."""

    name: bytes
    data: bytes


class Framer(Protocol):
    """Chunks in, events out."""

    @property
    def overflowed(self) -> bool:
        """True once something was too long to read."""
        ...

    def push(self, chunk: bytes) -> None:
        """Add bytes."""
        ...

    def next_event(self) -> Event | None:
        """The next complete event, or None until more bytes come."""
        ...

    def end(self) -> Event | None:
        """After the last byte and the last `next_event`: the event that its sender did not terminate, if any."""
        ...

    def take_rest(self) -> bytes:
        """The bytes that no event has used yet; they are forgotten here."""
        ...


def is_stream(content_type: str) -> bool:
    """Whether an answer of this Content-Type is a stream of events; any other is one plain body."""
    return content_type.partition(";")[0].strip().lower() in {
        "text/event-stream",
        "application/x-ndjson",
        "application/ndjson",
        "application/jsonl",
    }


class LineReader:
    """Lines without their ends; `TOO_LONG` in place of a line above the limit."""

    TOO_LONG = b"\n"
    """No line holds a line end."""

    def __init__(self, max_line_bytes: int) -> None:
        self._max = max_line_bytes
        self._buffer = bytearray()
        self._scanned = 0
        self._after_cr = False
        self._skipping = False
        self.overflowed = False

    def push(self, chunk: bytes) -> None:
        """Add bytes."""
        self._buffer += chunk

    def next_line(self) -> bytes | None:
        """The next complete line, or None until more bytes come."""
        buffer = self._buffer
        if self._after_cr and buffer:  # CR ended a line already, without waiting whether LF follows
            if buffer[0] == 0x0A:
                del buffer[0]
            self._after_cr = False
        found = _LINE_END.search(buffer, self._scanned)
        if found is None:
            self._scanned = len(buffer)
            if len(buffer) > self._max:
                self.overflowed = self._skipping = True
                buffer.clear()
                self._scanned = 0
            return None
        line = bytes(buffer[: found.start()])
        self._after_cr = found[0] == b"\r"
        del buffer[: found.end()]
        self._scanned = 0
        return self._checked(line)

    def end(self) -> bytes:
        """The last line, which has no end."""
        return self._checked(self.take_rest())

    def take_rest(self) -> bytes:
        """The bytes of the unfinished line and all behind it; they are forgotten here."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        self._scanned = 0
        return rest

    def _checked(self, line: bytes) -> bytes:
        if self._skipping or len(line) > self._max:
            self._skipping = False
            self.overflowed = True
            return self.TOO_LONG
        return line


class SseFramer:
    """Server-sent events. `error: …` lines, an old habit of llama.cpp, count as an event named error."""

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._lines = LineReader(max_event_bytes)
        self._max = max_event_bytes
        self._overflowed = False
        self._is_first = True
        self._name = b""
        self._data: list[bytes] = []
        self._size = 0
        self._is_too_long = False

    @property
    def overflowed(self) -> bool:
        """True once something was too long to read."""
        return self._overflowed

    def push(self, chunk: bytes) -> None:
        """Add bytes."""
        self._lines.push(chunk)

    def next_event(self) -> Event | None:
        """The next complete event, or None until more bytes come."""
        while (line := self._lines.next_line()) is not None:
            if self._is_first:
                self._is_first = False
                line = line.removeprefix(_BOM)
            if line:
                self._read_line(line)
            elif (event := self._dispatch()) is not None:
                return event
        self._overflowed |= self._lines.overflowed
        return None

    def end(self) -> Event | None:
        """The event that was not terminated, if any."""
        line = self._lines.end()
        if line:
            self._read_line(line)
        return self._dispatch()

    def take_rest(self) -> bytes:
        """The bytes that no event has used yet."""
        return self._lines.take_rest()

    def _read_line(self, line: bytes) -> None:
        if line == LineReader.TOO_LONG:
            self._is_too_long = True
            return
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"event":
            self._name = value
        elif name in {b"data", b"error"}:
            self._name = b"error" if name == b"error" else self._name
            self._size += len(value)
            self._is_too_long |= self._size > self._max
            if not self._is_too_long:
                self._data.append(value)

    def _dispatch(self) -> Event | None:
        event = Event(self._name, b"\n".join(self._data)) if self._data and not self._is_too_long else None
        self._overflowed |= self._is_too_long
        self._name, self._size, self._is_too_long = b"", 0, False
        self._data.clear()
        return event


class NdjsonFramer:
    """One JSON text per line, as Ollama's own API streams."""

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._lines = LineReader(max_event_bytes)

    @property
    def overflowed(self) -> bool:
        """True once something was too long to read."""
        return self._lines.overflowed

    def push(self, chunk: bytes) -> None:
        """Add bytes."""
        self._lines.push(chunk)

    def next_event(self) -> Event | None:
        """The next complete line, or None until more bytes come."""
        while (line := self._lines.next_line()) is not None:
            if (event := self._event(line)) is not None:
                return event
        return None

    def end(self) -> Event | None:
        """The last line, where its end is missing."""
        return self._event(self._lines.end())

    def take_rest(self) -> bytes:
        """The bytes that no line has used yet."""
        return self._lines.take_rest()

    @staticmethod
    def _event(line: bytes) -> Event | None:
        line = line.strip()
        return Event(b"", line) if line and line != LineReader.TOO_LONG else None
