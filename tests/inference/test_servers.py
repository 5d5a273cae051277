"""Which server is it, what does it list, how does it count. Answers of llama.cpp's server are recorded ones."""

import json
from typing import Any

import pytest

from obol.core.offer import Api, Model
from obol.errors import PeerProtocolError
from obol.inference.request import read_request
from obol.inference.routes import MODELS_PATH
from obol.inference.servers import (
    MAX_PROMPTS_COUNTED,
    ModelInfo,
    ProbeAnswer,
    ServerType,
    count_plan,
    detect,
    is_healthy,
    model_body,
    models_body,
    parse_count,
    parse_models,
    parse_template,
    text_call,
)

LLAMA_MODELS = (
    b'{"models":[{"name":"tiny-random","model":"tiny-random","modified_at":"","size":"","digest":"","type":"model"}],'
    b'"object":"list","data":[{"id":"tiny-random","aliases":["tiny-random"],"tags":[],"object":"model",'
    b'"architecture":{"input_modalities":["text"]},"created":1795216310,"owned_by":"llamacpp","meta":{"n_ctx":1024}}]}'
)


def answer(content: object, *, status: int = 200, server: str = "") -> ProbeAnswer:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return ProbeAnswer(status, {"server": server} if server else {}, body)


def listing(owner: str) -> ProbeAnswer:
    return answer({"object": "list", "data": [{"id": "m", "owned_by": owner}]})


NOT_FOUND = answer({"error": {"code": 404}}, status=404)
OLLAMA = {
    MODELS_PATH: listing("library"),
    "/api/version": answer({"version": "0.34.0"}),
    "/api/tags": answer({"models": []}),
}


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({MODELS_PATH: answer(LLAMA_MODELS, server="llama.cpp")}, ServerType.LLAMA_SERVER),
        ({MODELS_PATH: listing("x"), "/props": answer({"default_generation_settings": {}})}, ServerType.LLAMA_SERVER),
        (
            {MODELS_PATH: listing("x"), "/props": answer({"default_generation_settings": 1}, status=404)},
            ServerType.OPENAI_COMPAT,
        ),
        (OLLAMA, ServerType.OLLAMA),
        (OLLAMA | {MODELS_PATH: NOT_FOUND}, ServerType.OLLAMA),
        (OLLAMA | {MODELS_PATH: answer(LLAMA_MODELS, server="llama.cpp")}, ServerType.LLAMA_SERVER),
        ({MODELS_PATH: listing("vllm"), "/health": answer(b"")}, ServerType.VLLM),
        (
            {MODELS_PATH: listing("acme"), "/health": answer(b""), "/version": answer({"version": "0.11"})},
            ServerType.VLLM,
        ),
        (
            {MODELS_PATH: listing("acme"), "/health": answer({"status": "ok"}), "/version": answer({"version": "1"})},
            ServerType.OPENAI_COMPAT,
        ),
        ({MODELS_PATH: listing("organization_owner")}, ServerType.LM_STUDIO),
        ({MODELS_PATH: listing("x"), "/api/v0/models": answer({"data": []})}, ServerType.LM_STUDIO),
        ({MODELS_PATH: listing("x")}, ServerType.OPENAI_COMPAT),
        ({MODELS_PATH: answer(b"<html>")}, None),
        ({MODELS_PATH: NOT_FOUND, "/health": answer({"status": "ok"})}, None),
        ({MODELS_PATH: answer({"data": [1, None]})}, ServerType.OPENAI_COMPAT),
        ({}, None),
    ],
)
def test_servers_are_told_apart(answers: dict[str, ProbeAnswer], expected: ServerType | None) -> None:
    assert detect(answers) == expected


@pytest.mark.parametrize(
    ("server_type", "answers", "expected"),
    [
        (ServerType.LLAMA_SERVER, {"/health": answer({"status": "ok"})}, True),
        (ServerType.LLAMA_SERVER, {"/health": answer({"error": {"message": "Loading model"}}, status=503)}, False),
        (ServerType.VLLM, {MODELS_PATH: listing("vllm")}, False),
        (ServerType.OLLAMA, OLLAMA, True),
        (ServerType.OPENAI_COMPAT, {MODELS_PATH: listing("x")}, True),
        (ServerType.OPENAI_COMPAT, {MODELS_PATH: NOT_FOUND}, False),
    ],
)
def test_a_server_says_itself_whether_it_is_ready(
    server_type: ServerType, answers: dict[str, ProbeAnswer], expected: bool
) -> None:
    assert is_healthy(server_type, answers) is expected


