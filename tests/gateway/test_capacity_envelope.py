"""The acceptance criteria of the capacity envelope that concern the gateway, each by name.

Source: "minimal external inference capacity envelope for ServiceOffer". What concerns the CRD, the reconciler, Traefik
and the HTTPRoute belongs to the operator.
"""

import pytest

from obol import GatewayConfig
from obol.core.networks import BASE_SEPOLIA, DEFAULT_CATALOGUE, ETHEREUM, Asset, TransferMethod
from obol.gateway.settings import checked, offer_of
from tests.cli.program import obol
from tests.fakes.model_server import Behaviour
from tests.gateway.fixtures import MakeShop
from tests.gateway.occupied import occupied, status
from tests.gateway.shop import PRICE_ATOMIC, SELLER, USDC, Shop, chat

ENVELOPE = {"gpu_count": 1, "max_inflight": 16, "per_buyer_max_inflight": 4}
OTHER = Asset("EURC", BASE_SEPOLIA, "0x808456652fdb597867f38412077A9182bf77359F", 6, "EURC", "2")


async def test_a_saturated_offer_returns_429_with_retry_after_and_not_402(make_shop: MakeShop) -> None:
    shop = await make_shop(max_inflight=2)
    async with occupied(shop, 2):
        answer = await shop.post()
    assert answer.status == 429
    assert 1 <= int(answer.headers["Retry-After"]) <= 60
    assert not answer.asks_for_money
    assert b"accepts" not in answer.body


async def test_an_unsaturated_unpaid_request_still_returns_normal_402_terms(make_shop: MakeShop) -> None:
    shop = await make_shop(max_inflight=2)
    async with occupied(shop, 1):
        answer = await shop.post()
    assert answer.status == 402
    (v2,) = answer.challenge.accepts
    assert (v2.scheme, v2.network, v2.amount, v2.pay_to) == ("exact", "eip155:84532", str(PRICE_ATOMIC), SELLER)
    (v1,) = answer.json["accepts"]
    assert (v1["network"], v1["maxAmountRequired"], v1["payTo"]) == ("base-sepolia", str(PRICE_ATOMIC), SELLER)


async def test_a_paid_request_forwards_to_the_external_endpoint_as_before(make_shop: MakeShop) -> None:
    shop = await make_shop(**ENVELOPE)
    for stream in (False, True):
        assert (await shop.pay(chat(stream=stream))).status == 200
    assert [call.json for call in shop.upstream.calls] == [chat(stream=False), chat(stream=True)]


async def test_the_status_capacity_block_is_exactly_as_specified(make_shop: MakeShop) -> None:
    shop = await make_shop(**ENVELOPE)
    async with occupied(shop, 3):
        assert (await status(shop))["capacity"] == {
            "mode": "external-static",
            "scalingControlled": False,
            "gpuCount": 1,
            "maxInFlight": 16,
            "perBuyerMaxInFlight": 4,
            "inFlight": 3,
            "state": "Available",
        }
    await shop.restart(max_inflight=1, per_buyer_max_inflight=None, gpu_count=None)
    async with occupied(shop):
        block = (await status(shop))["capacity"]
    assert block == {
        "mode": "external-static",
        "scalingControlled": False,
        "gpuCount": None,
        "maxInFlight": 1,
        "perBuyerMaxInFlight": None,
        "inFlight": 1,
        "state": "Saturated",
    }


async def test_sell_status_shows_mode_scaling_gpus_limits_and_in_flight(make_shop: MakeShop) -> None:
    shop = await make_shop(**ENVELOPE)
    async with occupied(shop, 2):
        result = await obol("sell", "status", "--url", shop.url)
    assert result.code == 0, result
    shown = result.json["capacity"]
    assert shown["mode"] == "external-static"
    assert shown["scalingControlled"] is False
    assert (shown["gpuCount"], shown["maxInFlight"], shown["inFlight"]) == (1, 16, 2)
    assert shown["state"] == "Available"


async def test_selling_works_as_before_when_capacity_is_omitted(shop: Shop) -> None:
    shop.upstream.behaviour = Behaviour(token_interval_s=0.005)
    async with occupied(shop, 20):
        assert (await shop.post()).status == 402
        now = await status(shop)
        assert now["capacity"] is None
        assert now["inFlight"] == 20, "a real count, though nothing is limited"
        assert (await shop.pay()).status == 200


async def test_gpu_count_is_metadata_and_limits_nothing(make_shop: MakeShop) -> None:
    shop = await make_shop(gpu_count=1)
    async with occupied(shop, 5):
        block = (await status(shop))["capacity"]
        assert (block["gpuCount"], block["maxInFlight"], block["state"]) == (1, None, "Available")
        assert (await shop.post()).status == 402


async def test_the_queue_depth_is_zero_by_default(make_shop: MakeShop) -> None:
    shop = await make_shop(max_inflight=1)
    async with occupied(shop):
        assert (await shop.pay()).status == 429
        assert (await status(shop))["queued"] == 0


async def test_the_payment_asset_defaults_to_usdc_and_is_explicit_in_the_terms(shop: Shop) -> None:
    answer = await shop.post()
    (v2,) = answer.challenge.accepts
    assert v2.asset == USDC.address
    assert v2.extra == {"name": "USDC", "version": "2", "assetTransferMethod": "eip3009"}
    (v1,) = answer.json["accepts"]
    assert (v1["asset"], v1["extra"]) == (USDC.address, {"name": "USDC", "version": "2"})
    payment = (await status(shop))["offer"]["payment"]
    assert (payment["asset"], payment["assetAddress"], payment["assetDecimals"]) == ("USDC", USDC.address, 6)


@pytest.mark.parametrize("spelling", ["eurc", OTHER.address, OTHER.address.lower()])
async def test_pricing_output_preserves_the_selected_asset(make_shop: MakeShop, spelling: str) -> None:
    catalogue = DEFAULT_CATALOGUE.with_assets((), (OTHER,))
    shop = await make_shop(facilitator=True, payment_asset=spelling, catalogue=catalogue)
    answer = await shop.post()
    assert answer.challenge.accepts[0].asset == answer.json["accepts"][0]["asset"] == OTHER.address
    assert (answer.challenge.accepts[0].extra or {})["name"] == "EURC"
    payment = (await status(shop))["offer"]["payment"]
    assert (payment["asset"], payment["assetAddress"]) == ("EURC", OTHER.address)


@pytest.mark.parametrize("chain", ["base-sepolia", "ethereum", "eip155:1"])
def test_obol_is_sold_on_the_networks_that_have_it(chain: str) -> None:
    network = DEFAULT_CATALOGUE.network(chain)
    assert network in (BASE_SEPOLIA, ETHEREUM)
    offer = offer_of(
        checked(GatewayConfig("http://127.0.0.1:1", pay_to=SELLER, chain=chain, payment_asset="obol")), ("m",)
    )
    assert (offer.asset.symbol, offer.asset.transfer_method) == ("OBOL", TransferMethod.PERMIT2)
