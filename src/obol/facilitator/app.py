"""The facilitator's HTTP face, over any `Facilitator` port: `/verify`, `/settle`, `/supported`, `/health`, `/metrics`.

An invalid payment is a 200 that says so. Other statuses: 400 a body that is not x402 (its `field` is named), 404, 405,
413, 502 the outcome of a settlement is not known (ask again with the same payload), 503 nobody could be asked, 500 a
bug of ours. Each answer is JSON and carries `X-Request-Id`. Source: x402 specification v2, section 7.
"""

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import structlog
from aiohttp import web

from obol.adapters.facilitator_metrics import CONTENT_TYPE, FacilitatorMetrics
from obol.core.networks import DEFAULT_CATALOGUE, Catalogue
from obol.errors import (
    FacilitatorUnavailableError,
    LedgerUnavailableError,
    MalformedRequestError,
    ObolError,
    PeerProtocolError,
)
from obol.facilitator.bodies import Asked, NotAsked, read_body, settle_answer, verify_answer
from obol.facilitator.told import Told
from obol.x402.facilitator import Facilitator, Refused, Settlement, SettleOutcome
from obol.x402.reasons import Reason

MAX_BODY_BYTES = 64 * 1024
REQUEST_ID = "X-Request-Id"
IDEMPOTENCY_KEY = "Idempotency-Key"
_KEY_LIMIT = 200

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

STATUSES: dict[type[ObolError], int] = {
    MalformedRequestError: 400,
    PeerProtocolError: 502,
    FacilitatorUnavailableError: 503,
    LedgerUnavailableError: 503,
}
"""Errors that have an answer of their own here; any other is a bug: 500."""

_UNABLE = "this facilitator cannot find it out now: ask again later"
_REFUSALS = {
    404: ("not_found", "nothing is served at this address"),
    405: ("method_not_allowed", "this address takes another method, see Allow"),
    413: ("body_too_large", f"the body is larger than {MAX_BODY_BYTES} bytes"),
}
"""Reason and text of what aiohttp refuses. Ours: Python's names for statuses change between its versions."""


def build_app(
    facilitator: Facilitator,
    *,
    new_request_id: Callable[[], str],
    log: structlog.typing.FilteringBoundLogger,
    catalogue: Catalogue = DEFAULT_CATALOGUE,
    metrics: FacilitatorMetrics | None = None,
) -> web.Application:
    """The application; it neither opens nor closes `facilitator`. `catalogue` knows the names of v1 networks."""
    endpoints = _Endpoints(facilitator, catalogue, log, metrics or FacilitatorMetrics())
    app = web.Application(middlewares=[_edge(new_request_id, log)], client_max_size=MAX_BODY_BYTES)
    app.router.add_post("/verify", endpoints.verify)
    app.router.add_post("/settle", endpoints.settle)
    app.router.add_get("/supported", endpoints.supported)
    app.router.add_get("/health", endpoints.health)
    app.router.add_get("/metrics", endpoints.metrics)
    return app


