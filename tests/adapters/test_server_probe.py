"""Probing model servers over real sockets; the servers are small programs on port 0."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from obol.adapters.server_probe import MAX_ANSWER_BYTES, ServerProbe, probe
from obol.core.offer import Api
from obol.errors import UpstreamBrokenError, UpstreamError, UpstreamTimeoutError, UpstreamUnavailableError
from obol.inference.request import read_request
from obol.inference.routes import MODELS_PATH
from obol.inference.servers import ModelInfo, ServerType

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
MODELS = {"object": "list", "data": [{"id": "m", "owned_by": "llamacpp", "created": 7}]}
CHAT = read_request(Api.CHAT, b'{"model":"m","messages":[{"role":"user","content":"hi"}]}')


def says(content: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        return web.json_response(content, status=status, headers=headers)

    return handle


@asynccontextmanager
async def server(handlers: Mapping[str, Handler]) -> AsyncIterator[str]:
    app = web.Application()
    for path, handler in handlers.items():
        app.router.add_route("*", path, handler)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def probing(url: str, *, timeout_s: float = 5.0) -> AsyncIterator[ServerProbe]:
    found = ServerProbe(url, timeout_s=timeout_s)
    try:
        yield found
    finally:
        await found.close()
        await found.close()


async def test_a_server_is_told_with_its_models_and_health() -> None:
    llama = {"Server": "llama.cpp"}
    async with server({MODELS_PATH: says(MODELS, headers=llama), "/health": says({"status": "ok"})}) as url:
        found = await probe(url + "/")
    assert (found.server_type, found.healthy) == (ServerType.LLAMA_SERVER, True)
    assert found.models == (ModelInfo("m", "llamacpp", 7),)


async def test_a_server_that_loads_its_model_is_not_healthy() -> None:
    llama = {"Server": "llama.cpp"}
    async with server({MODELS_PATH: says(MODELS, headers=llama), "/health": says({}, status=503)}) as url:
        assert not (await probe(url)).healthy


async def test_the_credential_is_sent() -> None:
    seen: list[str | None] = []

    async def guarded(request: web.Request) -> web.StreamResponse:
        seen.append(request.headers.get("Authorization"))
        return web.json_response(MODELS, status=200 if seen[-1] == "Bearer k" else 401)

    async with server({MODELS_PATH: guarded}) as url:
        assert (await probe(url, auth="Bearer k")).server_type is ServerType.OPENAI_COMPAT
        with pytest.raises(UpstreamUnavailableError, match="credential") as caught:
            await probe(url)
    assert caught.value.reason == "upstream_unauthorized"
    assert seen == ["Bearer k", None]


async def test_nothing_listening_says_what_to_do() -> None:
    async with server({}) as url:
        pass
    with pytest.raises(UpstreamUnavailableError, match="start the model server"):
        await probe(url)


async def test_a_server_of_something_else_is_refused() -> None:
    async with server({}) as url:
        with pytest.raises(UpstreamUnavailableError, match="not an OpenAI-compatible model server"):
            await probe(url)
        with pytest.raises(UpstreamUnavailableError, match="without /v1"):
            await probe(url + "/v1")


@pytest.mark.parametrize("url", ["not a url", "http://", "ftp://127.0.0.1"])
async def test_a_wrong_address_is_refused(url: str) -> None:
    with pytest.raises(UpstreamUnavailableError):
        await probe(url)


async def test_a_silent_server_is_given_up() -> None:
    release = asyncio.Event()

    async def silent(request: web.Request) -> web.StreamResponse:
        await release.wait()
        return web.Response()

    async with server({MODELS_PATH: silent}) as url:
        with pytest.raises(UpstreamTimeoutError):
            await probe(url, timeout_s=0.2)
        release.set()


async def test_redirects_are_not_followed() -> None:
    visited: list[str] = []

    async def elsewhere(request: web.Request) -> web.StreamResponse:
        visited.append(request.path)
        return web.json_response(MODELS)

    async with server({MODELS_PATH: says({}, status=302, headers={"Location": "/other"}), "/other": elsewhere}) as url:
        with pytest.raises(UpstreamUnavailableError):
            await probe(url)
    assert visited == []


async def test_an_endless_answer_is_cut_off() -> None:
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * 65536)
            sent += 65536

    async with server({MODELS_PATH: endless}) as url:
        with pytest.raises(UpstreamBrokenError, match="longer than"):
            await probe(url)
    assert sent < 100 * MAX_ANSWER_BYTES


async def test_a_broken_answer_is_not_a_model_server() -> None:
    async def broken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"hello\r\n\r\n")
        writer.close()

    listener = await asyncio.start_server(broken, "127.0.0.1", 0)
    async with listener:
        with pytest.raises(UpstreamUnavailableError, match="HTTP"):
            await probe(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}")


async def test_chat_is_counted_behind_the_template() -> None:
    async def template(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        return web.json_response({"prompt": f"<{body['messages'][0]['content']}>{body['model']}"})

    async def tokenize(request: web.Request) -> web.StreamResponse:
        return web.json_response({"tokens": list((await request.json())["content"])})

    async with server({"/apply-template": template, "/tokenize": tokenize}) as url, probing(url) as asked:
        assert await asked.count_input_tokens(ServerType.LLAMA_SERVER, CHAT, "served") == len("<hi>served")


async def test_several_texts_are_counted_together() -> None:
    async def tokenize(request: web.Request) -> web.StreamResponse:
        return web.json_response({"count": len((await request.json())["prompt"]), "max_model_len": 4096})

    body = json.dumps({"model": "m", "prompt": ["abc", "de"]}).encode()
    async with server({"/tokenize": tokenize}) as url, probing(url) as asked:
        found = await asked.count_input_tokens(ServerType.VLLM, read_request(Api.COMPLETIONS, body), "served")
    assert found == 5


@pytest.mark.parametrize(
    ("server_type", "body"),
    [
        (ServerType.OLLAMA, b'{"model":"m","messages":[]}'),
        (ServerType.LLAMA_SERVER, b'{"model":"m","messages":[{"content":[{"type":"image_url","image_url":{}}]}]}'),
        (ServerType.LLAMA_SERVER, b'{"model":"m","messages":[]}'),
    ],
)
async def test_what_cannot_be_counted_is_said(server_type: ServerType, body: bytes) -> None:
    async with server({}) as url, probing(url) as asked:
        with pytest.raises(UpstreamError) as caught:
            await asked.count_input_tokens(server_type, read_request(Api.CHAT, body), "m")
    assert caught.value.reason == "not_countable"


@pytest.mark.parametrize("handler", [says({"error": {}}, status=400), says({"tokens": None}), says([])])
async def test_a_tokenizers_nonsense_is_a_broken_upstream(handler: Handler) -> None:
    async with server({"/apply-template": says({"prompt": "a"}), "/tokenize": handler}) as url, probing(url) as asked:
        with pytest.raises(UpstreamBrokenError):
            await asked.count_input_tokens(ServerType.LLAMA_SERVER, CHAT, "m")
