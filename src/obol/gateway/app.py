"""The gateway's HTTP edge: which request goes where, and what every refusal and failure looks like on the wire."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from obol.adapters.metrics import CONTENT_TYPE
from obol.core.offer import Api
from obol.errors import ObolError
from obol.gateway import status
from obol.gateway.answers import quote, refuse, wants_page
from obol.gateway.call import Call
from obol.gateway.order import read_order
from obol.gateway.page import quote_page
from obol.gateway.receipts import RECEIPT
from obol.gateway.replies import MESSAGES, REPLIES, Reason, Refusal, refusal_of
from obol.gateway.sale import sell, serve_free
from obol.gateway.till import Till
from obol.inference.routes import SALE_PATHS, Route, RouteKind, match, split_service
from obol.inference.servers import model_body, models_body
from obol.x402.headers import PAYMENT_SIGNATURE, X_PAYMENT, read_presented

_RECEIPTS = "/receipts/"
_SALE_ID = re.compile(r"[0-9a-f]{32}")
_ADMIN_PATHS = frozenset({"/status", "/metrics"})
NOT_FOUND = Refusal(Reason.NOT_FOUND, MESSAGES[Reason.NOT_FOUND])


class App:
    """One gateway's handlers. `has_admin` moves `/status` and `/metrics` to `handle_admin`; `ledger` is shown there."""

    def __init__(self, till: Till, *, public_url: str | None = None, has_admin: bool = False, ledger: str = "") -> None:
        self._till = till
        self._live, self._ports = till.live, till.ports
        self._public_url = public_url.rstrip("/") if public_url else None
        self._public_path = urlsplit(self._public_url).path if self._public_url else ""
        self._has_admin = has_admin
        self._ledger = ledger if has_admin else ""
        self._sales: set[asyncio.Task[web.StreamResponse | Refusal]] = set()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request of the public address."""
        call = Call(request, self._ports.entropy(8).hex(), self._ports.clock.monotonic_s())
        call.base_path = self._public_path
        return await self._edge(call, self._public)

    async def handle_admin(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request of the admin address."""
        call = Call(request, self._ports.entropy(8).hex(), self._ports.clock.monotonic_s())
        return await self._edge(call, self._admin)

    async def drain(self, timeout_s: float) -> None:
        """Refuse new sales, and wait for those in flight."""
        self._live.is_draining = True
        if self._sales:
            await asyncio.wait(self._sales, timeout=timeout_s)

    async def _edge(
        self, call: Call, handler: Callable[[Call], Awaitable[web.StreamResponse | Refusal]]
    ) -> web.StreamResponse:
        try:
            answer = await handler(call)
        except ObolError as error:
            answer = self._failed(call, error)
        except Exception as error:
            self._ports.log.error("request_failed", request=call.id, error=type(error).__name__, exc_info=error)
            answer = Refusal(Reason.INTERNAL, MESSAGES[Reason.INTERNAL])
        if not isinstance(answer, Refusal):
            return answer
        self._count(answer)
        if REPLIES[answer.reason].status == 402:
            return quote(call, self._live, self._resource_url(call), answer)
        return refuse(call, answer)

    def _failed(self, call: Call, error: ObolError) -> Refusal:
        refusal = refusal_of(error)
        if REPLIES[refusal.reason].status >= 500:
            cause = error if refusal.reason is Reason.INTERNAL else None
            self._ports.log.error("request_failed", request=call.id, reason=refusal.reason.value, exc_info=cause)
        return refusal

    async def _public(self, call: Call) -> web.StreamResponse | Refusal:
        target = call.request.raw_path
        service = split_service(target)
        if service is not None:
            if service[0] != self._live.offer.name:
                return NOT_FOUND
            target = service[1]
            if self._public_url is None:
                call.base_path = f"/services/{service[0]}"
        route = match(call.request.method, target)
        if route is None:
            return await self._elsewhere(call, target)
        if route.kind is RouteKind.SALE and route.api is not None:
            return await self._sale(call, route, route.api) if route.api in self._live.offer.apis else NOT_FOUND
        return self._models(route)

    async def _elsewhere(self, call: Call, target: str) -> web.StreamResponse | Refusal:
        if call.request.method not in ("GET", "HEAD"):
            return NOT_FOUND
        path = target.partition("?")[0]
        if path == "/health":
            return status.health()
        if path == "/ready":
            return await status.ready(self._live, self._ports)
        if path.startswith(_RECEIPTS):
            return await self._receipt(path.removeprefix(_RECEIPTS))
        if path in _ADMIN_PATHS and not self._has_admin:
            return await self._admin(call)
        return self._page(call, path)

    async def _admin(self, call: Call) -> web.StreamResponse | Refusal:
        match call.request.raw_path.partition("?")[0]:
            case "/status":
                return status.status(self._live, self._ports, ledger=self._ledger)
            case "/metrics":
                return web.Response(body=self._ports.metrics.render(), headers={"Content-Type": CONTENT_TYPE})
            case "/health":
                return status.health()
            case "/ready":
                return await status.ready(self._live, self._ports)
        return NOT_FOUND

    def _page(self, call: Call, path: str) -> web.Response | Refusal:
        """What a browser sees: the front page, or the quote where programs POST."""
        if not wants_page(call.request) or not self._live.offer.payment_gate:
            return NOT_FOUND
        sold = {SALE_PATHS[api] for api in self._live.offer.apis}
        if path in sold:
            call.resource_path = path
            return quote(call, self._live, self._resource_url(call))
        if path != "/":
            return NOT_FOUND
        call.resource_path = SALE_PATHS[min(self._live.offer.apis)]
        page = quote_page(self._live.offer, self._resource_url(call))
        return web.Response(text=page, content_type="text/html", headers={"Cache-Control": "no-store"})

    async def _sale(self, call: Call, route: Route, api: Api) -> web.StreamResponse | Refusal:
        call.resource_path = SALE_PATHS[api]
        order = await read_order(call, self._live, api, route.target, body_timeout_s=self._till.patience.body_s)
        if isinstance(order, Refusal):
            return order
        if not self._live.offer.payment_gate:
            return await self._detached(call, serve_free(self._till, call, order))
        headers = call.request.headers
        presented = read_presented(
            headers.getall(X_PAYMENT, ()), headers.getall(PAYMENT_SIGNATURE, ()), self._ports.catalogue
        )
        if presented is None:
            self._ports.metrics.request(self._live.offer.name, "quoted")
            return quote(call, self._live, self._resource_url(call))
        return await self._detached(call, sell(self._till, call, order, presented))

    async def _detached(
        self, call: Call, work: Coroutine[Any, Any, web.StreamResponse | Refusal]
    ) -> web.StreamResponse | Refusal:
        """Run a sale in a task of its own, so that a buyer who hangs up cannot stop it between two steps."""
        sale = asyncio.get_running_loop().create_task(work)
        self._sales.add(sale)
        sale.add_done_callback(self._sales.discard)
        try:
            answer = await asyncio.shield(sale)
        except asyncio.CancelledError:
            sale.add_done_callback(partial(self._report, call))
            call.hang_up()
            raise
        self._log(call, answer)
        if not isinstance(answer, Refusal):
            self._count(answer)
        return answer

    def _report(self, call: Call, sale: asyncio.Task[web.StreamResponse | Refusal]) -> None:
        """The end of a sale whose buyer has gone: neither its outcome nor a bug must vanish with it."""
        if sale.cancelled():
            return
        error = sale.exception()
        if error is None:
            self._log(call, sale.result())
            self._count(sale.result())
        elif isinstance(error, ObolError):
            self._count(refusal_of(error))
        else:
            self._count(Refusal(Reason.INTERNAL, MESSAGES[Reason.INTERNAL]))
            self._ports.log.error("sale_failed", error=type(error).__name__, exc_info=error)

    def _count(self, answer: web.StreamResponse | Refusal) -> None:
        self._ports.metrics.request(self._live.offer.name, _outcome(answer))

    def _log(self, call: Call, answer: web.StreamResponse | Refusal) -> None:
        """One line for each request that was paid for, or would have been: the request id finds its sale."""
        self._ports.log.info(
            "request",
            request=call.id,
            offer=self._live.offer.name,
            outcome=_outcome(answer),
            sale=answer.headers.get(RECEIPT, "").rpartition("/")[2],
            total_s=round(self._ports.clock.monotonic_s() - call.received_s, 4),
        )

    async def _receipt(self, sale_id: str) -> web.Response | Refusal:
        sale = await self._ports.ledger.sale(sale_id) if _SALE_ID.fullmatch(sale_id) else None
        if sale is None:
            return Refusal(Reason.RECEIPT_NOT_FOUND, "there is no such receipt")
        return status.json_response(status.receipt_block(sale))

    def _models(self, route: Route) -> web.Response | Refusal:
        offer = self._live.offer
        if route.kind is RouteKind.MODELS:
            return status.json_answer(models_body(offer.models, offer.name))
        model = offer.model(route.model_id)
        if model is None:
            return Refusal(Reason.MODEL_NOT_FOUND, f"the model {route.model_id!r} is not sold here", param="model")
        return status.json_answer(model_body(model, offer.name))

    def _resource_url(self, call: Call) -> str:
        """The paid resource as the buyer addresses it. Forwarding headers are anybody's words and are not read."""
        base = self._public_url or f"http://{call.request.host}{call.base_path}"
        return base + call.resource_path


def _outcome(answer: web.StreamResponse | Refusal) -> str:
    """How a request ended; an error that the upstream gave and the buyer got is not `served`."""
    if isinstance(answer, Refusal):
        return answer.reason.value
    return "served" if answer.status < 300 else "upstream_error"
