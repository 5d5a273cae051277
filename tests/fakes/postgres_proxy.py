"""A Unix socket before a real PostgreSQL that can lose an answer, or fall silent."""

import asyncio
import contextlib
from collections.abc import Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

_SOCKET = ".s.PGSQL.5432"


class PostgresProxy:
    """Passes everything on, from `async with` to its end. `url` leads through it."""

    def __init__(self, url: str, folder: Path) -> None:
        parts = urlsplit(url)
        [host] = parse_qs(parts.query)["host"]
        self._real = Path(host) / _SOCKET
        self._folder = folder
        self.url = parts._replace(query=f"host={folder}").geturl()
        self._lose_answer_to: bytes | None = None
        self.lost_answers = 0
        self._speaks = asyncio.Event()
        self._speaks.set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def lose_answer_to(self, statement: bytes) -> None:
        """When a connection sends this next: let the server do it, keep what it answers, and hang up."""
        self._lose_answer_to = statement

    def fall_silent(self) -> None:
        """The server's answers are held back, on all connections."""
        self._speaks.clear()

    def speak(self) -> None:
        """They come again."""
        self._speaks.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._serve, self._folder / _SOCKET)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, buyer: asyncio.StreamReader, to_buyer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            server, to_server = await asyncio.open_unix_connection(self._real)
            losing = asyncio.Event()
            try:
                await self._until_one_ends(self._ask(buyer, to_server, losing), self._answer(server, to_buyer, losing))
            finally:
                for writer in (to_server, to_buyer):
                    writer.close()
                    with contextlib.suppress(OSError):
                        await writer.wait_closed()
        except asyncio.CancelledError:
            pass  # the proxy ends
        finally:
            self._tasks.discard(task)

    async def _until_one_ends(self, *directions: Coroutine[Any, Any, None]) -> None:
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(direction) for direction in directions]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, losing: asyncio.Event) -> None:
        while data := await reader.read(65_536):
            if self._lose_answer_to is not None and self._lose_answer_to in data:
                self._lose_answer_to = None
                losing.set()
            writer.write(data)
            await writer.drain()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, losing: asyncio.Event) -> None:
        while data := await reader.read(65_536):
            if losing.is_set():
                self.lost_answers += 1
                return
            await self._speaks.wait()
            writer.write(data)
            await writer.drain()
