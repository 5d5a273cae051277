"""The model server behind us, over HTTP/1.1: the `Upstream` port on aiohttp's client.

Nothing is followed, decoded, remembered or retried. aiohttp would repeat a GET whose connection died; that is switched
off, because "it died after we sent it" never proves that the model server did not work on it. What a retry would cure,
a pooled connection that the server closes while we write to it, is avoided instead: idle connections are dropped after
`keepalive_s`, which is less than what the usual servers allow (uvicorn and cpp-httplib: 5 s).

Texts of errors may reach buyers and logs, so they name no host and no address, and carry no cause that does.
"""

import asyncio
import io
import re
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote

from aiohttp import (
    ClientConnectionError,
    ClientConnectorDNSError,
    ClientConnectorError,
    ClientError,
    ClientPayloadError,
    ClientResponse,
    ClientResponseError,
    ClientSession,
    ClientSSLError,
    ClientTimeout,
    ConnectionTimeoutError,
    DummyCookieJar,
    TCPConnector,
)
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from obol.errors import (
    SettingsError,
    UpstreamBrokenError,
    UpstreamError,
    UpstreamTimeoutError,
    UpstreamUnavailableError,
)
from obol.inference.upstream import Headers, UpstreamRequest, UpstreamResponse

if TYPE_CHECKING:
    from aiohttp import ClientRequest
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

_MAX_HEADER_BYTES = 16 * 1024
_MAX_HEADERS = 128
_LARGE_BODY_BYTES = 1024 * 1024
_STALE_ATTEMPTS = 4

_HOP_BY_HOP = frozenset(
    {
        "connection",
        "content-length",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "trailers",
        "transfer-encoding",
        "upgrade",
    }
)
_NOT_SENT = _HOP_BY_HOP | {"host", "expect"}
_NOT_INVENTED = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
_PLAIN_TARGET = re.compile(r'/[!"$-~]*')
_TARGET_SAFE = "".join(map(chr, range(0x21, 0x7F))).replace("#", "")


class HttpUpstream:
    """One model server. Used from one event loop; opens nothing before the first request.

    `base_url` is http or https, may hold a path prefix (put before every target) and an IPv6 address.
    `authorization` is the seller's own credential: the whole value of the header, in place of any in the request.
    `connect_timeout_s` covers name, connection and TLS; `first_byte_timeout_s` runs from the call of `open` to the
    whole head of the answer, 1xx and slow uploads included; `idle_timeout_s` is the longest wait inside `read_chunk`.
    There is no limit on the whole and none on the number of connections: admission is the gateway's.
    Raises `SettingsError` for a URL or credential that cannot be used.
    """

    def __init__(
        self,
        base_url: str,
        *,
        connect_timeout_s: float = 5.0,
        first_byte_timeout_s: float = 600.0,
        idle_timeout_s: float = 120.0,
        keepalive_s: float = 4.0,
        authorization: str | None = None,
    ) -> None:
        self._base = _base(base_url)
        self._authorization = _authorization(authorization)
        self._not_sent = _NOT_SENT if authorization is None else _NOT_SENT | {"authorization"}
        self._first_byte_timeout_s = first_byte_timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._keepalive_s = keepalive_s
        self._timeout = ClientTimeout(total=None, connect=connect_timeout_s)
        self._session: ClientSession | None = None
        self._closed = False

    async def open(self, request: UpstreamRequest) -> UpstreamResponse:
        """See `Upstream.open`. Raises `ValueError` for a target without leading slash: it could name another host."""
        session = self._session or self._start()
        try:
            async with asyncio.timeout(self._first_byte_timeout_s):
                answer = await session.request(
                    request.method,
                    self._url(request.target),
                    headers=self._headers(request.headers),
                    data=_payload(request.body),
                    allow_redirects=False,
                )
        except (ClientError, OSError) as error:
            # aiohttp's timeout for connecting is both a ClientError and a TimeoutError; the head's is only the latter
            raise _open_error(error) from None
        return _checked(answer, self._idle_timeout_s)

    async def close(self) -> None:
        """See `Upstream.close`. A request after this is refused with `UpstreamUnavailableError`."""
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _start(self) -> ClientSession:
        if self._closed:
            raise UpstreamUnavailableError("the gateway is shutting down")
        session = ClientSession(
            connector=_Connector(keepalive_s=self._keepalive_s),
            timeout=self._timeout,
            cookie_jar=DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=_NOT_INVENTED,
            max_line_size=_MAX_HEADER_BYTES,
            max_field_size=_MAX_HEADER_BYTES,
            max_headers=_MAX_HEADERS,
        )
        session._retry_connection = False  # the only switch there is; the contract suite holds it
        self._session = session
        return session

    def _url(self, target: str) -> URL:
        if not target.startswith("/"):
            raise ValueError("a target begins with a slash")
        if not _PLAIN_TARGET.fullmatch(target):
            # not lost and not a way to write a second line: blanks, "#", controls and raw bytes go percent-encoded
            target = quote(target, safe=_TARGET_SAFE, errors="surrogateescape")
        return URL(self._base + target, encoded=True)

    def _headers(self, headers: Headers) -> list[tuple[str, str]]:
        named = _connection_named(headers)
        spelling: dict[str, str] = {}  # of two spellings of one name aiohttp would drop the first value
        kept = []
        for name, value in headers:
            lower = name.lower()
            if lower not in self._not_sent and lower not in named and _is_sendable(value):
                kept.append((spelling.setdefault(lower, name), value))
        if self._authorization is not None:
            kept.append(("Authorization", self._authorization))
        return kept


