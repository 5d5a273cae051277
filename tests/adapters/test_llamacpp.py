import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from obol.adapters.llamacpp import MODEL_NAME, LlamaCppServer
from obol.adapters.upstream_http import HttpUpstream
from obol.errors import SettingsError, UpstreamUnavailableError
from obol.inference.upstream import UpstreamRequest
from tests.components import missing

TOKENS = 12
PARENT = """
import asyncio, pathlib, sys
from obol.adapters.llamacpp import LlamaCppServer
async def main():
    async with LlamaCppServer(pathlib.Path(sys.argv[1])) as server:
        print(server.url, flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def component() -> None:
    for module in ("gguf", "numpy", "xllamacpp"):
        try:
            __import__(module)
        except ImportError:
            missing(module, "pip install 'obol-inference[demo]'")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[LlamaCppServer]:
    async with LlamaCppServer(tmp_path) as running:
        yield running


@pytest.fixture
async def upstream(server: LlamaCppServer) -> AsyncIterator[HttpUpstream]:
    upstream = HttpUpstream(server.url)
    yield upstream
    await upstream.close()


async def exchange(upstream: HttpUpstream, target: str, body: object = None) -> tuple[int, dict[str, str], list[bytes]]:
    encoded = b"" if body is None else msgspec.json.encode(body)
    method = "GET" if body is None else "POST"
    response = await upstream.open(UpstreamRequest(method, target, [("Content-Type", "application/json")], encoded))
    chunks = []
    while chunk := await response.read_chunk():
        chunks.append(chunk)
    response.close()
    return response.status, {name.lower(): value for name, value in response.headers}, chunks


def chat(**more: object) -> dict[str, object]:
    return {"model": MODEL_NAME, "messages": [{"role": "user", "content": "hi"}], "max_tokens": TOKENS, **more}


async def test_the_model_is_listed_by_its_name(upstream: HttpUpstream) -> None:
    status, _, chunks = await exchange(upstream, "/v1/models")
    assert status == 200
    assert [model["id"] for model in msgspec.json.decode(b"".join(chunks))["data"]] == [MODEL_NAME]


async def test_a_plain_answer_is_readable_and_as_long_as_asked(upstream: HttpUpstream) -> None:
    status, headers, chunks = await exchange(upstream, "/v1/chat/completions", chat())
    answer = msgspec.json.decode(b"".join(chunks))
    assert (status, headers["content-type"].partition(";")[0]) == (200, "application/json")
    assert re.fullmatch(r"[a-z ]{6,}", answer["choices"][0]["message"]["content"].strip() + " " * 6)
    assert answer["usage"]["completion_tokens"] == TOKENS
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_a_stream_comes_in_many_chunks_with_usage_and_done(upstream: HttpUpstream) -> None:
    body = chat(stream=True, stream_options={"include_usage": True}, max_tokens=200)
    status, headers, chunks = await exchange(upstream, "/v1/chat/completions", body)
    assert (status, headers["content-type"].partition(";")[0]) == (200, "text/event-stream")
    events = b"".join(chunks).strip().split(b"\n\n")
    assert len(chunks) > 3
    assert events[-1] == b"data: [DONE]"
    assert msgspec.json.decode(events[-2].removeprefix(b"data: "))["usage"]["completion_tokens"] == 200


async def test_both_slots_work_at_once(upstream: HttpUpstream) -> None:
    answers = await asyncio.gather(*(exchange(upstream, "/v1/chat/completions", chat()) for _ in range(4)))
    assert [status for status, _, _ in answers] == [200] * 4


async def test_the_server_ends_with_its_context(tmp_path: Path) -> None:
    async with LlamaCppServer(tmp_path) as server:
        url = server.url
    await assert_gone(url)
    assert b"listening" in server.log_path.read_bytes()


async def test_the_server_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", PARENT, str(tmp_path), stdout=PIPE)
    assert parent.stdout is not None
    url = (await parent.stdout.readline()).decode().strip()
    assert url.startswith("http://127.0.0.1:")
    os.kill(parent.pid, signal.SIGKILL)
    await parent.wait()
    await assert_gone(url)


async def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / f"{MODEL_NAME}.gguf").write_bytes(b"not a model")
    with pytest.raises(UpstreamUnavailableError) as caught:
        async with LlamaCppServer(tmp_path):
            pass
    assert "exit code" in str(caught.value)
    assert "gguf" in str(caught.value)


async def test_a_server_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(UpstreamUnavailableError, match="did not answer"):
        async with LlamaCppServer(tmp_path, start_timeout_s=0.0):
            pass


async def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"pip install 'obol-inference\[demo\]'") as caught:
        async with LlamaCppServer(tmp_path, find_module=lambda name: None):
            pass
    assert caught.value.field == "--upstream"


async def assert_gone(url: str) -> None:
    """Nobody listens there, or soon does not."""
    port = int(url.rpartition(":")[2])
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionError:
            return
        writer.close()
        await asyncio.sleep(0.05)