def test_the_models_are_listed_in_order() -> None:
    assert parse_models(LLAMA_MODELS) == (ModelInfo("tiny-random", "llamacpp", 1795216310),)
    assert parse_models(b'{"data":[{"id":"b","created":1.5},{"id":"a","owned_by":null}]}') == (
        ModelInfo("b", "", 1),
        ModelInfo("a"),
    )
    assert parse_models(b'{"object":"list","data":null}') == ()  # Ollama without models


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"data":{}}', b'{"data":[{"name":"x"}]}', b'{"data":[{"id":1}]}', b"[" * 9999]
)
def test_another_model_list_is_a_protocol_error(body: bytes) -> None:
    with pytest.raises(PeerProtocolError):
        parse_models(body)


def test_what_is_sold_is_listed_under_public_names() -> None:
    models = (Model("public", "served-secret"), Model("b", "b"))
    listed = models_body(models, "shop")
    assert b"served-secret" not in listed
    assert parse_models(listed) == (ModelInfo("public", "shop", 0), ModelInfo("b", "shop", 0))
    assert json.loads(listed)["object"] == "list"
    assert json.loads(model_body(models[0], "shop")) == {
        "id": "public",
        "object": "model",
        "created": 0,
        "owned_by": "shop",
    }


def plan_of(server_type: ServerType, api: Api, **fields: Any) -> tuple[list[tuple[str, Any]], str | None] | None:
    plan = count_plan(server_type, read_request(api, json.dumps({"model": "m", **fields}).encode()), "served")
    if plan is None:
        return None
    return [(c.path, json.loads(c.body)) for c in plan.calls], None if plan.template is None else plan.template.path


CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}


def test_llama_cpp_counts_chat_behind_its_template() -> None:
    assert plan_of(ServerType.LLAMA_SERVER, Api.CHAT, **CHAT) == ([], "/apply-template")
    call = text_call(ServerType.LLAMA_SERVER, "<|im_start|>", "served")
    assert (call.path, json.loads(call.body)) == (
        "/tokenize",
        {"content": "<|im_start|>", "add_special": True, "parse_special": True},
    )


def test_llama_cpp_counts_other_apis_itself() -> None:
    assert plan_of(ServerType.LLAMA_SERVER, Api.MESSAGES, **CHAT) == (
        [("/v1/messages/count_tokens", {"model": "served", **CHAT})],
        None,
    )
    responses = plan_of(ServerType.LLAMA_SERVER, Api.RESPONSES, input="hi")
    assert responses == ([("/v1/responses/input_tokens", {"model": "served", "input": "hi"})], None)


def test_vllm_counts_messages_and_texts() -> None:
    tools = [{"type": "function"}]
    assert plan_of(ServerType.VLLM, Api.CHAT, **CHAT, tools=tools) == (
        [("/tokenize", {"model": "served", "messages": CHAT["messages"], "tools": tools})],
        None,
    )
    assert plan_of(ServerType.VLLM, Api.EMBEDDINGS, input=["a", "b"]) == (
        [("/tokenize", {"model": "served", "prompt": "a"}), ("/tokenize", {"model": "served", "prompt": "b"})],
        None,
    )


@pytest.mark.parametrize(
    ("server_type", "api", "fields"),
    [
        (ServerType.OLLAMA, Api.CHAT, CHAT),
        (ServerType.OPENAI_COMPAT, Api.COMPLETIONS, {"prompt": "a"}),
        (ServerType.VLLM, Api.RESPONSES, {"input": "a"}),
        (ServerType.VLLM, Api.COMPLETIONS, {"prompt": [1, 2]}),
        (ServerType.VLLM, Api.COMPLETIONS, {"prompt": ["a"] * (MAX_PROMPTS_COUNTED + 1)}),
        (ServerType.LLAMA_SERVER, Api.OLLAMA_CHAT, CHAT),
        (ServerType.LLAMA_SERVER, Api.COMPLETIONS, {}),
    ],
)
def test_what_a_server_cannot_count_has_no_plan(server_type: ServerType, api: Api, fields: dict[str, Any]) -> None:
    assert plan_of(server_type, api, **fields) is None


@pytest.mark.parametrize(
    ("body", "count"),
    [
        (b'{"tokens":[256,117,115]}', 3),
        (b'{"tokens":[]}', 0),
        (b'{"count":12,"max_model_len":4096,"tokens":[1]}', 12),
        (b'{"input_tokens":21,"object":"response.input_tokens"}', 21),
    ],
)
def test_a_tokenizers_count_is_read(body: bytes, count: int) -> None:
    assert parse_count(body) == count


@pytest.mark.parametrize("body", [b"", b"{}", b'{"count":-1}', b'{"count":true}', b'{"tokens":3}', b"[1]"])
def test_a_tokenizers_nonsense_is_a_protocol_error(body: bytes) -> None:
    with pytest.raises(PeerProtocolError):
        parse_count(body)


def test_a_template_answer_is_read() -> None:
    assert parse_template(b'{"prompt":"<|im_start|>user\\nhi"}') == "<|im_start|>user\nhi"
    with pytest.raises(PeerProtocolError):
        parse_template(b'{"prompt":null}')
