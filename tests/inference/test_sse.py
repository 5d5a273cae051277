"""Framing of streams: any split, every line end, bounded memory."""

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obol.inference.sse import Event, Framer, NdjsonFramer, SseFramer, is_stream


def read(framer: Framer, chunks: Iterable[bytes]) -> list[Event]:
    events: list[Event] = []
    for chunk in chunks:
        framer.push(chunk)
        events.extend(iter(framer.next_event, None))
    last = framer.end()
    return events if last is None else [*events, last]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_every_line_end_is_understood(end: bytes) -> None:
    stream = end.join([b"event: a", b"data: 1", b"", b"data:2", b"", b""])
    assert read(SseFramer(), [stream]) == [Event(b"a", b"1"), Event(b"", b"2")]


def test_data_lines_are_joined_and_one_blank_is_removed() -> None:
    assert read(SseFramer(), [b"data:  a\ndata:b\ndata\n\n"]) == [Event(b"", b" a\nb\n")]


def test_comments_ids_and_pings_are_not_events() -> None:
    assert read(SseFramer(), [b": ping\n\n:\n\nid: 3\nretry: 5\n\nevent: x\n\n"]) == []


def test_a_byte_order_mark_is_skipped() -> None:
    assert read(SseFramer(), [b"\xef", b"\xbb\xbfdata: 1\n\n"]) == [Event(b"", b"1")]


def test_an_event_is_there_as_soon_as_its_last_byte_is() -> None:
    framer = SseFramer()
    framer.push(b"data: 1\r\n\r")
    assert framer.next_event() == Event(b"", b"1")
    framer.push(b"\ndata: 2\n\n")
    assert framer.next_event() == Event(b"", b"2")


def test_an_error_line_is_an_error_event() -> None:
    assert read(SseFramer(), [b'error: {"code":500}\n\n']) == [Event(b"error", b'{"code":500}')]


def test_an_event_without_its_end_comes_at_the_end() -> None:
    assert read(SseFramer(), [b"data: 1\n\ndata: [DO", b"NE]"]) == [Event(b"", b"1"), Event(b"", b"[DONE]")]
    assert read(NdjsonFramer(), [b'{"a":1}\r\n\n{"b', b'":2}']) == [Event(b"", b'{"a":1}'), Event(b"", b'{"b":2}')]


def test_an_endless_line_does_not_grow_memory_and_reading_goes_on_behind_it() -> None:
    framer = SseFramer(max_event_bytes=100)
    framer.push(b"data: ")
    for _ in range(1000):
        framer.push(b"x" * 50)
        assert framer.next_event() is None
        assert len(framer._lines._buffer) <= 150
    assert framer.overflowed
    assert read(framer, [b"\n\n: comment\ndata: 1\n\n"]) == [Event(b"", b"1")]


def test_an_event_of_too_many_lines_is_skipped() -> None:
    framer = SseFramer(max_event_bytes=100)
    assert read(framer, [b"data: 0123456789\n" * 1000, b"\ndata: 1\n\n"]) == [Event(b"", b"1")]
    assert framer.overflowed


def test_a_line_of_json_that_is_too_long_is_skipped() -> None:
    framer = NdjsonFramer(max_event_bytes=100)
    assert read(framer, [b"x" * 150, b"\n1\n"]) == [Event(b"", b"1")]
    assert framer.overflowed


def cut(data: bytes, points: list[int]) -> list[bytes]:
    borders = [0, *sorted(point % (len(data) + 1) for point in points), len(data)]
    return [data[start:end] for start, end in pairwise(borders)]


pieces = st.sampled_from(
    [
        b"data: 1",
        b"data:",
        b"data: " + b"y" * 70,
        b"event: e",
        b": c",
        b"error: x",
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\n",
        b"\xef\xbb\xbf",
        b"z",
    ]
)


@given(st.lists(pieces, max_size=20), st.lists(st.integers(0, 10_000), max_size=8))
def test_any_split_of_a_stream_gives_the_same_events(parts: list[bytes], points: list[int]) -> None:
    data = b"".join(parts)
    for make in (lambda: SseFramer(100), lambda: NdjsonFramer(100)):
        framer: Framer = make()
        whole: Framer = make()
        assert read(framer, cut(data, points)) == read(whole, [data])
        assert framer.overflowed == whole.overflowed


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("text/event-stream", True),
        ("Text/Event-Stream; charset=utf-8", True),
        ("application/x-ndjson", True),
        ("application/json", False),
        ("", False),
    ],
)
def test_streams_are_told_by_their_content_type(content_type: str, expected: bool) -> None:
    assert is_stream(content_type) is expected
