"""What model servers say about themselves: health, version, models and tokenizer, by the kind of server they are."""

import json
from collections.abc import Callable
from enum import StrEnum
from typing import Any

from aiohttp import web

from tests.fakes.model_answers import CREATED_S, Json, texts

CONTEXT_TOKENS = 2048


class Flavour(StrEnum):
    """Which server this is. GENERIC knows `/v1/models` and nothing else."""

    VLLM = "vllm"
    LLAMACPP = "llamacpp"
    OLLAMA = "ollama"
    GENERIC = "generic"


Reply = Callable[[tuple[str, ...], Json], Json | str]


def discover(
    flavour: Flavour, models: tuple[str, ...], path: str, body: bytes, *, is_healthy: bool
) -> web.StreamResponse:
    """The answer of that kind of server on any path that is not inference; 404 where it has none."""
    if not is_healthy:
        return web.Response(status=503, text='{"error":{"message":"Loading model","code":503}}')
    reply = {**_COMMON, **_REPLIES[flavour]}.get(path)
    if reply is None:
        return web.json_response({"detail": "Not Found"}, status=404)
    try:
        request = json.loads(body) if body else {}
    except ValueError:
        return web.json_response({"error": {"message": "not JSON", "code": 400}}, status=400)
    value = reply(models, request)
    headers = {"Server": _SERVER[flavour]}
    return (
        web.Response(text=value, headers=headers)
        if isinstance(value, str)
        else web.json_response(value, headers=headers)
    )


def _models(owner: str, **more: object) -> Reply:
    def reply(models: tuple[str, ...], request: Json) -> Json:
        entry: dict[str, Any] = {"object": "model", "created": CREATED_S, "owned_by": owner, **more}
        return {"object": "list", "data": [{"id": model, **entry} for model in models]}

    return reply


def _said(value: Json | str) -> Reply:
    return lambda models, request: value


def _tokens(request: Json) -> list[int]:
    """One number for each word of everything that is to be tokenized."""
    found = [*texts(request.get("prompt")), *texts(request.get("messages")), *texts(request.get("content"))]
    return list(range(1, 1 + sum(len(text.split()) for text in found)))


def _vllm_tokenize(models: tuple[str, ...], request: Json) -> Json:
    tokens = _tokens(request)
    return {"count": len(tokens), "max_model_len": CONTEXT_TOKENS, "tokens": tokens, "token_strs": None}


def _llamacpp_template(models: tuple[str, ...], request: Json) -> Json:
    return {"prompt": " ".join(texts(request.get("messages")))}


def _ollama_tags(models: tuple[str, ...], request: Json) -> Json:
    return {"models": [{"name": model, "model": model, "size": 1, "digest": "0" * 64} for model in models]}


_COMMON: dict[str, Reply] = {"/v1/models": _models("someone")}
_SERVER = {
    Flavour.VLLM: "uvicorn",
    Flavour.LLAMACPP: "llama.cpp",
    Flavour.OLLAMA: "ollama",
    Flavour.GENERIC: "generic",
}
_REPLIES: dict[Flavour, dict[str, Reply]] = {
    Flavour.VLLM: {
        "/v1/models": _models("vllm", max_model_len=CONTEXT_TOKENS),
        "/health": _said(""),
        "/version": _said({"version": "0.11.0"}),
        "/tokenize": _vllm_tokenize,
    },
    Flavour.LLAMACPP: {
        "/v1/models": _models("llamacpp", meta={"n_ctx_train": CONTEXT_TOKENS, "n_vocab": 259}),
        "/health": _said({"status": "ok"}),
        "/props": _said(
            {"default_generation_settings": {"n_ctx": CONTEXT_TOKENS}, "total_slots": 2, "build_info": "b1"}
        ),
        "/tokenize": lambda models, request: {"tokens": _tokens(request)},
        "/apply-template": _llamacpp_template,
    },
    Flavour.OLLAMA: {
        "/v1/models": _models("library"),
        "/": _said("Ollama is running"),
        "/api/version": _said({"version": "0.12.3"}),
        "/api/tags": _ollama_tags,
    },
    Flavour.GENERIC: {},
}
