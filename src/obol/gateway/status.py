"""What a gateway tells about itself: models, health, readiness, status, receipts."""

from typing import Any

import msgspec
from aiohttp import web

from obol.core.money import format_amount
from obol.core.offer import Offer
from obol.core.sale import Receipt, Sale, receipt_of
from obol.errors import LedgerUnavailableError
from obol.gateway.live_offer import LiveOffer
from obol.gateway.ports import Ports
from obol.x402.eip712 import checksum_address


def json_response(value: object, status: int = 200) -> web.Response:
    """A JSON answer that no cache keeps."""
    return json_answer(msgspec.json.encode(value), status)


def json_answer(body: bytes, status: int = 200) -> web.Response:
    """The same, of JSON that is encoded already."""
    return web.Response(
        body=body,
        status=status,
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )


def health() -> web.Response:
    """The process lives; says nothing of upstream, ledger or facilitator."""
    return json_response({"status": "ok"})


async def ready(live: LiveOffer, ports: Ports) -> web.Response:
    """200 when a sale could be made now: the upstream was seen and the ledger can be written; else 503 and why."""
    checks = {
        "upstream": {True: "up", False: "down", None: "not asked yet"}[live.is_upstream_up],
        "ledger": await _ledger_check(live, ports),
        "accepting": "draining" if live.is_draining else "yes",
    }
    is_ready = live.is_upstream_up is True and checks["ledger"] in ("writable", "not used") and not live.is_draining
    return json_response({"ready": is_ready, "checks": checks}, 200 if is_ready else 503)


async def _ledger_check(live: LiveOffer, ports: Ports) -> str:
    if not live.offer.payment_gate:
        return "not used"
    try:
        await ports.ledger.check()
    except LedgerUnavailableError:
        return "not writable"
    return "writable"


def status(live: LiveOffer, ports: Ports, *, ledger: str = "") -> web.Response:
    """The offer, its capacity block (as `ServiceOffer.status.capacity`), and counters since start. `ledger`: where it
    is, for the seller alone; "" where buyers look on."""
    totals = ports.metrics.totals()
    private = {"ledger": ledger} if ledger else {}
    return json_response(
        {
            "offer": offer_block(live.offer),
            "capacity": capacity_block(live),
            "upstream": {True: "up", False: "down", None: "unknown"}[live.is_upstream_up],
            "draining": live.is_draining,
            "inFlight": live.gate.admission.in_flight,
            "queued": live.gate.admission.queued,
            "requests": totals["requests"],
            "payments": totals["payments"],
            "revenue": [
                {"network": network, "asset": asset, "amountAtomic": str(amount_atomic)}
                for (network, asset), amount_atomic in sorted(ports.metrics.revenue_by_asset().items())
            ],
            **private,
        }
    )


def offer_block(offer: Offer) -> dict[str, Any]:
    """What is sold, as discovery may show it: never the upstream's address."""
    asset = offer.asset
    return {
        "name": offer.name,
        "description": offer.description,
        "models": [model.public for model in offer.models],
        "apis": sorted(offer.apis),
        "paymentGate": offer.payment_gate,
        "verifyOnly": offer.verify_only,
        "settlement": offer.settlement,
        "lossBound": offer.loss_bound,
        "maxUnsettledAtomic": None if offer.standing is None else str(offer.standing.max_unsettled_atomic),
        "payment": {
            "scheme": "exact",
            "network": asset.network.name,
            "caip2": asset.network.caip2,
            "asset": asset.symbol,
            "assetAddress": asset.address,
            "assetDecimals": asset.decimals,
            "payTo": offer.pay_to,
            "price": {
                "perRequest": format_amount(offer.price_atomic, asset.decimals),
                "perRequestAtomic": str(offer.price_atomic),
            },
        },
        "requestLimits": {
            "maxBodyBytes": offer.limits.max_body_bytes,
            "maxInputTokens": offer.limits.max_input_tokens,
            "maxOutputTokens": offer.limits.max_output_tokens,
        },
    }


def capacity_block(live: LiveOffer) -> dict[str, Any] | None:
    """`status.capacity` of the capacity envelope; None when the seller declared none (no limit)."""
    capacity = live.offer.capacity
    if capacity is None:
        return None
    return {
        "mode": capacity.mode,
        "scalingControlled": False,
        "gpuCount": capacity.gpu_count,
        "maxInFlight": capacity.max_in_flight,
        "perBuyerMaxInFlight": capacity.per_buyer_max_in_flight,
        "inFlight": live.gate.admission.in_flight,
        "state": live.gate.admission.state,
    }


def receipt_block(sale: Sale) -> dict[str, Any]:
    """The public receipt of a sale."""
    receipt: Receipt = receipt_of(sale)
    return {
        "id": receipt.id,
        "offer": receipt.offer,
        "model": receipt.model,
        "network": receipt.network,
        "asset": checksum_address(receipt.asset),
        "payer": checksum_address(receipt.payer),
        "payTo": receipt.pay_to,
        "nonce": sale.key.nonce,
        "authorizedAtomic": str(receipt.authorized_atomic),
        "settledAtomic": None if receipt.settled_atomic is None else str(receipt.settled_atomic),
        "state": receipt.state,
        "paid": receipt.is_paid,
        "verifyOnly": receipt.reason == "verify_only",
        "delivery": receipt.delivery,
        "transaction": receipt.transaction,
        "logIndex": receipt.log_index,
        "reason": receipt.reason,
        "usage": {"inputTokens": receipt.usage.input_tokens, "outputTokens": receipt.usage.output_tokens},
        "createdAt": receipt.created_s,
        "updatedAt": receipt.updated_s,
    }
