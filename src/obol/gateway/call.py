"""Call: one HTTP request as the sale sees it, and whether its buyer is still there."""

from collections.abc import Callable

from aiohttp import web


class Call:
    """One request. `id` is the request id in replies and logs; `received_s` monotonic seconds."""

    __slots__ = ("_on_gone", "base_path", "id", "is_gone", "received_s", "request", "resource_path")

    def __init__(self, request: web.BaseRequest, request_id: str, received_s: float) -> None:
        self.request = request
        self.id = request_id
        self.received_s = received_s
        self.base_path = ""
        """Path before ours that buyers see, where a proxy of the seller's takes it off or leaves it on."""
        self.resource_path = ""
        self.is_gone = False
        self._on_gone: Callable[[], None] | None = None

    def has_left(self) -> bool:
        """True when nothing that is written now can reach the buyer."""
        transport = self.request.transport
        return self.is_gone or transport is None or transport.is_closing()

    def receipt_path(self, sale_id: str) -> str:
        """Where the buyer finds the final receipt of a sale."""
        return f"{self.base_path}/receipts/{sale_id}"

    def when_gone(self, interrupt: Callable[[], None] | None) -> None:
        """Have `interrupt` called when the buyer hangs up (None: no longer)."""
        self._on_gone = interrupt
        if self.is_gone and interrupt is not None:
            interrupt()

    def cut(self) -> None:
        """End the connection without the end of the body: what is incomplete must look incomplete."""
        if self.request.transport is not None:
            self.request.transport.abort()

    def hang_up(self) -> None:
        """Note that the buyer's connection is gone. Whatever the sale owes goes on."""
        self.is_gone = True
        if self._on_gone is not None:
            self._on_gone()
