"""The HTTP server under the gateway: aiohttp's, with our name, our error bodies and our log.

Left alone, aiohttp names its version in every answer, and quotes bytes that are not HTTP in the answer and in a
traceback: they may be a payment or a prompt.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from obol.gateway.answers import REQUEST_ID
from obol.gateway.replies import MESSAGES, REPLIES, Reason, Refusal, error_body

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

SERVER = "obol"
MAX_HEADER_FIELD_BYTES = 24 * 1024
"""A payment header is about 1 KiB; a contract wallet's signature may be several."""
LINGERING_S = 2.0
"""How long what a refused client still sends is read and thrown away, so that it sees the refusal."""
KEEPALIVE_S = 75.0

_NOT_HTTP = Refusal(Reason.MALFORMED_REQUEST, "the request is not HTTP that can be understood")
_FAILED = Refusal(Reason.INTERNAL, MESSAGES[Reason.INTERNAL])


class HttpServer(web.Server):
    """Serves `handler`, cancelling it when its client hangs up. Bodies are not decompressed: no small one is large."""

    def __init__(
        self, handler: Handler, *, log: structlog.typing.FilteringBoundLogger, entropy: Callable[[int], bytes]
    ) -> None:
        super().__init__(handler, request_factory=self._request, handler_cancellation=True)
        self._log = log
        self._entropy = entropy

    def __call__(self) -> RequestHandler:
        """A handler for one more connection."""
        return _Connection(
            self,
            self._log,
            self._entropy,
            loop=self._loop,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=KEEPALIVE_S,
            lingering_time=LINGERING_S,
            max_field_size=MAX_HEADER_FIELD_BYTES,
        )

    def _request(
        self, message: Any, payload: Any, protocol: RequestHandler, writer: Any, task: "asyncio.Task[None]"
    ) -> web.BaseRequest:
        return _Request(message, payload, protocol, writer, task, self._loop)


class _Request(web.BaseRequest):
    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        """Called for every answer, whoever makes it, before its head is written."""
        response.headers["Server"] = SERVER


class _Connection(RequestHandler):
    __slots__ = ("_entropy", "_log")

    def __init__(
        self,
        manager: HttpServer,
        log: structlog.typing.FilteringBoundLogger,
        entropy: Callable[[int], bytes],
        **options: Any,
    ) -> None:
        super().__init__(manager, **options)
        self._log = log
        self._entropy = entropy

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - it quotes the client's bytes
    ) -> web.StreamResponse:
        """The answer to what is not HTTP, and to what the gateway's own edge let through. Ends the connection."""
        request_id = self._entropy(8).hex()
        refusal = _NOT_HTTP if status < 500 else _FAILED
        if refusal is _FAILED:
            self._log.error("request_failed", request=request_id, error=type(exc).__name__, exc_info=exc)
        else:
            self._log.info("not_http", request=request_id, error=type(exc).__name__)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer was begun already")
        response = web.Response(
            body=error_body(refusal, request_id),
            status=REPLIES[refusal.reason].status,
            headers={REQUEST_ID: request_id, "Cache-Control": "no-store"},
            content_type="application/json",
        )
        response.force_close()
        return response

    def log_exception(self, *_: Any, **options: Any) -> None:
        """What went wrong around an answer: only the kind, because the rest may quote the client's bytes."""
        self._log.warning("connection_failed", error=type(options.get("exc_info")).__name__)
