"""What the tests of the upstream contract share: a client to test, requests to send, sockets to look at."""

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from obol.errors import UpstreamError
from obol.inference.upstream import Headers, Upstream, UpstreamRequest, UpstreamResponse
from tests.fakes.raw_server import (
    RawServer,
    Script,
)

BODY = b'{"model":"tiny-random"}'
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
PATIENT_S = 10.0
SHORT_S = 0.15


class MakeUpstream(Protocol):
    def __call__(
        self,
        base_url: str,
        *,
        connect_timeout_s: float = ...,
        first_byte_timeout_s: float = ...,
        idle_timeout_s: float = ...,
        keepalive_s: float = ...,
        authorization: str | None = ...,
    ) -> Upstream: ...


def post(target: str = "/v1/chat/completions", headers: Headers = (), body: bytes = BODY) -> UpstreamRequest:
    return UpstreamRequest("POST", target, headers, body)


def get(target: str = "/v1/models", method: str = "GET") -> UpstreamRequest:
    return UpstreamRequest(method, target, (), b"")


async def read_all(response: UpstreamResponse) -> bytes:
    chunks = []
    while chunk := await response.read_chunk():
        chunks.append(chunk)
    return b"".join(chunks)


async def ask(upstream: Upstream, request: UpstreamRequest | None = None) -> tuple[int, bytes]:
    """One whole exchange."""
    response = await upstream.open(request or post())
    try:
        return response.status, await read_all(response)
    finally:
        response.close()


class ContractBase:
    """Gives each test a fresh client and a server that plays bytes."""

    make: MakeUpstream

    @asynccontextmanager
    async def client(
        self,
        url: str,
        *,
        connect_timeout_s: float = PATIENT_S,
        first_byte_timeout_s: float = PATIENT_S,
        idle_timeout_s: float = PATIENT_S,
        authorization: str | None = None,
    ) -> AsyncIterator[Upstream]:
        upstream = self.make(
            url,
            connect_timeout_s=connect_timeout_s,
            first_byte_timeout_s=first_byte_timeout_s,
            idle_timeout_s=idle_timeout_s,
            authorization=authorization,
        )
        try:
            yield upstream
        finally:
            await upstream.close()

    @asynccontextmanager
    async def talking(self, *scripts: Script) -> AsyncIterator[tuple[RawServer, Upstream]]:
        async with RawServer(*scripts) as server, self.client(server.url) as upstream:
            yield server, upstream


def assert_says_nothing_internal(error: Exception) -> None:
    """The text may reach a buyer."""
    assert "127.0.0.1" not in str(error)
    assert "http://" not in str(error)
    assert str(error)


async def error_of(read: Callable[[], Awaitable[bytes]]) -> UpstreamError | None:
    try:
        await read()
    except UpstreamError as error:
        return error
    return None


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def connections_to(port: int) -> int:
    """How many sockets of this process are connected to that port."""
    return sum(_peer_port(int(name.name)) == port for name in Path("/dev/fd").iterdir())


def _peer_port(descriptor: int) -> int | None:
    try:
        with socket.socket(fileno=os.dup(descriptor)) as sock:
            peer = sock.getpeername()
    except OSError:
        return None
    return peer[1] if isinstance(peer, tuple) else None


def connecting(port: int) -> socket.socket:
    """A connection that fills the queue of a listener that accepts nothing."""
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex(("127.0.0.1", port))
    return sock
