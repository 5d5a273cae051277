"""What an inference request asks for, whether the offer allows it, and the body that goes upstream.

Reads the fields that the gate decides on and nothing else; prompts stay unread bytes and out of every repr.

Output limits have several spellings and servers disagree about which one counts: llama.cpp obeys `n_predict` over
`max_tokens` (also on the Responses API) and `n_cmpl` over `n`; Ollama's OpenAI endpoint ignores
`max_completion_tokens`; zero and negative values mean "no limit" to several. So every spelling that is present is
checked, and the one that all servers obey is set where it is absent.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import msgspec

from obol.core.offer import Api, Model, RequestLimits
from obol.errors import MalformedRequestError
from obol.inference.json_object import Members, read_members

OLLAMA_APIS = frozenset({Api.OLLAMA_CHAT, Api.OLLAMA_GENERATE, Api.OLLAMA_EMBED})
EMBEDDING_APIS = frozenset({Api.EMBEDDINGS, Api.OLLAMA_EMBED})
"""APIs that generate nothing: no stream, no output tokens."""

_OUTPUT_NAMES = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict", "num_predict")
_COUNT_NAMES = ("n", "n_cmpl", "best_of")
_OPTIONS_OUTPUT_NAME = "num_predict"
_RELEVANT = frozenset(
    {"model", "stream", "stream_options", "options", *_OUTPUT_NAMES, *_COUNT_NAMES}
    | {"keep_alive", "messages", "prompt", "input", "system", "instructions", "tools", "functions", "context", "suffix"}
)
"""Names that a check depends on. Lower case."""

_SERVER_OPTIONS = frozenset(
    {"num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "numa", "use_mmap", "use_mlock", "low_vram"}
)
"""Ollama options that make the server load its model again: the seller's to set, not a buyer's."""

_OPTIONS_RELEVANT = frozenset({_OPTIONS_OUTPUT_NAME, *_SERVER_OPTIONS})

_OBEYED: Mapping[Api, str] = MappingProxyType(
    {
        Api.CHAT: "max_tokens",
        Api.COMPLETIONS: "max_tokens",
        Api.RESPONSES: "max_output_tokens",
        Api.MESSAGES: "max_tokens",
    }
)
"""The output limit that llama.cpp, vLLM and Ollama all obey; Ollama's own APIs: `options.num_predict`."""


@dataclass(frozen=True, slots=True)
class OutputAsked:
    """One output limit as asked. `tokens` None: not a positive integer, which a server may take as "no limit"."""

    param: str
    tokens: int | None


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """The parts of a request that decide: everything else stays in `body`, the client's own bytes."""

    api: Api
    model: str
    """Public name, as asked."""
    stream: bool
    choices: int
    """How many completions are generated: `n` (or `best_of`, `n_cmpl`) times the number of prompts."""
    output_asked: tuple[OutputAsked, ...]
    include_usage: bool | None
    """`stream_options.include_usage`; None where the client did not say."""
    body: bytes = field(repr=False)
    members: Members = field(repr=False)

    @property
    def max_output_tokens(self) -> int | None:
        """The largest limit asked for, per completion; None when there is none, or one of them is no limit."""
        asked = [limit.tokens for limit in self.output_asked]
        return None if None in asked else max((tokens for tokens in asked if tokens is not None), default=None)


@dataclass(frozen=True, slots=True)
class LimitExceeded:
    """The request asks for more than the offer allows: a 400. `param` is the JSON field, where there is one."""

    reason: str
    message: str
    param: str | None


def read_request(api: Api, body: bytes) -> InferenceRequest:
    """Read a request body. Raises `MalformedRequestError` with `param` and a reason code."""
    members = read_members(body, _RELEVANT)
    if api in OLLAMA_APIS:
        _refuse_server_settings(members)
    return InferenceRequest(
        api=api,
        model=_model(members),
        stream=_stream(api, members),
        choices=max([_count(members, name) for name in _COUNT_NAMES]) * _prompts(api, members),
        output_asked=_output_asked(members),
        include_usage=_include_usage(members),
        body=body,
        members=members,
    )


def check_limits(request: InferenceRequest, limits: RequestLimits) -> LimitExceeded | None:
    """Whether the output asked for is within the limit, all completions together. Input: `input_size.check_input`."""
    limit = limits.max_output_tokens
    if limit is None or request.api in EMBEDDING_APIS:
        return None
    for asked in request.output_asked:
        if asked.tokens is None:
            message = f"{asked.param} must be a whole number from 1 to {limit // request.choices}"
            return LimitExceeded("invalid_output_limit", message, asked.param)
        if asked.tokens * request.choices > limit:
            return LimitExceeded("output_limit_exceeded", _too_much(asked, request.choices, limit), asked.param)
    if request.choices > limit:
        message = f"{request.choices} completions are asked for; this offer allows {limit} output tokens in all"
        return LimitExceeded("output_limit_exceeded", message, "n")
    return None


