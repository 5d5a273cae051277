"""Model servers: which one is it, which models does it list, and how does it count input tokens. Pure.

What tells the servers apart (checked against llama.cpp's server; the others by their documentation):
  llama-server   the header `Server: llama.cpp`, or `/props` with generation settings
  ollama         `/api/version` with a version, and `/api/tags` with a list of models
  vllm           models owned by "vllm", or `/version` with a version and an empty 200 from `/health`
  lm-studio      models owned by "organization_owner", or `/api/v0/models` with a list
  openai-compat  anything else that lists models
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import msgspec

from obol.core.offer import Api, Model
from obol.errors import PeerProtocolError
from obol.inference.request import InferenceRequest
from obol.inference.routes import MODELS_PATH


class ServerType(StrEnum):
    """The model servers that are told apart."""

    OLLAMA = "ollama"
    LLAMA_SERVER = "llama-server"
    VLLM = "vllm"
    LM_STUDIO = "lm-studio"
    OPENAI_COMPAT = "openai-compat"


class ModelInfo(msgspec.Struct, frozen=True):
    """One entry of a server's model list. `created` in Unix seconds; 0 where the server does not say."""

    id: str
    owned_by: str = ""
    created: int = 0


@dataclass(frozen=True, slots=True)
class ProbeAnswer:
    """What a server answered to one GET. Header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class TokenizerCall:
    """One POST to a server's tokenizer."""

    path: str
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class CountPlan:
    """How to count a request: the sum of `calls`; or, with `template`, `text_call` on the text that it answers."""

    calls: tuple[TokenizerCall, ...] = ()
    template: TokenizerCall | None = None


PROBE_PATHS = (MODELS_PATH, "/health", "/version", "/props", "/api/version", "/api/tags", "/api/v0/models")
"""What is asked to find out the type; a server that lacks a path answers 404."""

MAX_PROMPTS_COUNTED = 16
"""More prompts in one request are not sent to the tokenizer one by one."""

_HEALTH_PATHS: Mapping[ServerType, str] = MappingProxyType(
    {ServerType.LLAMA_SERVER: "/health", ServerType.VLLM: "/health", ServerType.OLLAMA: "/api/version"}
)
_LLAMA_COUNTERS = MappingProxyType(
    {Api.RESPONSES: "/v1/responses/input_tokens", Api.MESSAGES: "/v1/messages/count_tokens"}
)
_VLLM_CHAT_FIELDS = ("messages", "tools", "chat_template_kwargs", "add_generation_prompt", "continue_final_message")


class _Loose(msgspec.Struct):
    """A model entry whose optional fields have surprising types."""

    id: str
    owned_by: Any = None
    created: Any = None


class _LooseModelList(msgspec.Struct):
    data: list[_Loose] | None


def parse_models(body: bytes) -> tuple[ModelInfo, ...]:
    """The models of a `/v1/models` answer, in order. Raises `PeerProtocolError`."""
    try:
        listed = msgspec.json.decode(body, type=_LooseModelList).data or []
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise PeerProtocolError("the model list is not in OpenAI's format") from error
    return tuple(
        ModelInfo(
            id=model.id,
            owned_by=model.owned_by if isinstance(model.owned_by, str) else "",
            created=int(model.created) if isinstance(model.created, int | float) else 0,
        )
        for model in listed
    )


def detect(answers: Mapping[str, ProbeAnswer]) -> ServerType | None:
    """The type of server by its answers to `PROBE_PATHS` (those that came); None: not a model server."""
    found = [kind for kind, says_so in _RULES.items() if says_so(answers)]
    if found:
        return found[0]
    return ServerType.OPENAI_COMPAT if _lists_models(answers) else None


def is_healthy(server_type: ServerType, answers: Mapping[str, ProbeAnswer]) -> bool:
    """True when the server says that it is ready, by its own health path where it has one."""
    answer = answers.get(_HEALTH_PATHS.get(server_type, MODELS_PATH))
    return answer is not None and answer.status == 200


def models_body(models: Iterable[Model], owner: str) -> bytes:
    """OpenAI's model list of what `owner` sells, under public names."""
    return msgspec.json.encode({"object": "list", "data": [_model_entry(model, owner) for model in models]})


def model_body(model: Model, owner: str) -> bytes:
    """OpenAI's answer about one model that `owner` sells."""
    return msgspec.json.encode(_model_entry(model, owner))


def count_plan(server_type: ServerType, request: InferenceRequest, served_model: str) -> CountPlan | None:
    """How this server counts the input of this request; None when it has no way to."""
    if request.api in {Api.COMPLETIONS, Api.EMBEDDINGS}:
        return _texts_plan(server_type, request, served_model)
    if server_type is ServerType.LLAMA_SERVER:
        body = msgspec.json.encode({**request.members, "model": served_model})
        if request.api is Api.CHAT:
            return CountPlan(template=TokenizerCall("/apply-template", body))
        path = _LLAMA_COUNTERS.get(request.api)
        return None if path is None else CountPlan(calls=(TokenizerCall(path, body),))
    if server_type is ServerType.VLLM and request.api is Api.CHAT:
        fields = {name: request.members[name] for name in _VLLM_CHAT_FIELDS if name in request.members}
        body = msgspec.json.encode({**fields, "model": served_model})
        return CountPlan(calls=(TokenizerCall("/tokenize", body),))
    return None


