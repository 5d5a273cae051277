"""Metering an answer while it passes: when output starts, whether it ended, and what usage the server reported.

Until the first output every event is read; from then on only a bounded tail is kept, and it is read when somebody
asks. So a chunk costs a fraction of a microsecond, a stream of any length a few kilobytes, and the bytes that the
buyer gets are never touched.

What is unknown stays None: no usage is invented from chunks, and a "usage" inside the model's text is not believed.
"""

import json
import re
from collections import deque
from dataclasses import dataclass

from obol.core.offer import Api
from obol.core.usage import UNKNOWN_USAGE, Usage
from obol.inference.events import NOTHING, Seen, read_event, read_plain, usage_of
from obol.inference.request import OLLAMA_APIS
from obol.inference.sse import Framer, NdjsonFramer, SseFramer

TAIL_BYTES = 16 * 1024
"""Kept of a stream once output was seen: more than the last events of every server need."""

PLAIN_BYTES = 1024 * 1024
"""Kept of a plain answer. A longer one is output without being read; its usage is taken from its end."""

_BLANK_LINE = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_LINE_END = re.compile(rb"[\r\n]+")
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_TELLING = re.compile(
    rb'"(?:usage|timings)"\s*:\s*\{|"(?:finish|stop)_reason"\s*:\s*"|\[DONE\]|"message_stop"'
    rb'|"response\.(?:completed|incomplete)"|"done"\s*:\s*true|_count"'
)
"""What an event has that can say something about usage or end; the text of a model cannot hold it unescaped."""
_MAX_CANDIDATES = 8


@dataclass(frozen=True, slots=True)
class PlainAnswer:
    """What a whole plain answer is: `has_output` means worth money, so not an error, not nonsense, not empty."""

    has_output: bool
    usage: Usage


def read_plain_answer(api: Api, body: bytes) -> PlainAnswer:
    """Judge a whole plain answer."""
    seen = read_plain(api, body)
    return PlainAnswer(seen.has_output, _merge(seen.timings, seen.usage))


class AnswerMeter:
    """Reads along one answer. `stream` is what the answer is (see `sse.is_stream`), not what was asked for.

    `feed` every chunk, then `end` after the last one of a complete body. A plain answer is judged at its end only.
    """

    def __init__(self, api: Api, stream: bool, *, choices: int = 1) -> None:
        self._api = api
        self._framer: Framer | None = None
        if stream:
            self._framer = NdjsonFramer() if api in OLLAMA_APIS else SseFramer()
        self._tail = _Tail(TAIL_BYTES if stream else PLAIN_BYTES)
        self._is_single = choices == 1
        self._before = NOTHING
        """Everything up to the event of the first output."""
        self._after: Seen | None = NOTHING
        """What the tail says; None when it has to be read again."""

    @property
    def has_output(self) -> bool:
        """True from the first real output on."""
        return self._before.has_output

    @property
    def failed(self) -> bool:
        """True when an error came before any output: nothing is owed for this answer."""
        return self._before.is_failed and not self._before.has_output

    @property
    def finished(self) -> bool:
        """True when the answer said that it is complete."""
        return self._before.is_finished or self._read_tail().is_finished

    @property
    def gave_up(self) -> bool:
        """True when an event before the first output was too long to be read: output may have been missed."""
        return self._framer is not None and self._framer.overflowed and not self._before.has_output

    def usage(self) -> Usage:
        """The last usage reported so far."""
        after = self._read_tail()
        reported = _merge(self._before.usage, after.usage)
        if not self._is_single:  # llama.cpp's timings are those of one completion
            return reported
        return _merge(_merge(self._before.timings, after.timings), reported)

    def feed(self, chunk: bytes) -> None:
        """Read the next bytes of the answer."""
        if self._before.has_output or self._framer is None:
            self._tail.append(chunk)
            self._after = None
            if self._framer is None and self._tail.is_cut:
                self._before = Seen(has_output=True)
            return
        self._framer.push(chunk)
        for event in iter(self._framer.next_event, None):
            seen = read_event(self._api, event)
            self._before = _add(self._before, seen)
            if seen.has_output:
                self._tail.append(self._framer.take_rest())
                self._after = None
                return

    def end(self) -> None:
        """The body ended cleanly: what its sender left unterminated counts too. Idempotent."""
        if self._framer is None:
            if not self._tail.is_cut:
                self._before = read_plain(self._api, self._tail.read())
        elif not self._before.has_output and (event := self._framer.end()) is not None:
            self._before = _add(self._before, read_event(self._api, event))

    def _read_tail(self) -> Seen:
        if self._after is None:
            if self._framer is not None:
                self._after = _read_tail(self._api, self._tail.read(), is_cut=self._tail.is_cut)
            elif self._tail.is_cut:
                self._after = Seen(usage=_usage_from_end(self._api, self._tail.read().rstrip(), depth=1))
            else:
                self._after = NOTHING  # judged at the end
        return self._after


