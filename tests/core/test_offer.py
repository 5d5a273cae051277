import dataclasses
from typing import Any

import pytest

from obol.core.networks import BASE, DEFAULT_CATALOGUE
from obol.core.offer import OPENAI_APIS, Api, Model, Offer, RequestLimits, SettlementPolicy, Standing

OFFER = Offer(
    name="qwen",
    upstream_url="http://localhost:8000",
    models=(Model("qwen36-fast", "Qwen/Qwen3.6"), Model("small", "small")),
    asset=DEFAULT_CATALOGUE.asset(BASE, "usdc"),
    pay_to="0x209693Bc6afc0C5328bA36FaF03C514EF312287C",
    price_atomic=1_000,
)


def test_a_model_is_found_by_its_public_name_only() -> None:
    assert OFFER.model("qwen36-fast") == Model("qwen36-fast", "Qwen/Qwen3.6")
    assert OFFER.model("Qwen/Qwen3.6") is None
    assert OFFER.model("QWEN36-FAST") is None
    assert OFFER.model("") is None


def test_an_offer_sells_the_openai_apis_unless_it_says_otherwise() -> None:
    assert OFFER.apis == OPENAI_APIS == {Api.CHAT, Api.COMPLETIONS, Api.EMBEDDINGS, Api.RESPONSES}


def test_the_defaults_gate_settle_and_do_not_limit_capacity() -> None:
    assert OFFER.payment_gate
    assert not OFFER.verify_only
    assert OFFER.settlement is SettlementPolicy.ON_OUTPUT
    assert OFFER.capacity is None
    assert OFFER.limits == RequestLimits(10 * 1024 * 1024, None, None)
    assert (OFFER.max_timeout_s, OFFER.max_validity_s) == (300, 86_400)


def test_an_offer_does_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        OFFER.price_atomic = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "to each payer address"),
        ({}, "what each open stream delivers until its settlement is refused"),
        ({}, "all of it if the facilitator says neither yes nor no"),
        ({}, "the work of a plain answer, which is held until it is paid"),
        ({}, "the answer that is leaving when the process dies"),
        ({"settlement": SettlementPolicy.BEFORE}, "nothing: money moves before"),
        (
            {"settlement": SettlementPolicy.AFTER, "standing": Standing(0, 5000)},
            "up to 0.005 USDC of answers ahead of payment; ",
        ),
        (
            {"standing": Standing(3, 5000)},
            "up to 0.005 USDC of plain answers ahead of payment, once it has 3 settled sales",
        ),
        ({"verify_only": True}, "everything"),
    ],
)
def test_an_offer_says_what_the_seller_can_lose(changes: dict[str, Any], said: str) -> None:
    assert said in dataclasses.replace(OFFER, **changes).loss_bound
