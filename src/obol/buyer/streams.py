"""Streams around an answer's body: one never longer than allowed, one that tells how it ended. Nothing is buffered."""

import sys
from collections.abc import AsyncIterator, Callable, Iterator

import httpx2

from obol.errors import PeerProtocolError


class _Wrapped(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """Passes closing on. The client gives a sync or an async stream; the same kind is asked of this one."""

    def __init__(self, inner: httpx2.SyncByteStream | httpx2.AsyncByteStream) -> None:
        self._inner = inner

    @property
    def _sync(self) -> httpx2.SyncByteStream:
        if not isinstance(self._inner, httpx2.SyncByteStream):
            raise TypeError("an async stream is read by an async client")
        return self._inner

    @property
    def _async(self) -> httpx2.AsyncByteStream:
        if not isinstance(self._inner, httpx2.AsyncByteStream):
            raise TypeError("a sync stream is read by a sync client")
        return self._inner

    def close(self) -> None:
        self._sync.close()

    async def aclose(self) -> None:
        await self._async.aclose()


class LimitedStream(_Wrapped):
    """Raises `PeerProtocolError` instead of giving more than `limit_bytes`: for bodies that are read whole."""

    def __init__(self, inner: httpx2.SyncByteStream | httpx2.AsyncByteStream, limit_bytes: int) -> None:
        super().__init__(inner)
        self._left_bytes = limit_bytes

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._sync:
            yield self._counted(chunk)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._async:
            yield self._counted(chunk)

    def _counted(self, chunk: bytes) -> bytes:
        self._left_bytes -= len(chunk)
        if self._left_bytes < 0:
            raise PeerProtocolError("the seller's 402 is longer than any challenge")
        return chunk


class WatchedStream(_Wrapped):
    """Tells once how an answer's body ended; errors go on to the reader.

    `on_broken` when the connection breaks before it is complete; `on_had` when it is complete, or whoever reads it
    closes it, having had enough of it. Neither when the reading just ends: by an error or interruption elsewhere, or a
    loop that is left.
    """

    def __init__(
        self,
        inner: httpx2.SyncByteStream | httpx2.AsyncByteStream,
        on_broken: Callable[[], None],
        on_had: Callable[[], None],
    ) -> None:
        super().__init__(inner)
        self._on_broken, self._on_had = on_broken, on_had
        self._has_ended = False

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._sync
        except httpx2.TransportError:
            self._end(self._on_broken)
            raise
        self._end(self._on_had)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._async:
                yield chunk
        except httpx2.TransportError:
            self._end(self._on_broken)
            raise
        self._end(self._on_had)

    def close(self) -> None:
        super().close()
        self._end_by_closing()

    async def aclose(self) -> None:
        await super().aclose()
        self._end_by_closing()

    def _end_by_closing(self) -> None:
        if sys.exc_info()[1] is None:  # else an error, or a loop that was left: whether by choice cannot be told
            self._end(self._on_had)

    def _end(self, how: Callable[[], None]) -> None:
        if not self._has_ended:
            self._has_ended = True
            how()
