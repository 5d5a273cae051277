"""Building HTTP answers: refusals, quotes, receipts in headers, and which headers pass in either direction."""

import msgspec
from aiohttp import web
from multidict import CIMultiDict

from obol.core.networks import Catalogue
from obol.core.sale import Sale
from obol.gateway.call import Call
from obol.gateway.live_offer import PAYMENT_REQUIRED_TEXT, LiveOffer
from obol.gateway.page import quote_page
from obol.gateway.replies import REPLIES, Refusal, error_body
from obol.inference.upstream import Headers
from obol.x402.eip712 import checksum_address
from obol.x402.facilitator import Settlement, SettleOutcome
from obol.x402.headers import PAYMENT_REQUIRED, PAYMENT_RESPONSE, X_PAYMENT_RESPONSE
from obol.x402.models import SettleResponse
from obol.x402.receipts import settle_header

REQUEST_ID = "X-Request-Id"
RECEIPT = "X-Obol-Receipt"
SETTLEMENT = "X-Obol-Settlement"
PENDING_REASON = "settlement_pending"
"""The x402 SDKs' `errorReason` for a settlement whose end is not known: never a reason to pay again."""
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


def receipt_headers(sale: Sale, settlement: Settlement | None, catalogue: Catalogue) -> dict[str, str]:
    """The receipt headers of an answer to a paid request. None: handed over while the settlement is under way, which
    is a success without a transaction.

    v2 clients read `PAYMENT-RESPONSE`, v1 clients `X-PAYMENT-RESPONSE` with the network's legacy name.
    """
    outcome = settlement.outcome if settlement else SettleOutcome.PENDING
    network = catalogue.find_network(sale.key.network)
    response = SettleResponse(
        success=settlement is None or outcome is SettleOutcome.SETTLED,
        transaction=settlement.transaction if settlement else "",
        network=sale.key.network,
        payer=checksum_address(sale.key.payer),
        error_reason=_error_reason(settlement) if settlement else None,
    )
    v1 = msgspec.structs.replace(response, network=network.name if network else sale.key.network)
    return {
        PAYMENT_RESPONSE: settle_header(response),
        X_PAYMENT_RESPONSE: settle_header(v1),
        RECEIPT: receipt_path(sale.id),
        SETTLEMENT: outcome.value,
        "Cache-Control": "private, no-store",
    }


def _error_reason(settlement: Settlement) -> str | None:
    match settlement.outcome:
        case SettleOutcome.SETTLED:
            return None
        case SettleOutcome.FAILED:
            return settlement.reason or "settlement_failed"
        case SettleOutcome.PENDING | SettleOutcome.UNKNOWN:
            return PENDING_REASON


def receipt_path(sale_id: str) -> str:
    """Where the final receipt of a sale is."""
    return f"/receipts/{sale_id}"


def refuse(call: Call, refusal: Refusal) -> web.Response:
    """The answer to a refusal that asks for no money."""
    headers = {**refusal.headers, REQUEST_ID: call.id, "Cache-Control": "no-store"}
    if refusal.retry_after_s is not None:
        headers["Retry-After"] = str(refusal.retry_after_s)
    if refusal.sale_id is not None:
        headers[RECEIPT] = receipt_path(refusal.sale_id)
    return web.Response(
        body=error_body(refusal, call.id),
        status=REPLIES[refusal.reason].status,
        headers=headers,
        content_type="application/json",
    )


def quote(call: Call, live: LiveOffer, resource_url: str, refusal: Refusal | None = None) -> web.Response:
    """The 402: v2 in the header, v1 in the body, or a readable page for a browser."""
    challenge = live.challenge(resource_url, refusal.message if refusal else PAYMENT_REQUIRED_TEXT)
    headers = dict(refusal.headers) if refusal else {}
    headers |= {PAYMENT_REQUIRED: challenge.header, "Cache-Control": "no-store", REQUEST_ID: call.id}
    if refusal is not None and refusal.sale_id is not None:
        headers[RECEIPT] = receipt_path(refusal.sale_id)
    if wants_page(call.request):
        return web.Response(
            text=quote_page(live.offer, resource_url), status=402, headers=headers, content_type="text/html"
        )
    return web.Response(body=challenge.body, status=402, headers=headers, content_type="application/json")


def wants_page(request: web.BaseRequest) -> bool:
    """True for a browser: it names text/html before anything else."""
    return request.headers.get("Accept", "").startswith("text/html")