class _Response:
    """An answer whose head has arrived; implements `UpstreamResponse`."""

    __slots__ = ("_answer", "_idle_timeout_s", "_protocol", "_waiting_since_s", "_watchdog", "headers", "status")

    def __init__(self, answer: ClientResponse, idle_timeout_s: float) -> None:
        self.status = answer.status
        self.headers: Headers = _end_to_end(answer)
        self._answer = answer
        self._idle_timeout_s = idle_timeout_s
        self._protocol = _close_delimited(answer)
        self._waiting_since_s: float | None = None
        self._watchdog: asyncio.TimerHandle | None = None

    async def read_chunk(self) -> bytes:
        content = self._answer.content
        try:
            chunk = content.read_nowait()  # what is there already needs no timer
            if not chunk and not content.at_eof():
                chunk = await self._wait_for_chunk()
        except (ClientError, OSError) as error:
            self.close()
            if isinstance(error, TimeoutError):
                raise UpstreamTimeoutError("the model server stopped sending") from None
            raise _broken() from None
        if not chunk and self._protocol is not None and isinstance(self._protocol.exception(), OSError):
            raise _broken()
        return chunk

    def close(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
        self._answer.close()

    async def _wait_for_chunk(self) -> bytes:
        """Raises `TimeoutError`. One timer for all chunks: setting one for each would add a quarter to its cost."""
        loop = asyncio.get_running_loop()
        if self._watchdog is None:
            self._watchdog = loop.call_later(self._idle_timeout_s, self._check_idle, loop)
        self._waiting_since_s = loop.time()
        try:
            return await self._answer.content.readany()
        finally:
            self._waiting_since_s = None

    def _check_idle(self, loop: asyncio.AbstractEventLoop) -> None:
        """Fail a wait that is too long; else look again when the present one, or one that began now, would be."""
        since_s = self._waiting_since_s
        left_s = self._idle_timeout_s - (0.0 if since_s is None else loop.time() - since_s)
        if left_s > 0:
            self._watchdog = loop.call_later(left_s, self._check_idle, loop)
        else:
            self._answer.content.set_exception(TimeoutError())


class _Protocol(ResponseHandler):
    """One connection. aiohttp does not tell the reader of a body when the framing of that body turns into nonsense."""

    def set_exception(self, exc: BaseException, exc_cause: BaseException | None = None) -> None:
        super().set_exception(exc, *() if exc_cause is None else (exc_cause,))
        payload = self._payload
        if payload is not None and not payload.is_eof() and payload.exception() is None:
            payload.set_exception(ClientPayloadError())


class _Connector(TCPConnector):
    """The pool, closing two more gaps of aiohttp's.

    A connection that received bytes while it was idle would give them to the next request as its answer: it is dropped
    (nothing was sent on it yet, so taking another is safe). And a connection that is given up while part of the
    request is unsent would first be written out to the end: it is cut, so that the model server notices at once.
    """

    def __init__(self, *, keepalive_s: float) -> None:
        super().__init__(limit=0, keepalive_timeout=keepalive_s)
        self._factory = partial(_protocol, asyncio.get_running_loop())

    async def connect(self, req: "ClientRequest", traces: "list[Trace]", timeout: ClientTimeout) -> "Connection":  # noqa: ASYNC109 - not ours
        for _ in range(_STALE_ATTEMPTS):
            connection = await super().connect(req, traces, timeout)
            protocol = connection.protocol
            if protocol is not None and not protocol.should_close:
                connection.add_callback(partial(_cut_if_unsent, protocol))
                return connection
            connection.close()
        raise ClientConnectionError("answers before it is asked")


def _protocol(loop: asyncio.AbstractEventLoop) -> ResponseHandler:
    return _Protocol(loop)


def _cut_if_unsent(protocol: ResponseHandler) -> None:
    transport = protocol.transport
    if transport is not None and transport.get_write_buffer_size():
        transport.abort()


def _base(text: str) -> str:
    """The URL up to where targets begin. Never quotes the text: it may hold a credential."""
    field = "--upstream"
    try:
        url = URL(text)
        port = url.port
    except ValueError:
        raise SettingsError(field, "is not a URL: write it like http://127.0.0.1:8000") from None
    if url.scheme not in ("http", "https") or not url.raw_host:
        raise SettingsError(field, "must begin with http:// or https:// and name a host, like http://127.0.0.1:8000")
    if url.raw_user is not None or url.raw_password is not None:
        raise SettingsError(field, "holds a credential: leave it out and use --upstream-auth-env")
    if url.raw_query_string or url.raw_fragment or "?" in text or "#" in text:
        raise SettingsError(field, "must end with the path, without ? and #")
    if port == 0:
        raise SettingsError(field, "names port 0, where nothing can listen")
    return str(url.origin()) + url.raw_path.rstrip("/")


def _authorization(value: str | None) -> str | None:
    if value is not None and not (value and value.isascii() and value.isprintable()):
        raise SettingsError("--upstream-auth-env", "must hold one line of printable ASCII")
    return value


def _payload(body: bytes) -> bytes | io.BytesIO | None:
    """Large bodies are written in pieces, so that one upload does not hold up the others."""
    return io.BytesIO(body) if len(body) > _LARGE_BODY_BYTES else body or None


def _is_sendable(value: str) -> bool:
    """False for what came in as bytes that are not UTF-8: aiohttp cannot send them as they were."""
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


def _connection_named(headers: Headers) -> frozenset[str]:
    """Header names that a Connection header declares to be hop-by-hop, lower case (RFC 9110 section 7.6.1)."""
    values = [value for name, value in headers if name.lower() == "connection"]
    return frozenset(part.strip().lower() for value in values for part in value.split(",")) if values else frozenset()


def _end_to_end(answer: ClientResponse) -> list[tuple[str, str]]:
    headers = [
        (name.decode("utf-8", "replace"), value.decode("utf-8", "replace")) for name, value in answer.raw_headers
    ]
    named = _connection_named(headers)
    return [
        (name, value) for name, value in headers if (lower := name.lower()) not in _HOP_BY_HOP and lower not in named
    ]


def _close_delimited(answer: ClientResponse) -> ResponseHandler | None:
    """The connection of an answer that ends when the connection does: only there aiohttp takes a reset for an end."""
    headers = answer.headers
    if "Content-Length" in headers or "Transfer-Encoding" in headers or answer.connection is None:
        return None
    return answer.connection.protocol


def _checked(answer: ClientResponse, idle_timeout_s: float) -> _Response:
    response = _Response(answer, idle_timeout_s)
    if not 200 <= response.status <= 599:  # 1xx were consumed: what is left is 101 and nonsense
        response.close()
        raise UpstreamBrokenError("the model server answered with a status that HTTP does not allow here")
    return response


def _broken() -> UpstreamBrokenError:
    return UpstreamBrokenError("the model server's answer ended before it was complete")


def _open_error(error: Exception) -> UpstreamError:
    """What to tell about a request that got no head."""
    match error:
        case ConnectionTimeoutError():
            return UpstreamUnavailableError("no connection to the model server in time")
        case TimeoutError():
            return UpstreamTimeoutError("the model server did not begin to answer in time")
        case ClientConnectorDNSError():
            return UpstreamUnavailableError("the model server's name cannot be resolved")
        case ClientSSLError():
            return UpstreamUnavailableError("no TLS connection to the model server")
        case ClientConnectorError():
            return UpstreamUnavailableError("no connection to the model server")
        case ClientResponseError():
            return UpstreamBrokenError("the model server answered something that is not HTTP")
        case _:
            return UpstreamBrokenError("the model server closed the connection without answering")
