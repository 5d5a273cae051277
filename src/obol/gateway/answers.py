"""Building HTTP answers: refusals, quotes, and which headers pass in either direction."""

from aiohttp import web
from multidict import CIMultiDict

from obol.gateway.call import Call
from obol.gateway.live_offer import PAYMENT_REQUIRED_TEXT, LiveOffer
from obol.gateway.page import quote_page
from obol.gateway.replies import REPLIES, Refusal, error_body
from obol.inference.upstream import Headers
from obol.x402.headers import PAYMENT_REQUIRED

REQUEST_ID = "X-Request-Id"
SHOULD_RETRY = "x-should-retry"
"""What the OpenAI clients ask before they retry 409 and 5xx by themselves."""
_TO_UPSTREAM = ("Content-Type", "Accept", "Anthropic-Version", "Anthropic-Beta", "OpenAI-Beta")
"""All that passes to the upstream. No payment, credential, cookie or forwarding header ever does."""
_TO_BUYER = frozenset({"content-type", "content-encoding", "content-language", "retry-after"})
_TO_BUYER_PREFIXES = ("openai-", "anthropic-")
"""All that passes to the buyer: the upstream's other headers may name internal hosts or hold its secrets."""


def headers_to_upstream(call: Call) -> Headers:
    """The request headers that the upstream gets. No Accept-Encoding: a metered answer must be readable."""
    given = call.request.headers
    return [*((name, given[name]) for name in _TO_UPSTREAM if name in given), (REQUEST_ID, call.id)]


def headers_to_buyer(headers: Headers) -> CIMultiDict[str]:
    """The upstream's response headers that the buyer gets."""
    passed = CIMultiDict[str]()
    for name, value in headers:
        lower = name.lower()
        if lower in _TO_BUYER or lower.startswith(_TO_BUYER_PREFIXES):
            passed.add(name, value)
    return passed


def refuse(call: Call, refusal: Refusal) -> web.Response:
    """The answer to a refusal that asks for no money."""
    reply = REPLIES[refusal.reason]
    headers = {**refusal.headers, REQUEST_ID: call.id, "Cache-Control": "no-store"}
    if not reply.retriable:
        headers[SHOULD_RETRY] = "false"
    if refusal.retry_after_s is not None:
        headers["Retry-After"] = str(refusal.retry_after_s)
    return web.Response(
        body=error_body(refusal, call.id), status=reply.status, headers=headers, content_type="application/json"
    )


def quote(call: Call, live: LiveOffer, resource_url: str, refusal: Refusal | None = None) -> web.Response:
    """The 402: v2 in the header, v1 in the body, or a readable page for a browser."""
    challenge = live.challenge(resource_url, refusal.message if refusal else PAYMENT_REQUIRED_TEXT)
    headers = dict(refusal.headers) if refusal else {}
    headers |= {PAYMENT_REQUIRED: challenge.header, "Cache-Control": "no-store", REQUEST_ID: call.id}
    if wants_page(call.request):
        return web.Response(
            text=quote_page(live.offer, resource_url), status=402, headers=headers, content_type="text/html"
        )
    return web.Response(body=challenge.body, status=402, headers=headers, content_type="application/json")


def wants_page(request: web.BaseRequest) -> bool:
    """True for a browser: it names text/html before anything else."""
    return request.headers.get("Accept", "").startswith("text/html")