class _Endpoints:
    def __init__(
        self,
        facilitator: Facilitator,
        catalogue: Catalogue,
        log: structlog.typing.FilteringBoundLogger,
        metrics: FacilitatorMetrics,
    ) -> None:
        self._facilitator = facilitator
        self._catalogue = catalogue
        self._log = log
        self._metrics = metrics
        self._told = Told()

    async def verify(self, request: web.Request) -> web.Response:
        asked = read_body(await request.read(), self._catalogue)
        if isinstance(asked, NotAsked):
            return _json(verify_answer(asked, asked.refused))
        body = asked.request
        began_s = _monotonic_s()
        outcome = await self._facilitator.verify(body.payment_payload, body.payment_requirements)
        reason = outcome.reason if isinstance(outcome, Refused) else ""
        self._metrics.verified(self._label(asked.network), is_valid=not reason, seconds=_monotonic_s() - began_s)
        self._log.info("verified", network=asked.network, is_valid=not reason, reason=reason)
        return _json(verify_answer(asked, outcome))

    async def settle(self, request: web.Request) -> web.Response:
        asked = read_body(await request.read(), self._catalogue)
        if isinstance(asked, NotAsked):
            refused = asked.refused
            return _json(settle_answer(asked, Settlement(SettleOutcome.FAILED, "", refused.reason, refused.message)))
        body = asked.request
        payment, asker = _payment(asked), request.headers.get(IDEMPOTENCY_KEY, "")[:_KEY_LIMIT]
        is_first = self._told.asks(payment, asker)
        began_s = _monotonic_s()
        done = await self._facilitator.settle(body.payment_payload, body.payment_requirements)
        self._metrics.settled(self._label(asked.network), done.outcome.value, seconds=_monotonic_s() - began_s)
        if is_first and (done.outcome is SettleOutcome.FAILED or done.is_unsent):
            self._told.forget(payment)
        is_gone = request.transport is None or request.transport.is_closing()  # it hears nothing, and may ask again
        if done.outcome is SettleOutcome.SETTLED and not is_gone and not self._told.may_hear(payment, asker):
            done = Settlement(SettleOutcome.FAILED, "", Reason.DUPLICATE, "told to another asker: serve it only once")
        self._log.info(
            "settled" if done.outcome is SettleOutcome.SETTLED else "not_settled",
            network=asked.network,
            payer=body.payment_payload.payer,
            pay_to=body.payment_requirements.pay_to,
            amount_atomic=body.payment_requirements.amount,
            outcome=done.outcome.value,
            reason=str(done.reason),
            message=done.message,
            transaction=done.transaction,
        )
        if done.outcome is SettleOutcome.UNKNOWN:  # a 200 would have to say success or not; nobody can
            return _problem(502, str(done.reason), "the outcome is not known: ask again with the same payload")
        return _json(settle_answer(asked, done))

    async def supported(self, _: web.Request) -> web.Response:
        return _json(msgspec.json.encode(await self._facilitator.supported()))

    async def health(self, _: web.Request) -> web.Response:
        return _json(b'{"status":"ok"}')

    async def metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=await self._metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    def _label(self, network: str) -> str:
        """A caller's text would be a label of its own each time."""
        known = self._catalogue.find_network(network)
        return "other" if known is None else known.caip2


def _payment(asked: Asked) -> str:
    signed, wanted = asked.request.payment_payload.payload.signed, asked.request.payment_requirements
    return f"{wanted.network}/{wanted.asset}/{signed.from_}/{signed.nonce}".lower()


def _monotonic_s() -> float:
    return asyncio.get_running_loop().time()


def _edge(
    new_request_id: Callable[[], str], log: structlog.typing.FilteringBoundLogger
) -> Callable[..., Awaitable[web.StreamResponse]]:
    """The outermost step: every ending of a handler becomes a JSON answer with the request's id."""

    @web.middleware
    async def edge(request: web.Request, handler: Handler) -> web.StreamResponse:
        request_id = new_request_id()
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            response = await _answer(request, handler, log)
        response.headers[REQUEST_ID] = request_id
        return response

    return edge


async def _answer(
    request: web.Request, handler: Handler, log: structlog.typing.FilteringBoundLogger
) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as refusal:
        return _http_refusal(refusal)
    except ObolError as error:
        status = next((STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES), 500)
        if status == 500:
            log.error("bug", path=request.path, exc_info=error)
            return _bug()
        if isinstance(error, MalformedRequestError):
            return _problem(status, error.reason, str(error), field=error.param)
        log.warning("not_answered", path=request.path, reason=error.reason, error=str(error))
        return _problem(status, error.reason, _UNABLE)  # why is the operator's: it may be in the words of a node
    except Exception as bug:  # the HTTP edge
        log.error("bug", path=request.path, exc_info=bug)
        return _bug()


def _http_refusal(refusal: web.HTTPException) -> web.Response:
    """404, 405, 413 as JSON; `Allow` stays."""
    reason, text = _REFUSALS.get(refusal.status, (f"http_{refusal.status}", "refused"))
    response = _problem(refusal.status, reason, text)
    if "Allow" in refusal.headers:
        response.headers["Allow"] = refusal.headers["Allow"]
    return response


def _bug() -> web.Response:
    return _problem(500, "internal", "internal error")


def _problem(status: int, reason: str, message: str, *, field: str | None = None) -> web.Response:
    body = {"error": message, "reason": reason}
    if field:
        body["field"] = field
    return _json(msgspec.json.encode(body), status)


def _json(body: bytes, status: int = 200) -> web.Response:
    return web.Response(
        body=body, status=status, content_type="application/json", headers={"Cache-Control": "no-store"}
    )