def text_call(server_type: ServerType, text: str, served_model: str) -> TokenizerCall:
    """The call that counts a text as the server would tokenize it for generation."""
    if server_type is ServerType.VLLM:
        return TokenizerCall("/tokenize", msgspec.json.encode({"model": served_model, "prompt": text}))
    body = {"content": text, "add_special": True, "parse_special": True}
    return TokenizerCall("/tokenize", msgspec.json.encode(body))


def parse_template(body: bytes) -> str:
    """The prompt that llama.cpp's `/apply-template` made. Raises `PeerProtocolError`."""
    prompt = _parse(body).get("prompt")
    if not isinstance(prompt, str):
        raise PeerProtocolError("the server's template answer holds no prompt")
    return prompt


def parse_count(body: bytes) -> int:
    """Tokens by a tokenizer's answer: `count`, `input_tokens` or the length of `tokens`. Raises `PeerProtocolError`."""
    answer = _parse(body)
    for name in ("count", "input_tokens"):
        count = answer.get(name)
        if isinstance(count, int) and not isinstance(count, bool) and count >= 0:
            return count
    tokens = answer.get("tokens")
    if not isinstance(tokens, list):
        raise PeerProtocolError("the server's tokenizer answer holds no count")
    return len(tokens)


def _texts_plan(server_type: ServerType, request: InferenceRequest, served_model: str) -> CountPlan | None:
    if server_type not in {ServerType.LLAMA_SERVER, ServerType.VLLM}:
        return None
    raw = request.members.get("prompt" if request.api is Api.COMPLETIONS else "input")
    value = None if raw is None else _decoded(raw)
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or len(texts) > MAX_PROMPTS_COUNTED or not all(isinstance(t, str) for t in texts):
        return None  # token ids are counted by `input_size.input_bound`: it is exact enough for them
    return CountPlan(calls=tuple(text_call(server_type, text, served_model) for text in texts))


def _decoded(raw: msgspec.Raw) -> object:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _lists_models(answers: Mapping[str, ProbeAnswer]) -> bool:
    return isinstance(_member(answers, MODELS_PATH, "data"), list)


def _owners(answers: Mapping[str, ProbeAnswer]) -> set[str]:
    data = _member(answers, MODELS_PATH, "data")
    return (
        {str(entry.get("owned_by")) for entry in data if isinstance(entry, dict)} if isinstance(data, list) else set()
    )


def _is_llama_server(answers: Mapping[str, ProbeAnswer]) -> bool:
    if any(answer.headers.get("server", "").lower().startswith("llama.cpp") for answer in answers.values()):
        return True
    return "default_generation_settings" in _answer(answers, "/props")


def _is_ollama(answers: Mapping[str, ProbeAnswer]) -> bool:
    has_version = isinstance(_member(answers, "/api/version", "version"), str)
    return has_version and isinstance(_member(answers, "/api/tags", "models"), list)


def _is_vllm(answers: Mapping[str, ProbeAnswer]) -> bool:
    health = answers.get("/health")
    is_silent = health is not None and health.status == 200 and not health.body.strip()
    has_version = isinstance(_member(answers, "/version", "version"), str)
    return "vllm" in _owners(answers) or (has_version and is_silent and _lists_models(answers))


def _is_lm_studio(answers: Mapping[str, ProbeAnswer]) -> bool:
    return "organization_owner" in _owners(answers) or isinstance(_member(answers, "/api/v0/models", "data"), list)


_RULES = MappingProxyType(
    {
        ServerType.LLAMA_SERVER: _is_llama_server,
        ServerType.VLLM: _is_vllm,
        ServerType.LM_STUDIO: _is_lm_studio,
        ServerType.OLLAMA: _is_ollama,
    }
)
"""In this order: a server that imitates another's paths still names itself."""


def _answer(answers: Mapping[str, ProbeAnswer], path: str) -> Mapping[str, Any]:
    """The JSON object that a path answered with 200; empty when it did not."""
    answer = answers.get(path)
    if answer is None or answer.status != 200:
        return {}
    try:
        return _parse(answer.body)
    except PeerProtocolError:
        return {}  # not its API


def _member(answers: Mapping[str, ProbeAnswer], path: str, name: str) -> object:
    return _answer(answers, path).get(name)


def _parse(body: bytes) -> Mapping[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise PeerProtocolError("the server's answer is not a JSON object") from error


def _model_entry(model: Model, owner: str) -> dict[str, object]:
    return {"id": model.public, "object": "model", "created": 0, "owned_by": owner}
