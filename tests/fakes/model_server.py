"""A model server for tests: a small real program on a real port that answers as vLLM, llama.cpp or Ollama would.

    async with FakeModelServer(models=("tiny-random",)) as server:
        first_token = asyncio.Event()
        server.behaviour = Behaviour(tokens=5, hold_before_first_token=first_token)
        ... HttpUpstream(server.url) ...
        await server.wait_until(lambda: server.in_flight == 1)
        first_token.set()
        assert server.calls[0].json["model"] == "tiny-random"

What it does is decided by the test, never by the client's request. Everything it was asked is in `requests`; what was
asked for inference alone is in `calls`.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from tests.fakes.model_answers import DIALECTS, WORDS, Answer, Dialect, Kind, UsageReport, count_input, output_limit
from tests.fakes.model_discovery import Flavour, discover

MAX_BODY_BYTES = 64 * 1024 * 1024


class Death(StrEnum):
    """Where a server aborts the connection."""

    BEFORE_HEAD = "before_head"
    BEFORE_FIRST_TOKEN = "before_first_token"
    MIDWAY = "midway"
    """A stream: after half of its tokens; a plain answer: after half of its bytes."""
    BEFORE_END = "before_end"
    """After everything but the end of the framing."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How one inference request is answered. In a plain answer every hold comes before the head."""

    tokens: int = 5
    words: tuple[str, ...] = WORDS
    """The text: these, over and over."""
    usage: UsageReport = UsageReport.ASKED
    done: bool = True
    """False: no `[DONE]` at the end of a stream."""

    hold_before_head: asyncio.Event | None = None
    hold_before_first_token: asyncio.Event | None = None
    hold_between_tokens: asyncio.Event | None = None
    """Waited for before every token but the first."""
    hold_before_end: asyncio.Event | None = None
    """Waited for after the last token, before usage, `[DONE]` and the end."""
    token_interval_s: float = 0.0

    split_bytes: int | None = None
    """Each piece is sent in writes of this many bytes: inside names, numbers and UTF-8 sequences."""
    death: Death | None = None
    hold_before_death: asyncio.Event | None = None
    """What was written before a death may be lost with it: set this when the reader has it."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    """Sent as it is instead of an answer; with another status than 200 an error is made up where this is None."""
    content_type: str = "application/json"
    redirect_to: str | None = None
    error_after_tokens: int | None = None
    """A stream breaks off with an error event."""


@dataclass(slots=True)
class Recorded:
    """One request as it arrived."""

    method: str
    raw_path: str
    headers: list[tuple[str, str]]
    body: bytes = b""
    disconnected: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the client went away before it had the whole answer."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the server is through with it, in whichever way."""
    sent_tokens: int = 0

    @property
    def path(self) -> str:
        return self.raw_path.partition("?")[0]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        """The first value of that name in any letter case."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


class FakeModelServer:
    """Async context manager. `behaviour` answers what `script` (a list, taken from the front) does not."""

    def __init__(
        self,
        models: tuple[str, ...] = ("tiny-random",),
        *,
        flavour: Flavour = Flavour.VLLM,
        behaviour: Behaviour | None = None,
    ) -> None:
        self.models = models
        self.flavour = flavour
        self.behaviour = behaviour or Behaviour()
        self.script: list[Behaviour] = []
        self.is_healthy = True
        self.requests: list[Recorded] = []
        self.in_flight = 0
        """Inference requests being answered now."""
        self.max_in_flight = 0
        self.port = 0
        self._changed = asyncio.Event()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def calls(self) -> list[Recorded]:
        """The requests for inference."""
        return [request for request in self.requests if request.path in DIALECTS]

    async def wait_until(self, condition: Callable[[], bool], *, timeout_s: float = 10.0) -> None:
        """Returns once the condition on this server holds; looks whenever a request arrives, sends or ends."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                await self._changed.wait()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listens; after a `stop` on the same port again."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.01, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stops listening and cuts every connection."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        headers = [(name.decode(), value.decode("utf-8", "replace")) for name, value in request.raw_headers]
        recorded = Recorded(request.method, request.raw_path, headers)
        self.requests.append(recorded)
        dialect = DIALECTS.get(recorded.path) if request.method == "POST" else None
        self._move(+1 if dialect else 0)
        try:
            recorded.body = await request.read()
            if dialect is None:
                return discover(self.flavour, self.models, recorded.path, recorded.body, is_healthy=self.is_healthy)
            behaviour = self.script.pop(0) if self.script else self.behaviour
            return await _Exchange(request, recorded, dialect, behaviour, self).answer()
        except (asyncio.CancelledError, ConnectionError):
            recorded.disconnected.set()
            raise
        finally:
            recorded.ended.set()
            self._move(-1 if dialect else 0)

    def _move(self, by: int) -> None:
        self.in_flight += by
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        self.notice()

    def notice(self) -> None:
        """Wakes whoever waits for something to change."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class _Died(Exception):  # noqa: N818 - an end, not an error
    """The connection was aborted on purpose."""


class _Exchange:
    """One inference request being answered by one behaviour."""

    def __init__(
        self, request: web.Request, recorded: Recorded, dialect: Dialect, behaviour: Behaviour, server: FakeModelServer
    ) -> None:
        self._request = request
        self._recorded = recorded
        self._dialect = dialect
        self._behaviour = behaviour
        self._server = server

    async def answer(self) -> web.StreamResponse:
        behaviour = self._behaviour
        await _hold(behaviour.hold_before_head)
        try:
            await self._die_at(Death.BEFORE_HEAD)
            if behaviour.redirect_to is not None:
                return web.Response(status=behaviour.status, headers={"Location": behaviour.redirect_to})
            if behaviour.body is not None:
                return await self._whole(behaviour.body, behaviour.content_type)
            if behaviour.status != HTTPStatus.OK:
                return await self._whole(_error(behaviour.status, "the model server says no"), "application/json")
            return await self._inference()
        except _Died:
            return web.Response()  # goes nowhere: there is no connection any more

    async def _inference(self) -> web.StreamResponse:
        try:
            request = self._recorded.json
            model = request["model"]
        except (ValueError, KeyError, TypeError):
            return web.Response(status=400, body=_error(400, "not a request"), content_type="application/json")
        if model not in self._server.models:
            missing = _error(404, f"The model `{model}` does not exist.")
            return web.Response(status=404, body=missing, content_type="application/json")
        answer = self._make(request)
        if self._dialect.stream and request.get("stream", self._dialect.streams_by_default):
            return await self._stream(answer)
        return await self._plain(answer)

    def _make(self, request: dict[str, Any]) -> Answer:
        behaviour = self._behaviour
        limit = output_limit(request)
        count = behaviour.tokens if limit is None else min(behaviour.tokens, limit)
        tokens = tuple(behaviour.words[n % len(behaviour.words)] for n in range(count))
        is_cut = count < behaviour.tokens
        return Answer(request, tokens, count_input(request), is_cut, behaviour.usage, behaviour.done)

    async def _plain(self, answer: Answer) -> web.StreamResponse:
        for number in range(len(answer.tokens)):
            await self._wait_for_token(number)
        await _hold(self._behaviour.hold_before_end)
        self._recorded.sent_tokens = len(answer.tokens)
        whole = json.dumps(self._dialect.plain(answer), ensure_ascii=False).encode()
        return await self._whole(whole, "application/json")

    async def _whole(self, body: bytes, content_type: str) -> web.StreamResponse:
        response = web.StreamResponse(status=self._behaviour.status, headers=self._behaviour.headers)
        response.content_type = content_type
        response.content_length = len(body)
        await response.prepare(self._request)
        await self._die_at(Death.BEFORE_FIRST_TOKEN)
        await self._write(response, body[: len(body) // 2])
        await self._die_at(Death.MIDWAY)
        await self._write(response, body[len(body) // 2 : -1])
        await self._die_at(Death.BEFORE_END)
        await self._write(response, body[-1:])
        await response.write_eof()
        return response

    async def _stream(self, answer: Answer) -> web.StreamResponse:
        stream = self._dialect.stream
        if stream is None:
            raise RuntimeError("this API has no streams")
        response = web.StreamResponse(headers={"Content-Type": self._dialect.stream_type, **self._behaviour.headers})
        response.enable_chunked_encoding()
        await response.prepare(self._request)
        is_tail = False
        for kind, piece in stream(answer):
            if kind is Kind.TOKEN:
                if not await self._before_token(response, len(answer.tokens)):
                    break
            elif kind is Kind.TAIL and not is_tail:
                is_tail = True
                await _hold(self._behaviour.hold_before_end)
            await self._write(response, piece)
            if kind is Kind.TOKEN:
                self._recorded.sent_tokens += 1
                self._server.notice()
        await self._die_at(Death.BEFORE_END)
        await response.write_eof()
        return response

    async def _before_token(self, response: web.StreamResponse, count: int) -> bool:
        """False when an error took the place of this token."""
        number = self._recorded.sent_tokens
        if number == 0:
            await self._die_at(Death.BEFORE_FIRST_TOKEN)
        elif number == count // 2:
            await self._die_at(Death.MIDWAY)
        if number == self._behaviour.error_after_tokens:
            await self._write(response, self._dialect.error("the model server fell over"))
            return False
        await self._wait_for_token(number)
        return True

    async def _wait_for_token(self, number: int) -> None:
        behaviour = self._behaviour
        await _hold(behaviour.hold_between_tokens if number else behaviour.hold_before_first_token)
        if behaviour.token_interval_s:
            await asyncio.sleep(behaviour.token_interval_s)

    async def _die_at(self, place: Death) -> None:
        if self._behaviour.death is not place:
            return
        await _hold(self._behaviour.hold_before_death)
        if self._request.transport is not None:
            self._request.transport.abort()
        raise _Died

    async def _write(self, response: web.StreamResponse, piece: bytes) -> None:
        step = self._behaviour.split_bytes or len(piece) or 1
        for start in range(0, len(piece), step):
            await response.write(piece[start : start + step])
            if self._behaviour.split_bytes:
                await asyncio.sleep(0)


async def _hold(event: asyncio.Event | None) -> None:
    if event is not None:
        await event.wait()


def _error(status: int, message: str) -> bytes:
    """OpenAI's and vLLM's shape."""
    kind = {400: "BadRequestError", 404: "NotFoundError"}.get(status, "InternalServerError")
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": status}}).encode()