class _Tail:
    """The last bytes of a stream, as the chunks that they came in: nothing is copied until they are read."""

    def __init__(self, max_bytes: int) -> None:
        self._max = max_bytes
        self._chunks: deque[bytes] = deque()
        self._kept = 0
        self.is_cut = False

    def append(self, chunk: bytes) -> None:
        chunks = self._chunks
        chunks.append(chunk)
        self._kept += len(chunk)
        if self._kept > self._max:
            self.is_cut = True
            while self._kept - len(chunks[0]) >= self._max:
                self._kept -= len(chunks.popleft())

    def read(self) -> bytes:
        return b"".join(self._chunks)[-self._max :]


def _read_tail(api: Api, tail: bytes, *, is_cut: bool) -> Seen:
    """What the complete events of the tail say, and the usage at the end of the event that the tail begins in."""
    if not is_cut:
        return _read_events(api, tail)
    boundary = (_LINE_END if api in OLLAMA_APIS else _BLANK_LINE).search(tail)
    if boundary is None:
        return NOTHING
    partial = _LINE_END.split(tail[: boundary.start()])[-1]
    usage = _usage_from_end(api, partial, depth=2 if api is Api.RESPONSES else 1)
    # Responses and Ollama report usage in their last event only
    is_last = usage != UNKNOWN_USAGE and (api is Api.RESPONSES or api in OLLAMA_APIS)
    return _add(Seen(is_finished=is_last, usage=usage), _read_events(api, tail[boundary.end() :]))


def _read_events(api: Api, data: bytes) -> Seen:
    """What the events say, from the first one on that can say something."""
    telling = _TELLING.search(data)
    if telling is None:
        return NOTHING
    line_ends = (b"\n", b"\r") if api in OLLAMA_APIS else (b"\n\n", b"\r\n\r\n", b"\r\r")
    data = data[max(0, *(data.rfind(end, 0, telling.start()) for end in line_ends)) :]
    framer: Framer = NdjsonFramer() if api in OLLAMA_APIS else SseFramer()
    framer.push(data)
    seen = NOTHING
    for event in iter(framer.next_event, None):
        seen = _add(seen, read_event(api, event))
    last = framer.end()
    return seen if last is None else _add(seen, read_event(api, last))


def _usage_from_end(api: Api, end: bytes, *, depth: int) -> Usage:
    """The usage in the end of a JSON text whose beginning is lost; `depth`: how many braces enclose its members."""
    if api not in OLLAMA_APIS:
        found = _member_from_end(end, b'"usage"', depth)
        return usage_of(api, found) if isinstance(found, dict) else UNKNOWN_USAGE
    names = ("prompt_eval_count", "eval_count")
    return usage_of(api, {name: _member_from_end(end, b'"%b"' % name.encode(), depth) for name in names})


def _member_from_end(end: bytes, quoted_name: bytes, depth: int) -> object:
    """The value of the last member of that name at that depth, or None.

    Inside a JSON string a quote is always escaped, so a quoted name without a backslash before it is a real one.
    """
    position = len(end)
    for _ in range(_MAX_CANDIDATES):
        position = end.rfind(quoted_name, 1, position)
        if position < 0:
            return None
        value = end[position + len(quoted_name) :].lstrip()
        if end[position - 1 : position] != b"\\" and value[:1] == b":" and _enclosing(end[position:]) == depth:
            return _first_value(value[1:].lstrip())
    return None


def _enclosing(end: bytes) -> int:
    """How many braces that were opened before `end` are closed in it; -1 when the name is inside an array."""
    bare = _STRING.sub(b"", end)
    return bare.count(b"}") - bare.count(b"{") if bare.count(b"]") == bare.count(b"[") else -1


def _first_value(text: bytes) -> object:
    try:
        return json.JSONDecoder().raw_decode(text.decode(errors="replace"))[0]
    except (ValueError, RecursionError):
        return None


def _add(first: Seen, then: Seen) -> Seen:
    if then is NOTHING:
        return first
    return Seen(
        has_output=first.has_output or then.has_output,
        is_finished=first.is_finished or then.is_finished,
        is_failed=first.is_failed or then.is_failed,
        usage=_merge(first.usage, then.usage),
        timings=_merge(first.timings, then.timings),
    )


def _merge(first: Usage, then: Usage) -> Usage:
    """Field by field, the later one where it says something."""
    return Usage(
        then.input_tokens if then.input_tokens is not None else first.input_tokens,
        then.output_tokens if then.output_tokens is not None else first.output_tokens,
    )
