"""What one event of a stream, or one plain answer, says: output, end, failure, usage.

Output is what a buyer pays for: text, reasoning, tool calls, log probabilities, embeddings. Roles, pings, empty texts
and errors are not. Input tokens include those that the server had cached.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import msgspec

from obol.core.offer import Api
from obol.core.usage import UNKNOWN_USAGE, Usage
from obol.inference.nesting import is_nested_too_deeply
from obol.inference.sse import Event

_DELTA_OUTPUT = (
    "content",
    "reasoning",
    "reasoning_content",
    "reasoning_details",
    "tool_calls",
    "function_call",
    "refusal",
    "audio",
    "images",
)
_RESPONSE_ENDS = frozenset({"response.completed", "response.incomplete"})
_TOOL_BLOCKS = frozenset({"tool_use", "server_tool_use", "mcp_tool_use"})
_TOOL_ITEMS = frozenset({"function_call", "custom_tool_call", "mcp_call"})


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen. `timings` is llama.cpp's count, which covers one completion only."""

    has_output: bool = False
    is_finished: bool = False
    is_failed: bool = False
    usage: Usage = UNKNOWN_USAGE
    timings: Usage = UNKNOWN_USAGE


MAX_TOKENS = 2**53
"""Beyond it JSON numbers are not exact."""
NOTHING = Seen()
_DONE = Seen(is_finished=True)
_FAILED = Seen(is_failed=True)


def read_event(api: Api, event: Event) -> Seen:
    """Read one event of a stream. What is not understood says nothing."""
    if event.data.strip() == b"[DONE]":
        return _DONE
    message = _object(event.data)
    if event.name == b"error" or (message is not None and _is_error(message)):
        return _FAILED
    return NOTHING if message is None else _EVENT_READERS[api](message)


def read_plain(api: Api, body: bytes) -> Seen:
    """Read a whole plain answer; is_finished when it is understood and no error."""
    message = _object(body)
    if message is None:
        return NOTHING
    return _FAILED if _is_error(message) else _PLAIN_READERS[api](message)


def usage_of(api: Api, values: Mapping[str, Any]) -> Usage:
    """Usage from a usage object; for Ollama, whose answers have none, from the answer itself."""
    if api in {Api.OLLAMA_CHAT, Api.OLLAMA_GENERATE, Api.OLLAMA_EMBED}:
        return Usage(_tokens(values.get("prompt_eval_count")), _tokens(values.get("eval_count")))
    if api is Api.RESPONSES:
        return Usage(_tokens(values.get("input_tokens")), _tokens(values.get("output_tokens")))
    if api is Api.MESSAGES:
        parts = [_tokens(values.get(f"cache_{kind}_input_tokens")) for kind in ("read", "creation")]
        fresh = _tokens(values.get("input_tokens"))  # Anthropic counts cached tokens apart
        total = None if fresh is None else fresh + sum(part or 0 for part in parts)
        return Usage(total, _tokens(values.get("output_tokens")))
    return Usage(_tokens(values.get("prompt_tokens")), _tokens(values.get("completion_tokens")))


def _openai_event(message: Mapping[str, Any]) -> Seen:
    choices = _mappings(message.get("choices"))
    return Seen(
        has_output=any(_choice_has_output(choice, "delta") for choice in choices),
        is_finished=any(choice.get("finish_reason") is not None for choice in choices),
        usage=usage_of(Api.CHAT, _mapping(message.get("usage"))),
        timings=_timings(_mapping(message.get("timings"))),
    )


def _openai_plain(message: Mapping[str, Any]) -> Seen:
    choices = _mappings(message.get("choices"))
    return Seen(
        has_output=any(_choice_has_output(choice, "message") for choice in choices)
        or bool(message.get("prompt_logprobs")),
        is_finished=bool(choices),
        usage=usage_of(Api.CHAT, _mapping(message.get("usage"))),
        timings=_timings(_mapping(message.get("timings"))),
    )


def _choice_has_output(choice: Mapping[str, Any], part: str) -> bool:
    if choice.get("text") or any(_mapping(choice.get(part)).get(name) for name in _DELTA_OUTPUT):
        return True
    logprobs = _mapping(choice.get("logprobs"))
    return bool(choice.get("prompt_logprobs") or any(logprobs.values()))


def _embeddings_plain(message: Mapping[str, Any]) -> Seen:
    has_output = any(item.get("embedding") for item in _mappings(message.get("data")))
    return Seen(has_output, is_finished=has_output, usage=usage_of(Api.EMBEDDINGS, _mapping(message.get("usage"))))


def _responses_event(message: Mapping[str, Any]) -> Seen:
    kind = message.get("type")
    if not isinstance(kind, str):
        return NOTHING
    if kind == "response.failed":
        return _FAILED
    if kind in _RESPONSE_ENDS:
        return _responses_plain(_mapping(message.get("response")))
    if kind.endswith(".delta"):
        return Seen(has_output=bool(message.get("delta")))
    return Seen(has_output=_mapping(message.get("item")).get("type") in _TOOL_ITEMS)


