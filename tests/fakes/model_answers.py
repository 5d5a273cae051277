"""What a model server says in each inference API: whole answers, and the pieces of a stream. Pure and deterministic."""

import base64
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

Json = dict[str, Any]

WORDS = ("Hello", " wörld", ",", " this", " is", " token", " № ", "☃", " of", " many")
CREATED_S = 1_760_000_000
EMBEDDING = (0.5, -0.25, 0.125)
NANOSECONDS = 1_000_000


class UsageReport(Enum):
    """When a server tells how many tokens there were."""

    ASKED = "plain answers always, streams in a last chunk when `stream_options.include_usage` says so"
    ALWAYS = "streams too, asked or not"
    LAST_DELTA = "on the last chunk that carries a choice"
    ABSENT = "never"


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer to one request, before it takes the form of an API."""

    request: Json
    tokens: tuple[str, ...]
    input_tokens: int
    is_cut: bool
    """True when the output limit ended it."""
    usage: UsageReport
    has_done: bool

    @property
    def model(self) -> str:
        return str(self.request.get("model", ""))

    @property
    def text(self) -> str:
        return "".join(self.tokens)

    @property
    def choices(self) -> int:
        return int(self.request.get("n") or 1)

    @property
    def output_tokens(self) -> int:
        return len(self.tokens) * self.choices

    @property
    def openai_usage(self) -> Json:
        return {
            "prompt_tokens": self.input_tokens,
            "completion_tokens": self.output_tokens,
            "total_tokens": self.input_tokens + self.output_tokens,
        }

    @property
    def item_usage(self) -> Json:
        """In the words of the Responses and Messages APIs."""
        return {"input_tokens": self.input_tokens, "output_tokens": self.output_tokens}

    @property
    def has_final_usage(self) -> bool:
        """Whether a Chat Completions stream ends with a chunk of usage."""
        asked = bool((self.request.get("stream_options") or {}).get("include_usage"))
        return self.usage is UsageReport.ALWAYS or (self.usage is UsageReport.ASKED and asked)


class Kind(Enum):
    """What a piece of a stream is, so that a script knows where it may stall or die."""

    PREAMBLE = "before any output"
    TOKEN = "output"
    TAIL = "after all output"


Piece = tuple[Kind, bytes]


@dataclass(frozen=True, slots=True)
class Dialect:
    """One API: its answers, its streams, and the content type of those."""

    plain: Callable[[Answer], Json]
    stream: Callable[[Answer], Iterator[Piece]] | None
    stream_type: str = "text/event-stream"
    error: Callable[[str], bytes] = lambda message: data({"error": {"message": message, "code": 500}})
    streams_by_default: bool = False


def words(text: str) -> int:
    """How this server counts tokens: blank-separated words."""
    return len(text.split())


def texts(value: object) -> Iterator[str]:
    """All texts that a request's prompt, input or messages hold."""
    match value:
        case str():
            yield value
        case list():
            for part in value:
                yield from texts(part)
        case dict():
            yield from texts(value.get("content", value.get("text", "")))
        case _:
            pass


def count_input(request: Json) -> int:
    """Words of everything that a model would read."""
    fields = ("messages", "prompt", "input", "system", "instructions")
    return sum(words(text) for field in fields for text in texts(request.get(field)))


def output_limit(request: Json) -> int | None:
    """The output limit by any of its names, or None."""
    options = request.get("options") or {}
    for value in (
        *(request.get(name) for name in ("max_completion_tokens", "max_tokens", "max_output_tokens")),
        options.get("num_predict"),
    ):
        if isinstance(value, int):
            return value
    return None


