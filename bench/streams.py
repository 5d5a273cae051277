"""The buyers of streams: many open at once, counted as chunks arrive, each with its time to first token.

They run in a thread of this process, on the other core than what is measured.
"""

import asyncio
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from bench.machine import OTHERS_CORE, on_core
from bench.offer import PATH, request_body
from bench.programs import HOST, Program, free_port, running
from obol.adapters.event_loop import run

OPEN_TIMEOUT_S = 60.0
OPENING_AT_ONCE = 32
_MARK = b'"delta"'
FOREVER = 1_000_000


@contextmanager
def stream_upstream(folder: Path) -> Iterator[Program]:
    """The model server that streams."""
    port = free_port()
    command = [sys.executable, "-m", "bench.sse_server", str(port)]
    with running(command, port=port, core=OTHERS_CORE, log=folder / "sse_server.log") as program:
        yield program


class Stream(asyncio.Protocol):
    """One request. `first` ends with the seconds to the first token; `chunks` counts what has come."""

    def __init__(self, request: bytes) -> None:
        loop = asyncio.get_running_loop()
        self._request = request
        self.first: asyncio.Future[float] = loop.create_future()
        self.done: asyncio.Future[None] = loop.create_future()
        self.chunks = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._sent_s = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        count = data.count(_MARK)
        if count and not self.chunks:
            self.first.set_result(time.perf_counter() - self._sent_s)
        self.chunks += count
        if data.endswith(b"0\r\n\r\n"):
            self._finish()

    def connection_lost(self, _: Exception | None) -> None:
        if not self.first.done():
            self.first.set_exception(RuntimeError("a stream ended before its first token"))
        self._finish()

    def close(self) -> None:
        """Hang up."""
        self._transport.abort()

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


class Streams:
    """Open streams of one run."""

    def __init__(self) -> None:
        self.all: list[Stream] = []

    @property
    def chunks(self) -> int:
        """How many chunks all have received."""
        return sum(stream.chunks for stream in self.all)

    @property
    def ttft_s(self) -> list[float]:
        """Time to first token of each."""
        return [stream.first.result() for stream in self.all]

    async def open(self, port: int, request: bytes) -> Stream:
        """One more, when its first token is there."""
        _, stream = await asyncio.get_running_loop().create_connection(lambda: Stream(request), HOST, port)
        async with asyncio.timeout(OPEN_TIMEOUT_S):
            await stream.first
        self.all.append(stream)
        return stream

    def close(self) -> None:
        """Hang up on all."""
        for stream in self.all:
            stream.close()


@contextmanager
def open_streams(target: Program, payments: list[str] | list[None], *, interval_s: float) -> Iterator[Streams]:
    """One endless stream for each payment (None: unpaid), all past their first token when the block begins."""
    streams = Streams()

    async def open_all() -> None:
        waiting = iter(payments)

        async def open_on() -> None:
            for payment in waiting:
                await streams.open(target.port, _request(payment, FOREVER, interval_s))

        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(OPENING_AT_ONCE, len(payments))):
                tasks.create_task(open_on())

    with _loop_thread() as loop:
        opened: Future[None] = asyncio.run_coroutine_threadsafe(open_all(), loop)
        opened.result(OPEN_TIMEOUT_S * 2)
        yield streams
        loop.call_soon_threadsafe(streams.close)


def ttft_s(
    target: Program, payments: list[str] | list[None], *, chunks: int, interval_s: float, at_once: int = 1
) -> list[float]:
    """Times to first token of streams, each read to its end; `at_once` are open at any time."""

    async def all_of_them() -> list[float]:
        streams, waiting = Streams(), iter(payments)

        async def one_by_one() -> None:
            for payment in waiting:
                stream = await streams.open(target.port, _request(payment, chunks, interval_s))
                async with asyncio.timeout(OPEN_TIMEOUT_S):
                    await stream.done
                stream.close()

        async with asyncio.TaskGroup() as tasks:
            for _ in range(at_once):
                tasks.create_task(one_by_one())
        return streams.ttft_s

    with on_core(OTHERS_CORE):
        return run(all_of_them())


def _request(payment: str | None, chunks: int, interval_s: float) -> bytes:
    body = request_body(stream=True, chunks=chunks, interval_s=interval_s)
    paid = f"PAYMENT-SIGNATURE: {payment}\r\n" if payment else ""
    head = f"POST {PATH} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\nContent-Type: application/json\r\n"
    return (head + f"Content-Length: {len(body)}\r\n{paid}\r\n").encode() + body


@contextmanager
def _loop_thread() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread of its own, until the block ends."""
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def until_stopped() -> None:
        stop = asyncio.Event()
        started.set_result((asyncio.get_running_loop(), stop))
        await stop.wait()

    def work() -> None:
        with on_core(OTHERS_CORE):
            run(until_stopped())

    thread = threading.Thread(target=work, name="buyers", daemon=True)
    thread.start()
    loop, stop = started.result(OPEN_TIMEOUT_S)
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
