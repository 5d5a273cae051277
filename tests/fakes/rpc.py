"""A hostile RPC: a small HTTP proxy before a real node, which fails or lies for the methods it is told to."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import aiohttp
from aiohttp import web


@dataclass(frozen=True)
class Fails:
    """Answers this status and body."""

    status: int = 500
    body: bytes = b"oops"


@dataclass(frozen=True)
class Drops:
    """Closes the connection; with `after`, once the node has answered."""

    after: bool = False


@dataclass(frozen=True)
class Stalls:
    """Never answers."""


@dataclass(frozen=True)
class Says:
    """Answers what this makes of the node's result."""

    change: Callable[[Any], Any]


@dataclass(frozen=True)
class Errors:
    """Answers a JSON-RPC error; with `times`, so often and then what is true."""

    code: int
    message: str
    data: Any = None
    times: int | None = None


@dataclass(frozen=True)
class Where:
    """Does what this says of what was asked, at once or in its own time; None: what is true."""

    choose: Callable[[Mapping[str, Any]], "Behaviour | Awaitable[Behaviour | None] | None"]


Behaviour = Fails | Drops | Stalls | Says | Errors | Where


class FakeRpc:
    """`behaviours` by method, or under "*" for all."""

    def __init__(self, node_url: str) -> None:
        self._node_url = node_url
        self.behaviours: dict[str, Behaviour] = {}
        self.asked: Counter[str] = Counter()
        self._released = asyncio.Event()
        self._questions = asyncio.Condition()
        self._news = asyncio.Condition()

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=2**24)
        app.router.add_post("/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self._session = aiohttp.ClientSession()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        await self._session.close()
        await self._runner.cleanup()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1/s3cret-key"

    async def hears(self, method: str, *, times: int = 1) -> None:
        """Wait until it was asked for so many times, answered or not."""
        async with self._questions:
            await self._questions.wait_for(lambda: self.asked[method] >= times)

    async def asked_for(self, method: str, *, times: int = 1) -> None:
        """Wait until it was, so many times, and the node has answered."""
        async with self._news:
            await self._news.wait_for(lambda: self.asked[method] >= times)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        method = asked["method"]
        self.asked[method] += 1
        async with self._questions:
            self._questions.notify_all()
        behaviour = await self._behaviour(asked)
        match behaviour:
            case Fails(status, body):
                return web.Response(status=status, body=body)
            case Drops(after=False):
                return self._drop(request)
            case Stalls():
                await self._released.wait()
                return self._drop(request)
            case Errors(code, message, data, times) if times is None or self.asked[method] <= times:
                error = {"code": code, "message": message, "data": data}
                return web.json_response({"jsonrpc": "2.0", "id": asked["id"], "error": error})
        async with self._session.post(self._node_url, json=asked) as response:
            answer = await response.json()
        async with self._news:
            self._news.notify_all()
        if isinstance(behaviour, Drops):
            return self._drop(request)
        if isinstance(behaviour, Says):
            answer = {"jsonrpc": "2.0", "id": asked["id"], "result": behaviour.change(answer.get("result"))}
        return web.json_response(answer)

    async def _behaviour(self, asked: Mapping[str, Any]) -> "Behaviour | None":
        behaviour = self.behaviours.get(asked["method"]) or self.behaviours.get("*")
        if not isinstance(behaviour, Where):
            return behaviour
        chosen = behaviour.choose(asked)
        return await chosen if isinstance(chosen, Awaitable) else chosen

    def _drop(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()