def _responses_plain(message: Mapping[str, Any]) -> Seen:
    items = _mappings(message.get("output"))
    if message.get("status") == "failed":
        return _FAILED
    return Seen(
        has_output=any(_item_has_output(item) for item in items),
        is_finished=message.get("status") in {"completed", "incomplete"},
        usage=usage_of(Api.RESPONSES, _mapping(message.get("usage"))),
    )


def _item_has_output(item: Mapping[str, Any]) -> bool:
    if item.get("type") not in {"message", "reasoning"}:
        return True  # a call of some tool
    parts = [*_mappings(item.get("content")), *_mappings(item.get("summary"))]
    return any(part.get("text") or part.get("refusal") for part in parts) or bool(item.get("encrypted_content"))


def _messages_event(message: Mapping[str, Any]) -> Seen:
    kind = message.get("type")
    if kind == "message_start":
        started = usage_of(Api.MESSAGES, _mapping(_mapping(message.get("message")).get("usage")))
        return Seen(usage=Usage(started.input_tokens, None))  # its output count is a placeholder
    if kind == "content_block_delta":
        delta = _mapping(message.get("delta"))
        return Seen(has_output=any(value for name, value in delta.items() if name != "type"))
    if kind == "content_block_start":
        return Seen(has_output=_block_has_output(_mapping(message.get("content_block"))))
    if kind == "message_delta":
        finished = _mapping(message.get("delta")).get("stop_reason") is not None
        return Seen(is_finished=finished, usage=usage_of(Api.MESSAGES, _mapping(message.get("usage"))))
    return _DONE if kind == "message_stop" else NOTHING


def _messages_plain(message: Mapping[str, Any]) -> Seen:
    blocks = _mappings(message.get("content"))
    return Seen(
        has_output=any(_block_has_output(block) for block in blocks),
        is_finished=message.get("type") == "message",
        usage=usage_of(Api.MESSAGES, _mapping(message.get("usage"))),
    )


def _block_has_output(block: Mapping[str, Any]) -> bool:
    return block.get("type") in _TOOL_BLOCKS or any(block.get(name) for name in ("text", "thinking", "data"))


def _ollama(message: Mapping[str, Any]) -> Seen:
    said = _mapping(message.get("message"))
    output = (*(said.get(name) for name in ("content", "thinking", "tool_calls", "images")), message.get("thinking"))
    embeddings = message.get("embeddings")
    embedded = isinstance(embeddings, list) and any(embeddings)
    return Seen(
        has_output=embedded or any(output) or bool(message.get("response")),
        is_finished=message.get("done") is True or embedded,
        usage=usage_of(Api.OLLAMA_CHAT, message),
    )


def _timings(timings: Mapping[str, Any]) -> Usage:
    """llama.cpp reports these on every last event, usage only when asked; `prompt_n` leaves out what was cached."""
    cached, evaluated = _tokens(timings.get("cache_n")), _tokens(timings.get("prompt_n"))
    known = None if cached is None or evaluated is None else cached + evaluated
    return Usage(known, _tokens(timings.get("predicted_n")))


def _is_error(message: Mapping[str, Any]) -> bool:
    return bool(message.get("error")) or message.get("type") == "error"


def _object(data: bytes) -> Mapping[str, Any] | None:
    if is_nested_too_deeply(data):
        return None
    try:
        message = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return message if isinstance(message, dict) else None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _mappings(value: object) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _tokens(value: object) -> int | None:
    """A count that can be one; servers have been seen to send -1 as 2^64 - 1."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_TOKENS else None


def _no_stream(_message: Mapping[str, Any]) -> Seen:
    return NOTHING  # embeddings are never streamed


_Reader = Callable[[Mapping[str, Any]], Seen]

_EVENT_READERS: Mapping[Api, _Reader] = MappingProxyType(
    {
        Api.CHAT: _openai_event,
        Api.COMPLETIONS: _openai_event,
        Api.EMBEDDINGS: _no_stream,
        Api.RESPONSES: _responses_event,
        Api.MESSAGES: _messages_event,
        Api.OLLAMA_CHAT: _ollama,
        Api.OLLAMA_GENERATE: _ollama,
        Api.OLLAMA_EMBED: _ollama,
    }
)

_PLAIN_READERS: Mapping[Api, _Reader] = MappingProxyType(
    {
        Api.CHAT: _openai_plain,
        Api.COMPLETIONS: _openai_plain,
        Api.EMBEDDINGS: _embeddings_plain,
        Api.RESPONSES: _responses_plain,
        Api.MESSAGES: _messages_plain,
        Api.OLLAMA_CHAT: _ollama,
        Api.OLLAMA_GENERATE: _ollama,
        Api.OLLAMA_EMBED: _ollama,
    }
)