def prepare_body(request: InferenceRequest, model: Model, limits: RequestLimits) -> bytes:
    """The body for upstream, of a request that `check_limits` passed.

    The client's own bytes, unless the model is served under another name or the output limit has to be written in;
    all other fields keep the client's bytes even then.
    """
    changes: Members = {}
    if model.served != request.model:
        changes["model"] = _raw(model.served)
    if limits.max_output_tokens is not None and request.api not in EMBEDDING_APIS:
        changes |= _output_limit(request, limits.max_output_tokens // request.choices)
    return msgspec.json.encode(request.members | changes) if changes else request.body


def _output_limit(request: InferenceRequest, limit: int) -> Members:
    """The member to add so that every server obeys the limit; nothing where the client's own does."""
    name = _OBEYED.get(request.api)
    if name is None:
        options = _options(request.members)
        if _value(options, _OPTIONS_OUTPUT_NAME) is not None:
            return {}
        return {"options": msgspec.Raw(msgspec.json.encode(options | {_OPTIONS_OUTPUT_NAME: _raw(limit)}))}
    if _value(request.members, name) is not None:
        return {}
    if request.api is Api.CHAT:  # a server may ignore this spelling, so it is repeated in the obeyed one
        limit = _value(request.members, "max_completion_tokens") or limit
    return {name: _raw(limit)}


def _too_much(asked: OutputAsked, choices: int, limit: int) -> str:
    times = f" for each of {choices} completions" if choices > 1 else ""
    return f"{asked.param} asks for {asked.tokens} output tokens{times}; this offer allows {limit} in all"


def _refuse_server_settings(members: Members) -> None:
    """`keep_alive: 0` with an empty prompt unloads the model and costs nothing; some options reload it."""
    named = [name for name in ("keep_alive",) if _value(members, name) is not None]
    named += [f"options.{name}" for name in sorted(_SERVER_OPTIONS & set(_options(members)))]
    if named:
        message = f"{named[0]} is for the seller to set: leave it out"
        raise MalformedRequestError(message, param=named[0], reason="not_for_sale")


def _model(members: Members) -> str:
    if "model" not in members:
        raise MalformedRequestError("the field model is required", param="model", reason="missing_required_parameter")
    model = _value(members, "model")
    if not isinstance(model, str) or not model:
        raise MalformedRequestError("model must be a string", param="model", reason="invalid_type")
    return model


def _stream(api: Api, members: Members) -> bool:
    stream = _value(members, "stream")
    if stream is not None and not isinstance(stream, bool):
        raise MalformedRequestError("stream must be true or false", param="stream", reason="invalid_type")
    if api in EMBEDDING_APIS:
        return False
    return api in OLLAMA_APIS if stream is None else stream


def _count(members: Members, name: str) -> int:
    count = _value(members, name)
    if count is None:
        return 1
    if not isinstance(count, int) or isinstance(count, bool):
        raise MalformedRequestError(f"{name} must be a whole number", param=name, reason="invalid_type")
    if count < 1:
        raise MalformedRequestError(f"{name} must be at least 1", param=name, reason="invalid_value")
    return count


def _prompts(api: Api, members: Members) -> int:
    """How many prompts a completion request holds: a list of texts or of token lists is one completion for each."""
    raw = members.get("prompt")
    if api is not Api.COMPLETIONS or raw is None or bytes(raw)[:1] != b"[":
        return 1
    try:
        msgspec.json.decode(raw, type=list[int])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        parts = msgspec.json.decode(raw, type=list[msgspec.Raw])
        return max(1, sum(1 for part in parts if bytes(part)[:1] in {b'"', b"[", b"{"}))
    return 1


def _output_asked(members: Members) -> tuple[OutputAsked, ...]:
    found = [(name, _value(members, name)) for name in _OUTPUT_NAMES if name in members]
    if "options" in members:
        found.append((f"options.{_OPTIONS_OUTPUT_NAME}", _value(_options(members), _OPTIONS_OUTPUT_NAME)))
    return tuple(OutputAsked(param, _positive(value)) for param, value in found if value is not None)


def _options(members: Members) -> Members:
    """The members of Ollama's `options`; none when it is absent or null."""
    raw = members.get("options")
    return {} if raw is None or bytes(raw) == b"null" else read_members(bytes(raw), _OPTIONS_RELEVANT, param="options")


def _include_usage(members: Members) -> bool | None:
    options = _value(members, "stream_options")
    if options is None:
        return None
    if not isinstance(options, dict):
        message = "stream_options must be an object"
        raise MalformedRequestError(message, param="stream_options", reason="invalid_type")
    include = options.get("include_usage")
    if include is None or isinstance(include, bool):
        return include
    param = "stream_options.include_usage"
    raise MalformedRequestError(f"{param} must be true or false", param=param, reason="invalid_type")


def _value(members: Members, name: str) -> Any:
    """The value of a member that should be small; None when absent or null. What is out of range is not a number."""
    raw = members.get(name)
    if raw is None:
        return None
    try:
        return msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return math.nan


def _positive(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 1 else None


def _raw(value: str | int) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))
