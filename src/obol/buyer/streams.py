"""Streams around an answer's body: one never longer than allowed, one that tells when it broke. Nothing is buffered."""

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
    """Calls `on_broken` when the connection breaks before the body is complete; the error goes on to the reader."""

    def __init__(self, inner: httpx2.SyncByteStream | httpx2.AsyncByteStream, on_broken: Callable[[], None]) -> None:
        super().__init__(inner)
        self._on_broken = on_broken

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._sync
        except httpx2.TransportError:
            self._on_broken()
            raise

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._async:
                yield chunk
        except httpx2.TransportError:
            self._on_broken()
            raise