def data(value: Json) -> bytes:
    """One server-sent event without a name."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def event(name: str, value: Json) -> bytes:
    """One server-sent event with a name, which it repeats as its type."""
    return b"event: " + name.encode() + b"\n" + data({"type": name, **value})


def line(value: Json) -> bytes:
    """One line of newline-delimited JSON."""
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


# ------------------------------------------------------------------------------------------- chat and completions


def _usage(answer: Answer) -> Json:
    return {} if answer.usage is UsageReport.ABSENT else {"usage": answer.openai_usage}


def _finish(answer: Answer) -> str:
    return "length" if answer.is_cut else "stop"


def _chat_plain(answer: Answer) -> Json:
    message = {"role": "assistant", "content": answer.text}
    choice = {"message": message, "logprobs": None, "finish_reason": _finish(answer)}
    return _completion_object(answer, "chat.completion", [{"index": n, **choice} for n in range(answer.choices)])


def _completion_plain(answer: Answer) -> Json:
    choice = {"text": answer.text, "logprobs": None, "finish_reason": _finish(answer)}
    return _completion_object(answer, "text_completion", [{"index": n, **choice} for n in range(answer.choices)])


def _completion_object(answer: Answer, kind: str, choices: list[Json]) -> Json:
    head = {"id": "cmpl-1", "object": kind, "created": CREATED_S, "model": answer.model}
    return {**head, "choices": choices, **_usage(answer)}


def _chat_stream(answer: Answer) -> Iterator[Piece]:
    def delta(value: Json) -> Json:
        return {"delta": value, "logprobs": None}

    yield Kind.PREAMBLE, _chunk(answer, "chat.completion.chunk", delta({"role": "assistant", "content": ""}), None)
    yield from _tokens_and_tail(answer, "chat.completion.chunk", lambda text: delta({"content": text} if text else {}))


def _completion_stream(answer: Answer) -> Iterator[Piece]:
    yield from _tokens_and_tail(answer, "text_completion", lambda text: {"text": text, "logprobs": None})


def _tokens_and_tail(answer: Answer, kind: str, choice: Callable[[str], Json]) -> Iterator[Piece]:
    for token in answer.tokens:
        yield Kind.TOKEN, _chunk(answer, kind, choice(token), None)
    yield Kind.TAIL, _chunk(answer, kind, choice(""), _finish(answer))
    if answer.has_final_usage:
        yield Kind.TAIL, data({**_completion_object(answer, kind, []), "usage": answer.openai_usage})
    if answer.has_done:
        yield Kind.TAIL, b"data: [DONE]\n\n"


def _chunk(answer: Answer, kind: str, choice: Json, finish: str | None) -> bytes:
    """The same piece of every choice, each in an event of its own."""
    head = {"id": "cmpl-1", "object": kind, "created": CREATED_S, "model": answer.model}
    usage: Json = {"usage": answer.openai_usage} if finish and answer.usage is UsageReport.LAST_DELTA else {}
    return b"".join(
        data({**head, "choices": [{"index": n, **choice, "finish_reason": finish}], **usage})
        for n in range(answer.choices)
    )


# ------------------------------------------------------------------------------------------------------ embeddings


def _embeddings(answer: Answer) -> Json:
    vector: object = list(EMBEDDING)
    if answer.request.get("encoding_format") == "base64":
        vector = base64.b64encode(struct.pack(f"<{len(EMBEDDING)}f", *EMBEDDING)).decode()
    inputs = answer.request.get("input")
    count = len(inputs) if isinstance(inputs, list) else 1
    entries = [{"object": "embedding", "index": n, "embedding": vector} for n in range(count)]
    usage = {"prompt_tokens": answer.input_tokens, "total_tokens": answer.input_tokens}
    reported: Json = {} if answer.usage is UsageReport.ABSENT else {"usage": usage}
    return {"object": "list", "data": entries, "model": answer.model, **reported}


# ------------------------------------------------------------------------------------------------------- responses


def _response_item(answer: Answer, status: str) -> Json:
    content = [{"type": "output_text", "text": answer.text, "annotations": []}] if status == "completed" else []
    return {"type": "message", "id": "msg_1", "role": "assistant", "status": status, "content": content}


def _response(answer: Answer, status: str) -> Json:
    ended = status == "completed"
    usage = {**answer.item_usage, "total_tokens": answer.input_tokens + answer.output_tokens}
    usage |= {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": CREATED_S,
        "status": "incomplete" if ended and answer.is_cut else status,
        "incomplete_details": {"reason": "max_output_tokens"} if ended and answer.is_cut else None,
        "error": None,
        "model": answer.model,
        "output": [_response_item(answer, "completed")] if ended else [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": usage if ended and answer.usage is not UsageReport.ABSENT else None,
    }


def _response_plain(answer: Answer) -> Json:
    return _response(answer, "completed")


def _response_stream(answer: Answer) -> Iterator[Piece]:
    at: Json = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    part = {"type": "output_text", "text": "", "annotations": []}
    last = "response.incomplete" if answer.is_cut else "response.completed"
    events: list[tuple[Kind, str, Json]] = [
        (Kind.PREAMBLE, "response.created", {"response": _response(answer, "in_progress")}),
        (Kind.PREAMBLE, "response.in_progress", {"response": _response(answer, "in_progress")}),
        (
            Kind.PREAMBLE,
            "response.output_item.added",
            {"output_index": 0, "item": _response_item(answer, "in_progress")},
        ),
        (Kind.PREAMBLE, "response.content_part.added", {**at, "part": part}),
        *(
            (Kind.TOKEN, "response.output_text.delta", {**at, "delta": token, "logprobs": []})
            for token in answer.tokens
        ),
        (Kind.TAIL, "response.output_text.done", {**at, "text": answer.text, "logprobs": []}),
        (Kind.TAIL, "response.content_part.done", {**at, "part": {**part, "text": answer.text}}),
        (Kind.TAIL, "response.output_item.done", {"output_index": 0, "item": _response_item(answer, "completed")}),
        (Kind.TAIL, last, {"response": _response(answer, "completed")}),
    ]
    for number, (kind, name, value) in enumerate(events):
        yield kind, event(name, {"sequence_number": number, **value})


# -------------------------------------------------------------------------------------------------------- messages


def _stop_reason(answer: Answer) -> str:
    return "max_tokens" if answer.is_cut else "end_turn"


def _message_plain(answer: Answer) -> Json:
    content = [{"type": "text", "text": answer.text}]
    reported: Json = {} if answer.usage is UsageReport.ABSENT else {"usage": answer.item_usage}
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": answer.model, "content": content}
    return {**head, "stop_reason": _stop_reason(answer), "stop_sequence": None, **reported}


def _message_stream(answer: Answer) -> Iterator[Piece]:
    silent = answer.usage is UsageReport.ABSENT
    start = {**_message_plain(answer), "content": [], "stop_reason": None}
    if not silent:
        start["usage"] = {"input_tokens": answer.input_tokens, "output_tokens": 0}
    yield Kind.PREAMBLE, event("message_start", {"message": start})
    block = {"type": "text", "text": ""}
    yield Kind.PREAMBLE, event("content_block_start", {"index": 0, "content_block": block})
    yield Kind.PREAMBLE, event("ping", {})
    for token in answer.tokens:
        delta = {"type": "text_delta", "text": token}
        yield Kind.TOKEN, event("content_block_delta", {"index": 0, "delta": delta})
    yield Kind.TAIL, event("content_block_stop", {"index": 0})
    ended: Json = {"delta": {"stop_reason": _stop_reason(answer), "stop_sequence": None}}
    yield (
        Kind.TAIL,
        event("message_delta", ended if silent else {**ended, "usage": {"output_tokens": answer.output_tokens}}),
    )
    yield Kind.TAIL, event("message_stop", {})


# ---------------------------------------------------------------------------------------------------------- Ollama


def _ollama_text(answer: Answer, field: str, text: str) -> Json:
    content: object = {"role": "assistant", "content": text} if field == "message" else text
    return {"model": answer.model, "created_at": "2025-10-09T08:53:20Z", field: content}


def _ollama_end(answer: Answer) -> Json:
    counts = {"prompt_eval_count": answer.input_tokens, "eval_count": answer.output_tokens}
    durations = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")
    reported: Json = {} if answer.usage is UsageReport.ABSENT else counts
    return {"done": True, "done_reason": _finish(answer), **dict.fromkeys(durations, NANOSECONDS), **reported}


def _ollama(field: str) -> Dialect:
    def plain(answer: Answer) -> Json:
        return {**_ollama_text(answer, field, answer.text), **_ollama_end(answer)}

    def stream(answer: Answer) -> Iterator[Piece]:
        for token in answer.tokens:
            yield Kind.TOKEN, line({**_ollama_text(answer, field, token), "done": False})
        yield Kind.TAIL, line({**_ollama_text(answer, field, ""), **_ollama_end(answer)})

    return Dialect(plain, stream, "application/x-ndjson", lambda message: line({"error": message}), True)


def _ollama_embed(answer: Answer) -> Json:
    inputs = answer.request.get("input")
    count = len(inputs) if isinstance(inputs, list) else 1
    reported: Json = {} if answer.usage is UsageReport.ABSENT else {"prompt_eval_count": answer.input_tokens}
    return {"model": answer.model, "embeddings": [list(EMBEDDING)] * count, "total_duration": NANOSECONDS, **reported}


def _message_error(message: str) -> bytes:
    return event("error", {"error": {"type": "api_error", "message": message}})


def _response_error(message: str) -> bytes:
    return event("error", {"code": "server_error", "message": message, "param": None, "sequence_number": 99})


DIALECTS = {
    "/v1/chat/completions": Dialect(_chat_plain, _chat_stream),
    "/v1/completions": Dialect(_completion_plain, _completion_stream),
    "/v1/embeddings": Dialect(_embeddings, None),
    "/v1/responses": Dialect(_response_plain, _response_stream, error=_response_error),
    "/v1/messages": Dialect(_message_plain, _message_stream, error=_message_error),
    "/api/chat": _ollama("message"),
    "/api/generate": _ollama("response"),
    "/api/embed": Dialect(_ollama_embed, None),
}
"""Every path that this server sells answers on."""
