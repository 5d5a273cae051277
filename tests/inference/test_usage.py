"""Metering: first output, end, failure and usage of every API, whatever the chunks."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from obol.core.offer import Api
from obol.core.usage import UNKNOWN_USAGE, Usage
from obol.inference.usage import PLAIN_BYTES, TAIL_BYTES, AnswerMeter, read_plain_answer


def sse(*messages: Any, done: bool = False, end: str = "\n") -> bytes:
    lines = []
    for message in messages:
        name = f"event: {message['type']}{end}" if isinstance(message, dict) and "type" in message else ""
        lines.append(f"{name}data: {json.dumps(message)}{end}{end}")
    return ("".join(lines) + (f"data: [DONE]{end}{end}" if done else "")).encode()


def ndjson(*messages: Any) -> bytes:
    return "".join(json.dumps(message) + "\n" for message in messages).encode()


def delta(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}], "usage": None}


ROLE = delta(role="assistant", content=None)
HELLO = delta(content="hello")
STOP: dict[str, Any] = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
USAGE: dict[str, Any] = {"choices": [], "usage": {"prompt_tokens": 21, "completion_tokens": 3, "total_tokens": 24}}
# recorded from llama.cpp's server, shortened
LLAMA_STOP = STOP | {"timings": {"cache_n": 20, "prompt_n": 1, "prompt_ms": 3.9, "predicted_n": 3, "predicted_ms": 0.7}}
RESPONSES: list[dict[str, Any]] = [
    {"type": "response.created", "response": {"status": "in_progress", "error": None}},
    {"type": "response.output_item.added", "item": {"type": "message", "content": [], "role": "assistant"}},
    {"type": "response.content_part.added", "part": {"type": "output_text", "text": ""}},
    {"type": "response.output_text.delta", "delta": "J"},
    {"type": "response.output_text.done", "text": "J"},
    {
        "type": "response.completed",
        "response": {
            "status": "completed",
            "output": [{"type": "message", "content": [{"type": "output_text", "text": "J"}]}],
            "usage": {"input_tokens": 21, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 20}},
            "metadata": {"usage": "}{"},
        },
    },
]
MESSAGES: list[dict[str, Any]] = [
    {
        "type": "message_start",
        "message": {"usage": {"cache_read_input_tokens": 20, "input_tokens": 1, "output_tokens": 0}},
    },
    {"type": "ping"},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "J"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}, "usage": {"output_tokens": 2}},
    {"type": "message_stop"},
]
OLLAMA: list[dict[str, Any]] = [
    {"model": "m", "message": {"role": "assistant", "content": ""}, "done": False},
    {"model": "m", "message": {"role": "assistant", "content": "J"}, "done": False},
    {
        "model": "m",
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "prompt_eval_count": 21,
        "eval_count": 2,
    },
]
STREAMS: dict[Api, bytes] = {
    Api.CHAT: sse(ROLE, HELLO, STOP, USAGE, done=True),
    Api.COMPLETIONS: sse(
        {"choices": [{"text": "", "index": 0}]},
        {"choices": [{"text": "a", "finish_reason": "stop"}]} | USAGE,
        done=True,
    ).replace(b'"choices": [], ', b""),
    Api.RESPONSES: sse(*RESPONSES),
    Api.MESSAGES: sse(*MESSAGES),
    Api.OLLAMA_CHAT: ndjson(*OLLAMA),
}


def meter(api: Api, stream: bytes, *, choices: int = 1) -> AnswerMeter:
    found = AnswerMeter(api, True, choices=choices)
    found.feed(stream)
    found.end()
    return found


def chat(*messages: Any, **options: Any) -> AnswerMeter:
    return meter(Api.CHAT, sse(*messages), **options)


def test_a_stream_of_chat_is_metered() -> None:
    found = meter(Api.CHAT, STREAMS[Api.CHAT])
    assert (found.has_output, found.finished, found.failed, found.usage()) == (True, True, False, Usage(21, 3))


@pytest.mark.parametrize("api", [Api.RESPONSES, Api.MESSAGES, Api.OLLAMA_CHAT])
def test_streams_of_other_apis_are_metered(api: Api) -> None:
    found = meter(api, STREAMS[api])
    assert (found.has_output, found.finished, found.failed, found.usage()) == (True, True, False, Usage(21, 2))


@pytest.mark.parametrize(
    "fields",
    [
        {"content": "a"},
        {"reasoning": "a"},
        {"reasoning_content": "a"},
        {"refusal": "no"},
        {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": ""}}]},
        {"function_call": {"name": "f"}},
    ],
)
def test_what_a_buyer_pays_for_is_output(fields: dict[str, Any]) -> None:
    assert chat(ROLE, delta(**fields)).has_output


def test_log_probabilities_are_output() -> None:
    assert chat({"choices": [{"delta": {}, "logprobs": {"content": [{"token": "a", "logprob": -1}]}}]}).has_output


@pytest.mark.parametrize(
    "message",
    [
        ROLE,
        delta(),
        delta(content=""),
        delta(tool_calls=[]),
        STOP,
        USAGE,
        {},
        [],
        None,
        "a",
        {"choices": None},
        {"choices": [1]},
        {"choices": [{"delta": None, "logprobs": None}]},
    ],
)
def test_what_brings_nothing_is_not_output(message: Any) -> None:
    assert not chat(message).has_output


@pytest.mark.parametrize(
    "raw", [b": ping\n\n", b"data: {broken\n\n", b"data: [DONE]\n\n", b"\n\n\n", b"data: " + b"[" * 5000]
)
def test_noise_is_not_output(raw: bytes) -> None:
    assert not meter(Api.CHAT, raw).has_output


def test_output_is_seen_with_the_byte_that_completes_it() -> None:
    found = AnswerMeter(Api.CHAT, True)
    stream = sse(ROLE, HELLO)
    found.feed(stream[:-1])
    assert not found.has_output
    found.feed(stream[-1:])
    assert found.has_output


@pytest.mark.parametrize(
    ("api", "stream"),
    [
        (Api.CHAT, sse(ROLE, {"error": {"message": "no memory", "code": 500}}, done=True)),
        (Api.CHAT, b'error: {"code":500}\n\n'),
        (Api.CHAT, b"event: error\ndata: out of memory\n\n"),
        (Api.MESSAGES, sse(MESSAGES[0], {"type": "error", "error": {"type": "overloaded_error"}})),
        (Api.RESPONSES, sse(RESPONSES[0], {"type": "response.failed", "response": {"status": "failed"}})),
        (Api.RESPONSES, sse({"type": "error", "message": "x"})),
        (Api.OLLAMA_CHAT, ndjson({"error": "model runner has stopped"})),
    ],
)
def test_an_error_before_output_is_a_failure_and_no_output(api: Api, stream: bytes) -> None:
    found = meter(api, stream)
    assert (found.failed, found.has_output) == (True, False)


def test_an_error_after_output_is_not_a_failure_to_deliver() -> None:
    found = chat(HELLO, {"error": {"message": "x"}})
    assert (found.failed, found.has_output, found.finished) == (False, True, False)


def test_a_tool_call_is_output_at_its_start() -> None:
    started = {
        "type": "content_block_start",
        "content_block": {"type": "tool_use", "id": "t", "name": "f", "input": {}},
    }
    assert meter(Api.MESSAGES, sse(MESSAGES[0], started)).has_output
    added = {"type": "response.output_item.added", "item": {"type": "function_call", "name": "f", "arguments": ""}}
    assert meter(Api.RESPONSES, sse(added)).has_output


def test_a_stream_that_was_cut_is_not_finished() -> None:
    found = chat(ROLE, HELLO)
    assert (found.finished, found.usage()) == (False, UNKNOWN_USAGE)


def test_missing_usage_is_unknown() -> None:
    assert chat(HELLO, STOP).usage() == UNKNOWN_USAGE


@pytest.mark.parametrize("count", [2**64 - 1, -1, True, "3", 3.0, None])
def test_usage_that_is_not_a_count_is_unknown(count: object) -> None:
    assert chat(HELLO, {"usage": {"prompt_tokens": count, "completion_tokens": 4}}).usage() == Usage(None, 4)


def test_the_last_usage_wins() -> None:
    early = delta(content="a") | {"usage": {"prompt_tokens": 21, "completion_tokens": 1}}
    assert chat(early, HELLO, USAGE).usage() == Usage(21, 3)
    assert chat(early, HELLO).usage() == Usage(21, 1)


def test_usage_on_the_last_delta_counts() -> None:
    last = STOP | {"usage": USAGE["usage"]}
    assert chat(HELLO, last).usage() == Usage(21, 3)


def test_usage_in_the_text_of_the_model_is_not_believed() -> None:
    lie = '"usage":{"prompt_tokens":1,"completion_tokens":1} }\n\ndata: {"usage":{"prompt_tokens":1}}\n\n'
    assert chat(HELLO, delta(content=lie), STOP).usage() == UNKNOWN_USAGE


def test_timings_of_llama_cpp_stand_in_for_missing_usage() -> None:
    assert chat(HELLO, LLAMA_STOP).usage() == Usage(21, 3)
    assert chat(HELLO, LLAMA_STOP | {"usage": USAGE["usage"]}).usage() == Usage(21, 3)


def test_timings_are_not_believed_for_several_completions() -> None:
    assert chat(HELLO, LLAMA_STOP, choices=2).usage() == UNKNOWN_USAGE


def test_an_empty_completion_reports_usage_without_output() -> None:
    # recorded from llama.cpp's server: an answer whose only event has no text
    last = {
        "choices": [{"text": "", "index": 0, "finish_reason": "stop"}],
        "usage": {"completion_tokens": 2, "prompt_tokens": 2},
    }
    found = meter(Api.COMPLETIONS, sse(last, done=True))
    assert (found.has_output, found.finished, found.usage()) == (False, True, Usage(2, 2))


def test_cached_tokens_are_input_and_the_placeholder_is_not_output() -> None:
    found = meter(Api.MESSAGES, sse(*MESSAGES[:4]))
    assert (found.usage(), found.finished) == (Usage(21, None), False)


def test_a_long_stream_keeps_a_bounded_tail() -> None:
    found = AnswerMeter(Api.CHAT, True)
    for _ in range(5000):
        found.feed(sse(HELLO))
    assert sum(map(len, found._tail._chunks)) <= TAIL_BYTES + len(sse(HELLO))
    found.feed(sse(STOP, USAGE, done=True))
    assert (found.usage(), found.finished) == (Usage(21, 3), True)


@pytest.mark.parametrize("size", [TAIL_BYTES // 2, TAIL_BYTES - 300, TAIL_BYTES, 3 * TAIL_BYTES])
def test_usage_at_the_end_of_an_event_larger_than_the_tail_is_found(size: int) -> None:
    text = 'a "quoted" {text}\\' * (size // 18)
    completed = json.loads(json.dumps(RESPONSES[-1]))
    completed["response"]["output"][0]["content"][0]["text"] = text
    found = meter(Api.RESPONSES, sse(*RESPONSES[:4], completed))
    assert (found.usage(), found.finished) == (Usage(21, 2), True)
    last = {"done": True, "response": "", "context": list(range(size // 5)), "prompt_eval_count": 21, "eval_count": 2}
    found = meter(Api.OLLAMA_GENERATE, ndjson({"response": "a", "done": False}, last))
    assert (found.usage(), found.finished) == (Usage(21, 2), True)


def test_usage_deeper_in_a_cut_event_is_not_believed() -> None:
    lie = {"usage": {"input_tokens": 1, "output_tokens": 1}}
    last = {"type": "response.output_item.done", "item": {"x": "y" * 2 * TAIL_BYTES, "deep": {"er": lie}}, "after": 1}
    assert meter(Api.RESPONSES, sse(*RESPONSES[:4], last)).usage() == UNKNOWN_USAGE


def test_an_event_that_is_too_long_to_read_is_given_up_not_guessed() -> None:
    found = AnswerMeter(Api.CHAT, True)
    found.feed(b"data: ")
    for _ in range(30):
        found.feed(b"x" * 65536)
    assert (found.has_output, found.gave_up) == (False, True)
    found.feed(b"\n\n" + sse(HELLO))
    assert (found.has_output, found.gave_up) == (True, False)


def test_an_unterminated_last_event_counts() -> None:
    stream = sse(ROLE, HELLO)
    found = AnswerMeter(Api.CHAT, True)
    found.feed(stream[:-2])
    assert not found.has_output
    found.end()
    assert found.has_output


def cut(data: bytes, points: list[int]) -> list[bytes]:
    borders = [0, *sorted(point % (len(data) + 1) for point in points), len(data)]
    return [data[start:end] for start, end in pairwise(borders)]


def state(api: Api, chunks: list[bytes]) -> tuple[object, ...]:
    found = AnswerMeter(api, True)
    for chunk in chunks:
        found.feed(chunk)
    found.end()
    return found.has_output, found.finished, found.failed, found.gave_up, found.usage()


@settings(max_examples=200)
@given(st.sampled_from(sorted(STREAMS)), st.data())
def test_any_split_of_a_stream_is_metered_alike(api: Api, data: st.DataObject) -> None:
    events = STREAMS[api].splitlines(keepends=True)
    long = b"data: " + b"z" * TAIL_BYTES + b"\n\n" if api is not Api.OLLAMA_CHAT else b"z" * TAIL_BYTES + b"\n"
    parts = data.draw(st.lists(st.sampled_from([*events, long, b"\n", b"\r\n", b"\r"]), max_size=30) | st.just(events))
    stream = b"".join(parts)
    if data.draw(st.booleans()):
        stream = stream.replace(b"\n", b"\r\n")
    points = data.draw(st.lists(st.integers(0, 100_000), max_size=6))
    assert state(api, cut(stream, points)) == state(api, [stream])


@pytest.mark.parametrize("api", sorted(STREAMS))
def test_a_stream_byte_by_byte_is_metered_alike(api: Api) -> None:
    stream = STREAMS[api].replace(b"\n", b"\r\n")
    assert state(api, [bytes([byte]) for byte in stream]) == state(api, [STREAMS[api]])


@settings(max_examples=200)
@given(st.sampled_from(sorted(Api)), st.booleans(), st.lists(st.binary(max_size=200), max_size=5))
def test_no_bytes_break_the_meter(api: Api, stream: bool, chunks: list[bytes]) -> None:
    found = AnswerMeter(api, stream)
    for chunk in chunks:
        found.feed(chunk)
        assert found.usage() == UNKNOWN_USAGE
    found.end()
    assert not found.has_output


PLAIN: list[tuple[Api, dict[str, Any], Usage]] = [
    (Api.CHAT, {"choices": [{"message": {"content": "a"}}], "usage": USAGE["usage"]}, Usage(21, 3)),
    (Api.CHAT, {"choices": [{"message": {"content": None, "tool_calls": [{"id": "1"}]}}]}, UNKNOWN_USAGE),
    (Api.COMPLETIONS, {"choices": [{"text": "a"}], "usage": USAGE["usage"]}, Usage(21, 3)),
    (Api.EMBEDDINGS, {"data": [{"embedding": [0.1]}], "usage": {"prompt_tokens": 2}}, Usage(2, None)),
    (Api.EMBEDDINGS, {"data": [{"embedding": "AACAPw=="}]}, UNKNOWN_USAGE),
    (Api.RESPONSES, RESPONSES[-1]["response"], Usage(21, 2)),
    (Api.RESPONSES, {"status": "completed", "output": [{"type": "function_call", "name": "f"}]}, UNKNOWN_USAGE),
    (
        Api.MESSAGES,
        {
            "type": "message",
            "content": [{"type": "text", "text": "a"}],
            "usage": {"input_tokens": 1, "output_tokens": 2, "cache_creation_input_tokens": 3},
        },
        Usage(4, 2),
    ),
    (Api.OLLAMA_CHAT, OLLAMA[1] | OLLAMA[2] | {"message": {"content": "a"}}, Usage(21, 2)),
    (Api.OLLAMA_GENERATE, {"response": "a", "done": True, "eval_count": 3}, Usage(None, 3)),
    (Api.OLLAMA_EMBED, {"embeddings": [[0.1]], "prompt_eval_count": 4}, Usage(4, None)),
]


@pytest.mark.parametrize(("api", "answer", "usage"), PLAIN)
def test_a_plain_answer_is_metered(api: Api, answer: dict[str, Any], usage: Usage) -> None:
    body = json.dumps(answer).encode()
    judged = read_plain_answer(api, body)
    assert (judged.has_output, judged.usage) == (True, usage)
    found = AnswerMeter(api, False)
    for start in range(0, len(body), 7):
        found.feed(body[start : start + 7])
        assert not found.has_output
    found.end()
    assert (found.has_output, found.finished, found.usage()) == (True, True, usage)


@pytest.mark.parametrize("api", sorted(Api))
@pytest.mark.parametrize(
    "answer",
    [
        {"error": {"message": "no memory"}},
        {"type": "error", "error": {"type": "overloaded_error"}},
        {"error": "model not found"},
        {"choices": []},
        {"choices": [{"message": {"content": ""}, "text": ""}]},
        {"data": []},
        {"output": [{"type": "message", "content": [{"type": "output_text", "text": ""}]}]},
        {"status": "failed", "output": []},
        {"content": [{"type": "text", "text": ""}]},
        {"message": {"content": ""}, "response": "", "embeddings": [[]]},
        {},
        [],
        None,
        "text",
    ],
)
def test_an_answer_that_is_worth_nothing_is_not_output(api: Api, answer: object) -> None:
    assert not read_plain_answer(api, json.dumps(answer).encode()).has_output


@pytest.mark.parametrize("body", [b"", b"<html>", b"[" * 100_000, b'{"choices":', b"\xff"])
def test_a_plain_answer_that_is_not_json_is_not_output(body: bytes) -> None:
    assert not read_plain_answer(Api.CHAT, body).has_output


def test_a_very_long_plain_answer_is_output_and_its_usage_is_read_from_its_end() -> None:
    answer = {"data": [{"embedding": [0.123] * (PLAIN_BYTES // 5)}], "usage": {"prompt_tokens": 9}, "model": "m"}
    body = json.dumps(answer).encode() + b"\n"
    found = AnswerMeter(Api.EMBEDDINGS, False)
    for start in range(0, len(body), 65536):
        found.feed(body[start : start + 65536])
    found.end()
    assert len(body) > PLAIN_BYTES
    assert (found.has_output, found.usage()) == (True, Usage(9, None))
