"""A TCP server that plays bytes: what a well-behaved HTTP library would never send, at the moments a test chooses.

    async with RawServer(answering(b"HTTP/1.1 200 OK\\r\\n", event, RESET)) as server: ...

Each connection gets the next script, and the last script again when there is no further one.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from enum import Enum
from types import TracebackType
from typing import Self

SETTLE_TURNS = 3
"""Turns of the event loop after each part, so that a reader in the same loop gets every part in a read of its own."""


class Step(Enum):
    """Parts of a script that are not bytes and not events."""

    HEAD = "read up to the end of a request's head"
    REQUEST = "read a whole request"
    EOF = "send no more, but go on reading"
    FINISH = "close the connection after what was sent"
    RESET = "abort the connection"
    PEER = "wait until the peer has gone"


HEAD, REQUEST, EOF, FINISH, RESET, PEER = Step.HEAD, Step.REQUEST, Step.EOF, Step.FINISH, Step.RESET, Step.PEER

Part = bytes | asyncio.Event | Step


class RawConnection:
    """One accepted connection: what was received on it, and whether the peer has gone."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.received = bytearray()
        self.peer_gone = asyncio.Event()
        self._reader = reader
        self._writer = writer

    async def read_head(self) -> bytes:
        """Reads up to the empty line. Raises `IncompleteReadError` when the peer leaves before."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        self.received += head
        return head

    async def read_request(self) -> None:
        """Reads a head and as much body as its Content-Length says."""
        head = await self.read_head()
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                self.received += await self._reader.readexactly(int(value))

    async def send(self, data: bytes) -> None:
        """Hands the bytes to the kernel and lets a reader in the same event loop have them."""
        self._writer.write(data)
        await self._writer.drain()
        for _ in range(SETTLE_TURNS):
            await asyncio.sleep(0)

    async def wait_for_peer_to_leave(self) -> None:
        """Reads and drops until the connection ends, in whichever way."""
        try:
            while await self._reader.read(65536):
                pass
        except ConnectionError:
            pass
        self.peer_gone.set()

    def finish(self) -> None:
        """Ends the connection after what was sent."""
        self._writer.close()

    def reset(self) -> None:
        """Ends the connection so that the peer sees a reset."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self._writer.transport.abort()

    async def play(self, part: Part) -> None:
        """Does one part of a script."""
        if isinstance(part, bytes):
            await self.send(part)
        elif isinstance(part, asyncio.Event):
            await part.wait()
        else:
            await self._step(part)

    async def _step(self, step: Step) -> None:
        match step:
            case Step.HEAD:
                await self.read_head()
            case Step.REQUEST:
                await self.read_request()
            case Step.EOF:
                self._writer.write_eof()
            case Step.FINISH:
                self.finish()
            case Step.RESET:
                self.reset()
            case Step.PEER:
                await self.wait_for_peer_to_leave()


Script = Callable[[RawConnection], Awaitable[None]]


def playing(*parts: Part) -> Script:
    """A script of these parts; the connection is then left open until the peer goes."""

    async def script(connection: RawConnection) -> None:
        for part in parts:
            await connection.play(part)
        if parts[-1:] not in ((FINISH,), (RESET,)):
            await connection.wait_for_peer_to_leave()

    return script


def answering(*parts: Part) -> Script:
    """A script that first reads a whole request."""
    return playing(REQUEST, *parts)


class RawServer:
    """Async context manager; `connections` in the order in which they were accepted."""

    def __init__(self, *scripts: Script, host: str = "127.0.0.1") -> None:
        self.connections: list[RawConnection] = []
        self.port = 0
        self._scripts = scripts
        self._host = host
        self._server: asyncio.Server | None = None
        self._accepted = asyncio.Condition()
        self._tasks: list[asyncio.Task[None] | None] = []

    @property
    def url(self) -> str:
        return f"http://[{self._host}]:{self.port}" if ":" in self._host else f"http://{self._host}:{self.port}"

    async def connection(self, index: int = 0) -> RawConnection:
        """The connection of that number, as soon as it is there."""
        async with self._accepted:
            await self._accepted.wait_for(lambda: len(self.connections) > index)
        return self.connections[index]

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, self._host, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        tasks = [task for task in self._tasks if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.append(asyncio.current_task())
        connection = RawConnection(reader, writer)
        async with self._accepted:
            self.connections.append(connection)
            self._accepted.notify_all()
        script = self._scripts[min(len(self.connections), len(self._scripts)) - 1]
        try:
            await script(connection)
        except (ConnectionError, asyncio.IncompleteReadError):
            connection.peer_gone.set()
        except asyncio.CancelledError:
            pass  # only leaving the context cancels, and waits for this
        finally:
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()
