from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from obol import Gateway, GatewayConfig
from obol.core.capacity import Capacity
from obol.core.offer import OPENAI_APIS, Model, SettlementPolicy, Standing
from obol.errors import SettingsError
from obol.gateway.settings import asset_of, checked, is_loopback, ledger_name, offer_of, split_address
from tests.fakes.facilitator import FakeFacilitator, MakeBelieve
from tests.gateway.shop import MODEL, SELLER, Shop

CONFIG = GatewayConfig(upstream_url="http://localhost:8000", pay_to=SELLER)
CHECKSUMMED = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
WRONG: dict[str, list[dict[str, Any]]] = {
    "NAME": [{"name": text} for text in ("", "../x", "a/b", "a b", "-a", "é", "a;b", "x" * 64)],
    "--upstream": [
        {"upstream_url": text}
        for text in ("", "localhost:8000", "ftp://host", "http://", "http://u:p@host", "http://host/?a=1", "http://h#a")
    ],
    "--public-url": [{"public_url": text} for text in ("shop.example", "https://shop.example/?x")],
    "--pay-to": [{"pay_to": text} for text in ("", "0x", "11" * 20, "0x" + "1" * 39, "0x" + "0" * 40, "0x" + "g" * 40)]
    + [{"pay_to": CHECKSUMMED.replace("C8", "c8")}],
    "--price": [{"price": text} for text in ("0,01", "abc", "-1", "1e-9", "0", "0.0000001", "", "0x10")],
    "--chain": [{"chain": text} for text in ("", "dogecoin", "eip155:0")],
    "--payment-asset": [
        {"payment_asset": "doge"},
        {"payment_asset": "0x" + "77" * 20},
        {"payment_asset": "obol", "devnet": True},
        {"payment_asset": "obol", "chain": "polygon"},
    ],
    "--listen": [{"listen": text} for text in ("", "8402", "host", "host:", "host:65536", "host:-1", "host:٣")],
    "--admin-listen": [{"admin_listen": "8402"}],
    "--model": [{"models": models} for models in (("other",), ("",), ("a=",), ("=tiny",), (MODEL, f"{MODEL}=tiny"))],
    "--max-inflight": [{"max_inflight": 0}, {"max_inflight": -1}],
    "--per-buyer-max-inflight": [{"per_buyer_max_inflight": 0}],
    "--gpu-count": [{"gpu_count": 0}],
    "--max-body-bytes": [{"max_body_bytes": 0}],
    "--max-input-tokens": [{"max_input_tokens": 0}],
    "--max-output-tokens": [{"max_output_tokens": 0}],
    "--max-timeout": [{"max_timeout_s": 0}, {"max_timeout_s": 6}, {"max_timeout_s": 90_000}],
    "--max-validity": [{"max_validity_s": 0}],
    "--max-queue-depth": [{"max_queue_depth": -1, "max_inflight": 1}, {"max_queue_depth": 1}],
    "--max-unsettled": [
        {"settlement": SettlementPolicy.AFTER},
        {"settlement": SettlementPolicy.BEFORE, "max_unsettled": "1"},
        *({"max_unsettled": text} for text in ("0,01", "abc", "-1", "1e-9", "0", "", "0.000999")),
    ],
    "--standing-after": [{"standing_after": 1}, {"standing_after": -1, "max_unsettled": "1"}],
    "--queue-timeout": [{"queue_timeout_s": 0.0}],
    "--verify-timeout": [{"verify_timeout_s": 0.0}, {"verify_timeout_s": float("nan")}],
    "--settle-timeout": [{"settle_timeout_s": -1.0}],
    "--drain-timeout": [{"drain_timeout_s": 0.0}],
    "--upstream-connect-timeout": [{"upstream_connect_timeout_s": 0.0}],
    "--upstream-first-byte-timeout": [{"upstream_first_byte_timeout_s": 0.0}],
    "--upstream-idle-timeout": [{"upstream_idle_timeout_s": 0.0}],
    "--no-payment-gate": [{"no_payment_gate": True, "listen": text} for text in ("0.0.0.0:1", ":1", "shop.local:1")],
    "--verify-only": [{"verify_only": True, "no_payment_gate": True}],
    "--settlement": [{"verify_only": True, "settlement": SettlementPolicy.BEFORE}],
}


