"""The fake model server is trusted by every test of the gateway, so it is tested itself, over its socket."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai import AsyncOpenAI

from obol.adapters.upstream_http import HttpUpstream
from obol.errors import UpstreamBrokenError
from obol.inference.upstream import UpstreamRequest, UpstreamResponse
from tests.fakes.model_answers import DIALECTS, WORDS, UsageReport
from tests.fakes.model_discovery import Flavour
from tests.fakes.model_server import Behaviour, Death, FakeModelServer

CHAT = "/v1/chat/completions"
SEEN_S = 5.0
STREAMS = [path for path, dialect in DIALECTS.items() if dialect.stream]


@pytest.fixture
async def server() -> AsyncIterator[FakeModelServer]:
    async with FakeModelServer() as running:
        yield running


@pytest.fixture
async def upstream(server: FakeModelServer) -> AsyncIterator[HttpUpstream]:
    client = HttpUpstream(server.url)
    yield client
    await client.close()


def body(**more: object) -> bytes:
    request = {"model": "tiny-random", "messages": [{"role": "user", "content": "one two three"}], **more}
    return json.dumps(request).encode()


async def begin(upstream: HttpUpstream, path: str = CHAT, **more: object) -> UpstreamResponse:
    return await upstream.open(UpstreamRequest("POST", path, [("X-Test", "1")], body(**more)))


async def rest(response: UpstreamResponse) -> bytes:
    chunks = []
    while chunk := await response.read_chunk():
        chunks.append(chunk)
    return b"".join(chunks)


async def answer(upstream: HttpUpstream, path: str = CHAT, **more: object) -> Any:
    return json.loads(await rest(await begin(upstream, path, **more)))


async def get(upstream: HttpUpstream, path: str) -> tuple[int, bytes]:
    response = await upstream.open(UpstreamRequest("GET", path, (), b""))
    return response.status, await rest(response)


def events(stream: bytes) -> list[Any]:
    """The JSON of every event or line; `[DONE]` as that text."""
    lines = [line.removeprefix(b"data: ") for line in stream.split(b"\n") if line[:1] == b"{" or line[:5] == b"data:"]
    return ["[DONE]" if line == b"[DONE]" else json.loads(line) for line in lines]


# ------------------------------------------------------------------------------------------------------ the answers


async def test_the_openai_client_understands_it(server: FakeModelServer) -> None:
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        chat = await client.chat.completions.create(
            model="tiny-random", messages=[{"role": "user", "content": "a b c"}], max_tokens=3
        )
        assert chat.choices[0].message.content == "".join(WORDS[:3])
        assert chat.choices[0].finish_reason == "length"
        assert chat.usage is not None
        assert (chat.usage.prompt_tokens, chat.usage.completion_tokens) == (3, 3)

        embedding = await client.embeddings.create(model="tiny-random", input=["a", "b"])
        assert [entry.embedding for entry in embedding.data] == [[0.5, -0.25, 0.125]] * 2

        stream = await client.responses.create(model="tiny-random", input="a b", stream=True)
        kinds = [event.type async for event in stream]
        assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")

        response = await client.responses.create(model="tiny-random", input="a b")
        assert response.output_text == "".join(WORDS[:5])
        assert [model.id async for model in client.models.list()] == ["tiny-random"]


@pytest.mark.parametrize("path", list(DIALECTS))
async def test_every_api_answers_plainly(upstream: HttpUpstream, path: str) -> None:
    assert (await answer(upstream, path, stream=False))["model"] == "tiny-random"


@pytest.mark.parametrize("path", STREAMS)
async def test_every_stream_holds_the_text_in_many_pieces(upstream: HttpUpstream, path: str) -> None:
    stream = await rest(await begin(upstream, path, stream=True))
    assert all(word.strip().encode() in stream for word in WORDS[:5])
    assert len(events(stream)) > 5


async def test_ollama_streams_unless_told_otherwise(upstream: HttpUpstream) -> None:
    response = await begin(upstream, "/api/chat")
    assert dict(response.headers)["Content-Type"].startswith("application/x-ndjson")
    last = events(await rest(response))[-1]
    assert (last["done"], last["prompt_eval_count"], last["eval_count"]) == (True, 3, 5)


async def test_a_limit_by_any_name_cuts_the_answer(upstream: HttpUpstream) -> None:
    for limit in ({"max_tokens": 2}, {"max_completion_tokens": 2}, {"options": {"num_predict": 2}}):
        chat = await answer(upstream, **limit)
        assert (chat["usage"]["completion_tokens"], chat["choices"][0]["finish_reason"]) == (2, "length")
    assert (await answer(upstream, "/v1/responses", max_output_tokens=2))["status"] == "incomplete"


async def test_n_choices_are_counted(upstream: HttpUpstream) -> None:
    chat = await answer(upstream, n=3)
    assert [choice["index"] for choice in chat["choices"]] == [0, 1, 2]
    assert chat["usage"]["completion_tokens"] == 15


@pytest.mark.parametrize(
    ("report", "asked", "places"),
    [
        (UsageReport.ASKED, True, [-2]),
        (UsageReport.ASKED, False, []),
        (UsageReport.ALWAYS, False, [-2]),
        (UsageReport.LAST_DELTA, True, [-2]),
        (UsageReport.ABSENT, True, []),
    ],
)
async def test_usage_is_where_the_behaviour_says(
    server: FakeModelServer, upstream: HttpUpstream, report: UsageReport, asked: bool, places: list[int]
) -> None:
    server.behaviour = Behaviour(usage=report)
    found = events(await rest(await begin(upstream, stream=True, stream_options={"include_usage": asked})))
    assert [number - len(found) for number, event in enumerate(found) if "usage" in event] == places
    if report is UsageReport.LAST_DELTA:
        assert found[-2]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("path", list(DIALECTS))
async def test_absent_usage_is_absent_everywhere(server: FakeModelServer, upstream: HttpUpstream, path: str) -> None:
    server.behaviour = Behaviour(usage=UsageReport.ABSENT)
    for stream in (True, False):
        whole = await rest(await begin(upstream, path, stream=stream))
        for word in (b'"usage": {', b"_tokens", b"eval_count"):
            assert word not in whole


async def test_done_can_be_left_out(server: FakeModelServer, upstream: HttpUpstream) -> None:
    assert events(await rest(await begin(upstream, stream=True)))[-1] == "[DONE]"
    server.behaviour = Behaviour(done=False)
    assert events(await rest(await begin(upstream, stream=True)))[-1] != "[DONE]"


async def test_split_writes_are_the_same_bytes(server: FakeModelServer, upstream: HttpUpstream) -> None:
    whole = await rest(await begin(upstream, stream=True))
    server.behaviour = Behaviour(split_bytes=1)
    response = await begin(upstream, stream=True)
    chunks = []
    while chunk := await response.read_chunk():
        chunks.append(chunk)
    assert b"".join(chunks) == whole
    assert any(chunk[-1] >= 0x80 for chunk in chunks)  # inside a character


# ------------------------------------------------------------------------------------------------- holds and ends


async def test_it_stalls_before_the_head(server: FakeModelServer, upstream: HttpUpstream) -> None:
    go = asyncio.Event()
    server.behaviour = Behaviour(hold_before_head=go)
    async with asyncio.TaskGroup() as tasks:
        opening = tasks.create_task(begin(upstream, stream=True))
        await server.wait_until(lambda: server.in_flight == 1)
        assert not opening.done()
        go.set()
    assert await rest(opening.result())


async def test_it_stalls_before_the_first_token_and_between_tokens(
    server: FakeModelServer, upstream: HttpUpstream
) -> None:
    first, others, end = asyncio.Event(), asyncio.Event(), asyncio.Event()
    server.behaviour = Behaviour(hold_before_first_token=first, hold_between_tokens=others, hold_before_end=end)
    response = await begin(upstream, stream=True)
    call = server.calls[0]
    assert b'"role": "assistant"' in await response.read_chunk()
    for event, tokens in ((first, 1), (others, 5)):
        event.set()
        await server.wait_until(lambda expected=tokens: call.sent_tokens == expected)  # type: ignore[misc]
    assert not call.ended.is_set()
    end.set()
    assert (await rest(response)).endswith(b"data: [DONE]\n\n")


async def test_a_plain_answer_stalls_before_its_head(server: FakeModelServer, upstream: HttpUpstream) -> None:
    go = asyncio.Event()
    server.behaviour = Behaviour(hold_before_first_token=go)
    async with asyncio.TaskGroup() as tasks:
        opening = tasks.create_task(begin(upstream))
        await server.wait_until(lambda: server.in_flight == 1)
        assert not opening.done()
        go.set()
    await rest(opening.result())


async def test_it_dies_before_the_head(server: FakeModelServer, upstream: HttpUpstream) -> None:
    server.behaviour = Behaviour(death=Death.BEFORE_HEAD)
    with pytest.raises(UpstreamBrokenError):
        await begin(upstream)


@pytest.mark.parametrize(
    ("death", "stream", "last"),
    [
        (Death.BEFORE_FIRST_TOKEN, True, b'"assistant"'),
        (Death.MIDWAY, True, WORDS[1].encode()),
        (Death.BEFORE_END, True, b"[DONE]"),
        (Death.BEFORE_FIRST_TOKEN, False, b""),
        (Death.MIDWAY, False, b'{"id"'),
        (Death.BEFORE_END, False, b'"usage"'),
    ],
)
async def test_it_dies_where_it_is_told(
    server: FakeModelServer, upstream: HttpUpstream, death: Death, stream: bool, last: bytes
) -> None:
    when = asyncio.Event()
    server.behaviour = Behaviour(death=death, hold_before_death=when)
    response = await begin(upstream, stream=stream)
    received = b""
    while last not in received:
        received += await response.read_chunk()
    when.set()
    with pytest.raises(UpstreamBrokenError):
        await rest(response)
    await server.calls[0].ended.wait()
    assert not server.calls[0].disconnected.is_set()


async def test_a_stream_breaks_off_with_an_error(server: FakeModelServer, upstream: HttpUpstream) -> None:
    server.behaviour = Behaviour(error_after_tokens=2)
    for path in STREAMS:
        stream = await rest(await begin(upstream, path, stream=True))
        assert b"fell over" in stream
        assert b"[DONE]" not in stream


@pytest.mark.parametrize("status", [400, 500, 503])
async def test_it_answers_with_an_error(server: FakeModelServer, upstream: HttpUpstream, status: int) -> None:
    server.behaviour = Behaviour(status=status, headers={"Retry-After": "7"})
    response = await begin(upstream, stream=True)
    assert (response.status, dict(response.headers)["Retry-After"]) == (status, "7")
    assert json.loads(await rest(response))["error"]["code"] == status
    server.behaviour = Behaviour(status=status, body=b"<h1>no</h1>", content_type="text/html")
    assert await rest(await begin(upstream)) == b"<h1>no</h1>"


async def test_it_redirects(server: FakeModelServer, upstream: HttpUpstream) -> None:
    server.behaviour = Behaviour(status=307, redirect_to="http://127.0.0.1:1/")
    response = await begin(upstream)
    assert (response.status, dict(response.headers)["Location"]) == (307, "http://127.0.0.1:1/")
    response.close()


async def test_an_unknown_model_is_not_found_and_nonsense_is_refused(upstream: HttpUpstream) -> None:
    assert (await begin(upstream, model="other")).status == 404
    assert (await upstream.open(UpstreamRequest("POST", CHAT, (), b"nonsense"))).status == 400


async def test_a_huge_answer_is_huge(server: FakeModelServer, upstream: HttpUpstream) -> None:
    server.behaviour = Behaviour(tokens=64, words=("x" * 65536,))
    assert len(await rest(await begin(upstream))) > 4_000_000


async def test_a_slow_answer_is_slow(server: FakeModelServer, upstream: HttpUpstream) -> None:
    server.behaviour = Behaviour(tokens=3, token_interval_s=0.02)
    started = asyncio.get_running_loop().time()
    await rest(await begin(upstream, stream=True))
    assert asyncio.get_running_loop().time() - started >= 0.05


# ----------------------------------------------------------------------------------------------- what it remembers


async def test_requests_are_recorded_as_they_came(server: FakeModelServer, upstream: HttpUpstream) -> None:
    await get(upstream, "/health?x=%20")
    await answer(upstream)
    assert [(request.method, request.raw_path) for request in server.requests] == [
        ("GET", "/health?x=%20"),
        ("POST", CHAT),
    ]
    assert server.calls == server.requests[1:]
    assert server.calls[0].body == body()
    assert (server.calls[0].header("x-test"), server.calls[0].header("x-none")) == ("1", None)
    assert ("X-Test", "1") in server.calls[0].headers


async def test_the_script_comes_before_the_behaviour(server: FakeModelServer, upstream: HttpUpstream) -> None:
    server.script = [Behaviour(status=500), Behaviour(tokens=1)]
    assert (await begin(upstream)).status == 500
    assert [(await answer(upstream))["usage"]["completion_tokens"] for _ in range(2)] == [1, 5]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_is_noticed_at_once(
    server: FakeModelServer, upstream: HttpUpstream, stream: bool
) -> None:
    server.behaviour = Behaviour(hold_before_end=asyncio.Event())
    async with asyncio.TaskGroup() as tasks:
        opening = tasks.create_task(begin(upstream, stream=stream))
        await server.wait_until(lambda: server.in_flight == 1)
        if stream:
            (await opening).close()
        else:
            opening.cancel()
    async with asyncio.timeout(SEEN_S):
        await server.calls[0].disconnected.wait()
        await server.calls[0].ended.wait()
    assert server.in_flight == 0


async def test_a_client_that_stays_is_not_noticed_leaving(server: FakeModelServer, upstream: HttpUpstream) -> None:
    await answer(upstream)
    await server.calls[0].ended.wait()
    assert not server.calls[0].disconnected.is_set()


async def test_concurrency_is_counted(server: FakeModelServer, upstream: HttpUpstream) -> None:
    go = asyncio.Event()
    server.behaviour = Behaviour(hold_before_head=go)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(3):
            tasks.create_task(answer(upstream))
        await server.wait_until(lambda: server.in_flight == 3)
        assert (await get(upstream, "/health"))[0] == 200
        go.set()
    assert (server.in_flight, server.max_in_flight) == (0, 3)


async def test_it_comes_back_on_the_same_port(server: FakeModelServer, upstream: HttpUpstream) -> None:
    port = server.port
    await server.stop()
    await server.start()
    assert server.port == port
    assert (await get(upstream, "/health"))[0] == 200


# -------------------------------------------------------------------------------------------- what it says it is


@pytest.mark.parametrize(
    ("flavour", "known", "unknown"),
    [
        (Flavour.VLLM, ["/v1/models", "/health", "/version"], ["/api/tags", "/props"]),
        (Flavour.LLAMACPP, ["/v1/models", "/health", "/props"], ["/version", "/api/tags"]),
        (Flavour.OLLAMA, ["/v1/models", "/", "/api/version", "/api/tags"], ["/health", "/version"]),
        (Flavour.GENERIC, ["/v1/models"], ["/health", "/version", "/api/version", "/tokenize"]),
    ],
)
async def test_each_kind_of_server_has_its_own_endpoints(
    flavour: Flavour, known: list[str], unknown: list[str]
) -> None:
    async with FakeModelServer(models=("a", "b"), flavour=flavour) as server:
        upstream = HttpUpstream(server.url)
        assert [(await get(upstream, path))[0] for path in known + unknown] == [200] * len(known) + [404] * len(unknown)
        models = json.loads((await get(upstream, "/v1/models"))[1])
        assert [model["id"] for model in models["data"]] == ["a", "b"]
        server.is_healthy = False
        assert (await get(upstream, "/v1/models"))[0] == 503
        await upstream.close()


async def test_tokenizers_count_words() -> None:
    async with FakeModelServer(flavour=Flavour.VLLM) as vllm, FakeModelServer(flavour=Flavour.LLAMACPP) as llamacpp:
        first, second = HttpUpstream(vllm.url), HttpUpstream(llamacpp.url)
        assert (await answer(first, "/tokenize"))["count"] == 3
        assert (await answer(first, "/tokenize", messages=None, prompt="a b"))["count"] == 2
        prompt = (await answer(second, "/apply-template"))["prompt"]
        assert len((await answer(second, "/tokenize", messages=None, content=prompt))["tokens"]) == 3
        await first.close()
        await second.close()
