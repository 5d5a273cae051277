"""Call: one HTTP request as the sale sees it, and whether its buyer is still there."""

from collections.abc import Callable

from aiohttp import web

from obol.core.offer import Api


class Call:
    """One request. `id` is the request id in replies and logs; `received_s` monotonic seconds."""

    __slots__ = ("_on_gone", "api", "id", "is_gone", "received_s", "request", "resource_path")

    def __init__(self, request: web.BaseRequest, request_id: str, received_s: float) -> None:
        self.request = request
        self.id = request_id
        self.received_s = received_s
        self.api: Api | None = None
        self.resource_path = ""
        self.is_gone = False
        self._on_gone: Callable[[], None] | None = None

    def when_gone(self, interrupt: Callable[[], None] | None) -> None:
        """Have `interrupt` called when the buyer hangs up (None: no longer)."""
        self._on_gone = interrupt
        if self.is_gone and interrupt is not None:
            interrupt()

    def hang_up(self) -> None:
        """Note that the buyer's connection is gone. Whatever the sale owes goes on."""
        self.is_gone = True
        if self._on_gone is not None:
            self._on_gone()
