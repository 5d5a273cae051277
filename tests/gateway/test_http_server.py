"""The HTTP server under the gateway: its name, its own refusals, and what it logs."""

import pytest
import structlog
from aiohttp import web

from obol.gateway.http_server import HttpServer
from tests.fakes.raw_client import RawAnswer, RawClient, head


class Served:
    """An `HttpServer` around one handler, and its log."""

    def __init__(self, handler: object) -> None:
        self.logged: list[dict[str, object]] = []
        log: structlog.typing.FilteringBoundLogger = structlog.wrap_logger(
            None, processors=[self._note], wrapper_class=structlog.make_filtering_bound_logger("debug")
        )
        server = HttpServer(handler, log=log, entropy=lambda size: b"\x01" * size)  # type: ignore[arg-type]
        self._runner = web.ServerRunner(server, handle_signals=False, shutdown_timeout=0.1)

    def _note(self, _logger: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        self.logged.append({"level": method, **event})
        raise structlog.DropEvent

    async def __aenter__(self) -> "Served":
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = "http://{}:{}".format(*self._runner.addresses[0][:2])
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def ask(self, data: bytes) -> RawAnswer:
        async with RawClient(self.url) as client:
            await client.send(data)
            return await client.answer()


GET = head("GET", "/", {"Host": "x"})


async def hello(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(text="hello", headers={"Server": "nginx/1.2 behind"})


async def fail(request: web.BaseRequest) -> web.StreamResponse:
    raise ValueError("a bug with a secret")


async def fail_late(request: web.BaseRequest) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"begun")
    raise ValueError("a bug with a secret")


async def test_every_answer_has_our_name_alone() -> None:
    async with Served(hello) as served:
        answer = await served.ask(GET)
    assert [value for name, value in answer.headers if name == "Server"] == ["obol"]


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00secret\r\n\r\n",
        b"secret\r\n\r\n",
        b"GET /secret HTTP/1.1\n\n",
        b"GET / HTTP/1.1\r\nsecret\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nPAYMENT-SIGNATURE: secret" + b"s" * 30_000 + b"\r\n\r\n",
        b"GET /" + b"secret" * 5_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)
async def test_what_is_not_http_gets_our_words_and_leaves_none_of_its_own(data: bytes) -> None:
    async with Served(hello) as served:
        answer = await served.ask(data)
    assert answer.status == 400
    assert answer.json == {
        "error": {
            "message": "the request is not HTTP that can be understood",
            "type": "invalid_request_error",
            "code": "malformed_request",
            "param": None,
        },
        "reason": "malformed_request",
        "retriable": False,
        "request_id": "01" * 8,
    }
    assert answer.header("X-Request-Id") == "01" * 8
    assert answer.header("Server") == "obol"
    assert "secret" not in repr(served.logged)
    assert [(line["event"], line["level"]) for line in served.logged] == [("not_http", "info")]


async def test_a_bug_of_the_handler_is_500_and_in_the_log() -> None:
    async with Served(fail) as served:
        answer = await served.ask(GET)
    assert (answer.status, answer.json["reason"]) == (500, "internal")
    assert b"secret" not in answer.body
    (line,) = served.logged
    assert (line["event"], line["request"], line["error"]) == (
        "request_failed",
        answer.json["request_id"],
        "ValueError",
    )


async def test_a_bug_after_the_head_cuts_the_answer() -> None:
    async with Served(fail_late) as served, RawClient(served.url) as client:
        await client.send(GET)
        received = await client.rest()
    assert received.endswith(b"5\r\nbegun\r\n"), "no second answer, and no end of the body"
    assert served.logged[0]["event"] == "request_failed"