@pytest.mark.parametrize(("field", "changes"), [(field, changes) for field in WRONG for changes in WRONG[field]])
def test_a_wrong_setting_is_refused_by_name(field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(SettingsError) as caught:
        offer_of(checked(replace(CONFIG, **changes)), (MODEL,))
    assert caught.value.field == field


def test_a_gateway_refuses_its_settings_before_it_does_anything() -> None:
    for changes in ({"pay_to": ""}, {"payment_asset": "doge"}, {"max_inflight": 0}):
        with pytest.raises(SettingsError):
            Gateway(replace(CONFIG, **changes))


def test_obol_is_refused_with_the_reason_that_it_cannot_be_settled() -> None:
    with pytest.raises(SettingsError, match=r"permit2, which the devnet does not have"):
        asset_of(replace(CONFIG, payment_asset="obol", devnet=True))


def test_defaults() -> None:
    offer = offer_of(checked(CONFIG), (MODEL, "large"))
    assert offer.models == (Model(MODEL, MODEL), Model("large", "large"))
    assert (offer.price_atomic, offer.asset.symbol, offer.asset.network.name) == (1000, "USDC", "base-sepolia")
    assert (offer.apis, offer.capacity, offer.settlement) == (OPENAI_APIS, None, SettlementPolicy.ON_OUTPUT)
    assert (offer.max_timeout_s, offer.max_validity_s) == (300, 86400)
    assert (offer.payment_gate, offer.verify_only) == (True, False)
    assert (CONFIG.verify_timeout_s, CONFIG.settle_timeout_s, CONFIG.upstream_connect_timeout_s) == (5.0, 60.0, 5.0)
    assert CONFIG.listen == ":8402"


def test_a_price_is_atomic_units_of_its_asset() -> None:
    assert offer_of(replace(CONFIG, price="0.000001"), (MODEL,)).price_atomic == 1
    assert offer_of(replace(CONFIG, price="12345.678901"), (MODEL,)).price_atomic == 12_345_678_901


@pytest.mark.parametrize("text", [CHECKSUMMED, CHECKSUMMED.lower(), "0x" + CHECKSUMMED[2:].upper()])
def test_a_recipient_is_written_with_its_checksum(text: str) -> None:
    assert offer_of(replace(CONFIG, pay_to=text), (MODEL,)).pay_to == CHECKSUMMED


@pytest.mark.parametrize("chain", ["base-sepolia", "BASE-SEPOLIA", "eip155:84532"])
@pytest.mark.parametrize("asset", ["usdc", "USDC", "0x036cbd53842c5426634e7929541ec2318f3dcf7e"])
def test_networks_and_assets_have_several_names(chain: str, asset: str) -> None:
    assert asset_of(replace(CONFIG, chain=chain, payment_asset=asset)) == asset_of(CONFIG)


def test_models_can_be_sold_under_other_names() -> None:
    offer = offer_of(replace(CONFIG, models=("fast=tiny", "tiny")), ("tiny", "hidden"))
    assert offer.models == (Model("fast", "tiny"), Model("tiny", "tiny"))
    assert offer.model("hidden") is None


def test_any_capacity_number_makes_an_envelope() -> None:
    assert offer_of(replace(CONFIG, gpu_count=2), (MODEL,)).capacity == Capacity(gpu_count=2)
    limits = replace(CONFIG, max_inflight=4, per_buyer_max_inflight=2, max_queue_depth=3, queue_timeout_s=1.5)
    assert offer_of(checked(limits), (MODEL,)).capacity == Capacity(4, 2, 3, 1.5)


def test_without_a_gate_only_this_machine_is_served() -> None:
    free = replace(CONFIG, no_payment_gate=True, pay_to="")
    assert checked(free).listen == "127.0.0.1:8402"
    for listen in ("127.0.0.1:1", "[::1]:1", "localhost:1", "127.8.9.10:1"):
        assert checked(replace(free, listen=listen)).listen == listen
    assert checked(replace(free, listen="0.0.0.0:1", force=True)).listen == "0.0.0.0:1"
    assert not offer_of(free, (MODEL,)).payment_gate


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        (None, False),
        ("0.0.0.0", False),
        ("localhost.x", False),
    ],
)
def test_loopback(host: str | None, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("text", "address"),
    [(":8402", (None, 8402)), ("127.0.0.1:0", ("127.0.0.1", 0)), ("[::1]:80", ("::1", 80)), ("host:1", ("host", 1))],
)
def test_addresses(text: str, address: tuple[str | None, int]) -> None:
    assert split_address(text, "--listen") == address


def test_the_seller_is_told_where_the_ledger_is_and_never_its_password() -> None:
    assert ledger_name(replace(CONFIG, data_dir=Path("/data"))) == "/data/ledger.sqlite3"
    assert ledger_name(replace(CONFIG, data_dir=Path("/data"), devnet=True)) == "/data/ledger-devnet.sqlite3"
    assert ledger_name(replace(CONFIG, ledger_url="postgresql://obol:hunter2@db/obol")) == "PostgreSQL"


def test_a_credential_does_not_show() -> None:
    assert "hunter2" not in repr(replace(CONFIG, upstream_authorization="Bearer hunter2"))


def test_every_setting_says_what_it_is_by_its_unit() -> None:
    numbers = {field.name for field in fields(GatewayConfig) if field.type in (float, "float")}
    assert all(name.endswith("_s") for name in numbers)


async def test_a_facilitator_that_cannot_settle_this_is_refused_at_start(shop: Shop) -> None:
    async with FakeFacilitator(MakeBelieve(networks=("eip155:8453",))) as elsewhere:
        config = replace(shop.config, devnet=False, facilitator_url=elsewhere.url)
        with pytest.raises(SettingsError) as caught:
            await Gateway(config, log=shop.log).start_async()
    assert caught.value.field == "--facilitator"


async def test_a_facilitator_that_cannot_be_asked_at_start_is_a_warning(shop: Shop) -> None:
    config = replace(shop.config, devnet=False, facilitator_url="http://127.0.0.1:1")
    async with Gateway(config, log=shop.log) as gateway:
        assert any("facilitator" in warning for warning in gateway.warnings)


@pytest.mark.parametrize(
    ("changes", "standing"),
    [
        ({}, None),
        ({"max_unsettled": "0.05"}, Standing(5, 50_000)),
        ({"max_unsettled": "0.05", "standing_after": 1}, Standing(1, 50_000)),
        ({"max_unsettled": "0.05", "settlement": SettlementPolicy.AFTER}, Standing(0, 50_000)),
        ({"max_unsettled": "0.05", "settlement": SettlementPolicy.AFTER, "standing_after": 3}, Standing(3, 50_000)),
    ],
)
def test_nobody_is_trusted_unless_the_seller_says_how_far(changes: dict[str, Any], standing: Standing | None) -> None:
    assert offer_of(checked(replace(CONFIG, **changes)), (MODEL,)).standing == standing
