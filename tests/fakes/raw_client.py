"""A client that plays bytes: what a well-behaved HTTP library would never send, and answers as they came.

async with RawClient(shop.url) as client:
    await client.send(post("/v1/chat/completions", b"{}", {"X-PAYMENT": "junk"}))
    answer = await client.answer()
    assert answer.status == 400
"""

import asyncio
import contextlib
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

PATIENCE_S = 10.0


def post(path: str, body: bytes, headers: Mapping[str, str] | None = None, *, length: int | None = None) -> bytes:
    """A POST; `length` is what it declares, when that is not the truth."""
    fields = {"Host": "shop.example", "Content-Type": "application/json", **(headers or {})}
    fields.setdefault("Content-Length", str(len(body) if length is None else length))
    return head("POST", path, fields) + body


def chunked(path: str, *chunks: bytes, headers: Mapping[str, str] | None = None, end: bool = True) -> bytes:
    """A POST in chunks; without `end` the last one does not come."""
    fields = {"Host": "shop.example", "Content-Type": "application/json", "Transfer-Encoding": "chunked"}
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return head("POST", path, {**fields, **(headers or {})}) + framed + (b"0\r\n\r\n" if end else b"")


def head(method: str, target: str, headers: Mapping[str, str]) -> bytes:
    """A request line and fields, with the empty line."""
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode()


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """An answer's head, and as much body as its Content-Length says."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        """The first value of that name in any letter case."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


class RawClient:
    """Async context manager: one connection. `receive_buffer_bytes` makes the kernel take little on its own."""

    def __init__(self, url: str, *, receive_buffer_bytes: int | None = None) -> None:
        self._address = urlsplit(url)
        self._receive_buffer_bytes = receive_buffer_bytes
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> Self:
        sock = socket.socket()
        sock.setblocking(False)
        if self._receive_buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer_bytes)
        await asyncio.get_running_loop().sock_connect(sock, (self._address.hostname, self._address.port))
        self._streams = await asyncio.open_connection(sock=sock, limit=2**16)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.hang_up()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    async def send(self, data: bytes) -> None:
        """Write bytes, and wait until the kernel has most of them."""
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self, *, has_body: bool = True) -> RawAnswer:
        """The next answer. Raises `IncompleteReadError` when the connection ends before it."""
        async with asyncio.timeout(PATIENCE_S):
            raw = await self._reader.readuntil(b"\r\n\r\n")
            first, *lines = raw.decode("latin-1").split("\r\n")[:-2]
            headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
            answer = RawAnswer(int(first.split(" ")[1]), headers, b"")
            size = int(answer.header("Content-Length") or 0) if has_body else 0
            return RawAnswer(answer.status, headers, await self._reader.readexactly(size))

    async def rest(self) -> bytes:
        """Everything up to the end of the connection, however it ends."""
        found = bytearray()
        async with asyncio.timeout(PATIENCE_S):
            with contextlib.suppress(ConnectionError):
                while chunk := await self._reader.read(65536):
                    found += chunk
        return bytes(found)

    async def read(self) -> bytes:
        """Whatever arrives next."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._reader.read(65536)

    def hang_up(self) -> None:
        """Close the connection at once."""
        self._writer.transport.abort()

    @property
    def _reader(self) -> asyncio.StreamReader:
        return self._open()[0]

    @property
    def _writer(self) -> asyncio.StreamWriter:
        return self._open()[1]

    def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None:
            raise RuntimeError("use it with async with")
        return self._streams
