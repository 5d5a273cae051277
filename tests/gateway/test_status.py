"""What a gateway tells about itself."""

from tests.fakes.model_server import Behaviour
from tests.gateway.failing_ledger import FailingLedger
from tests.gateway.fixtures import MakeShop
from tests.gateway.occupied import status, until_ready
from tests.gateway.shop import PRICE, PRICE_ATOMIC, SELLER, USDC, Shop, chat


async def test_health_is_about_the_process_alone(make_shop: MakeShop) -> None:
    ledger = FailingLedger()
    shop = await make_shop(wrap_ledger=ledger.wrap)
    await shop.upstream.stop()
    ledger.is_down = True
    answer = await shop.get("/health")
    assert (answer.status, answer.json) == (200, {"status": "ok"})
    ledger.is_down = False


async def test_ready_means_that_a_sale_could_be_made_now(shop: Shop) -> None:
    answer = await shop.get("/ready")
    checks = {"upstream": "up", "ledger": "writable", "accepting": "yes"}
    assert (answer.status, answer.json) == (200, {"ready": True, "checks": checks})


async def test_not_ready_while_the_upstream_is_down(shop: Shop) -> None:
    await shop.upstream.stop()
    await shop.pay()
    answer = await shop.get("/ready")
    assert (answer.status, answer.json["checks"]["upstream"]) == (503, "down")
    assert (await status(shop))["upstream"] == "down"
    await shop.upstream.start()
    await until_ready(shop)


async def test_not_ready_while_the_ledger_cannot_be_written(make_shop: MakeShop) -> None:
    ledger = FailingLedger()
    shop = await make_shop(wrap_ledger=ledger.wrap)
    ledger.is_down = True
    answer = await shop.get("/ready")
    assert (answer.status, answer.json["checks"]["ledger"]) == (503, "not writable")
    ledger.is_down = False
    await until_ready(shop)


async def test_without_a_gate_the_ledger_does_not_matter(make_shop: MakeShop) -> None:
    shop = await make_shop(no_payment_gate=True)
    assert (await shop.get("/ready")).json["checks"]["ledger"] == "not used"


async def test_status_shows_the_offer(make_shop: MakeShop) -> None:
    shop = await make_shop(max_output_tokens=100, description="A small model")
    now = await status(shop)
    assert now["offer"] == {
        "name": "inference",
        "description": "A small model",
        "models": ["tiny"],
        "apis": ["chat", "completions", "embeddings", "responses"],
        "paymentGate": True,
        "verifyOnly": False,
        "settlement": "on-output",
        "lossBound": (
            "to each payer address (a buyer may have many): what each open stream delivers until its settlement is "
            "refused, all of it if the facilitator says neither yes nor no; the work of a plain answer, which is held "
            "until it is paid; the answer that is leaving when the process dies"
        ),
        "maxUnsettledAtomic": None,
        "payment": {
            "scheme": "exact",
            "network": "base-sepolia",
            "caip2": "eip155:84532",
            "asset": "USDC",
            "assetAddress": USDC.address,
            "assetDecimals": 6,
            "payTo": SELLER,
            "price": {"perRequest": PRICE, "perRequestAtomic": str(PRICE_ATOMIC)},
        },
        "requestLimits": {"maxBodyBytes": 10 * 1024 * 1024, "maxInputTokens": None, "maxOutputTokens": 100},
    }


async def test_where_the_ledger_is_no_buyer_is_told(shop: Shop) -> None:
    """On an admin address the seller is, see `test_sell.py`."""
    assert "ledger" not in await status(shop)


async def test_status_and_metrics_never_name_the_upstream_or_its_credential(make_shop: MakeShop) -> None:
    shop = await make_shop(upstream_authorization="Bearer s3cret")
    await shop.pay()
    for path in ("/status", "/metrics", "/ready", "/v1/models"):
        answer = await shop.get(path)
        assert str(shop.upstream.port).encode() not in answer.body
        assert b"s3cret" not in answer.body


async def test_status_counts_payments_and_exact_revenue(shop: Shop) -> None:
    for stream in (False, True):
        await shop.receipt_in("settled", await shop.pay(chat(stream=stream)), delivery="complete")
    shop.upstream.behaviour = Behaviour(status=500)
    await shop.pay()
    now = await status(shop)
    assert now["payments"]["claimed"] == 3
    assert now["payments"]["settled"] == 2
    assert now["payments"]["released"] == 1
    network, asset = "eip155:84532", USDC.address.lower()
    assert now["revenue"] == [{"network": network, "asset": asset, "amountAtomic": str(2 * PRICE_ATOMIC)}]


METRICS = [
    'obol_requests_total{offer="inference",outcome="served"} 1.0',
    'obol_requests_total{offer="inference",outcome="quoted"} 1.0',
    'obol_payments_total{offer="inference",state="settled"} 1.0',
    f'obol_revenue_atomic_total{{network="eip155:84532",asset="{USDC.address.lower()}"}} {PRICE_ATOMIC}',
    'obol_in_flight{offer="inference"} 0.0',
    'obol_queued{offer="inference"} 0.0',
    'obol_capacity_max_in_flight{offer="inference"} 4.0',
    "obol_verification_seconds_count 1.0",
    "obol_claim_seconds_count 1.0",
    "obol_settlement_seconds_count 1.0",
    "obol_overhead_seconds_count 1.0",
    "gen_ai_server_time_to_first_token_seconds_count",
    "gen_ai_server_time_per_output_token_seconds_count",
    "gen_ai_server_request_duration_seconds_count",
    "gen_ai_client_token_usage_count",
]


async def test_metrics_has_every_name_that_is_promised(make_shop: MakeShop) -> None:
    shop = await make_shop(max_inflight=4)
    await shop.post()
    options = {"stream_options": {"include_usage": True}}
    await shop.receipt_in("settled", await shop.pay(chat(stream=True, **options)), delivery="complete")
    answer = await shop.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    lines = answer.body.decode().splitlines()
    for name in METRICS:
        assert any(line.startswith(name) for line in lines), name


async def test_an_unknown_receipt_is_404_and_so_is_what_is_none(shop: Shop) -> None:
    for sale in ("0" * 32, "0" * 31, "0" * 33, "g" * 32, "", "A" * 32, "0" * 32 + "?x"):
        answer = await shop.get(f"/receipts/{sale}")
        assert (answer.status, answer.reason) == (404, "receipt_not_found"), sale


async def test_a_receipt_says_what_was_sold_and_never_the_signature(shop: Shop) -> None:
    answer = await shop.pay()
    receipt = await shop.receipt_in("settled", answer, delivery="complete")
    assert receipt["payTo"] == SELLER
    assert (receipt["payer"], receipt["asset"]) == (shop.signer.address, USDC.address)
    assert (receipt["authorizedAtomic"], receipt["settledAtomic"]) == (str(PRICE_ATOMIC), str(PRICE_ATOMIC))
    assert (receipt["paid"], receipt["verifyOnly"], receipt["model"]) == (True, False, "tiny")
    assert receipt["transaction"] == answer.payment_response.transaction
    assert "signature" not in receipt
    assert "payload" not in receipt
    raw = await shop.get("/receipts/" + answer.sale_id)
    assert raw.headers["Cache-Control"] == "no-store"
