"""The upstream port: the model server behind us."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """One call: `target` is the path with query; `headers` are already free of payment and hop-by-hop headers."""

    method: str
    target: str
    headers: Headers
    body: bytes


class UpstreamResponse(Protocol):
    """An answer whose head has arrived."""

    @property
    def status(self) -> int:
        """Final HTTP status; 1xx are consumed, redirects are not followed."""
        ...

    @property
    def headers(self) -> Headers:
        """End-to-end headers in order, names as sent; hop-by-hop headers, Content-Length and framing removed."""
        ...

    async def read_chunk(self) -> bytes:
        """The next bytes as they arrived, undecoded; b"" at the clean end.

        Raises `UpstreamBrokenError` when the body ended early, `UpstreamTimeoutError` after the idle timeout.
        """
        ...

    def close(self) -> None:
        """End the exchange now. The connection is reused only if the body had ended cleanly. Idempotent."""
        ...


class Upstream(Protocol):
    """Never follows redirects, never decompresses, never retries after bytes were sent."""

    async def open(self, request: UpstreamRequest) -> UpstreamResponse:
        """Send a request and wait for the head of the answer.

        Raises `UpstreamUnavailableError` (no connection), `UpstreamTimeoutError` (no head in time),
        `UpstreamBrokenError` (connection died, or nonsense).
        """
        ...

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        ...
