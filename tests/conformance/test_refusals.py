"""What the users of official clients see when nothing is bought; and that then no money moves."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from eth_account.signers.local import LocalAccount

from tests.conformance.buyers import BUYERS, OPENAI_BUYERS, V1_BUYERS
from tests.conformance.purchase import Order
from tests.conformance.shop import Shop, open_shop
from tests.fakes.facilitator import Drop, Ok, RefuseSettle, RefuseVerify
from tests.fakes.model_answers import WORDS
from tests.fakes.model_server import Behaviour, FakeModelServer

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(90)]
CLIENTS = pytest.mark.parametrize("client", BUYERS)
GUARDS = {
    "x402": "max_amount_per_payment",
    "@x402/fetch": "maxAmountPerPayment",
    "x402-fetch": "Payment amount exceeds maximum allowed",
    "openai": "BudgetExceededError",
    "openai-async": "BudgetExceededError",
}
"""Each client's own words for a quote above its limit."""


@pytest_asyncio.fixture(loop_scope="session")
async def shop(model_server: FakeModelServer, tmp_path: Path) -> AsyncIterator[Shop]:
    async with open_shop(model_server.url, tmp_path, max_inflight=1) as opened:
        yield opened


@CLIENTS
async def test_a_quote_above_the_clients_own_limit_is_understood_and_not_paid(
    model_server: FakeModelServer, tmp_path: Path, scripts: Path, wallet: LocalAccount, client: str
) -> None:
    async with open_shop(model_server.url, tmp_path, price="1.5") as shop:
        await shop.fund(wallet.address)
        outcome = await BUYERS[client](Order(shop.url, wallet), scripts)
        assert outcome.status is None
        assert GUARDS[client] in outcome.error
        assert outcome.presented == {}
        assert await shop.payments_of(wallet.address) == []
        assert (await shop.get("/status"))["requests"] == {"quoted": 1}


@CLIENTS
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_a_payment_presented_again_meets_409_with_the_receipt_of_the_first(
    model_server: FakeModelServer, shop: Shop, scripts: Path, wallet: LocalAccount, client: str, stream: bool
) -> None:
    await shop.fund(wallet.address)
    first = await BUYERS[client](Order(shop.url, wallet, stream=stream), scripts)
    assert list(first.presented) == ["X-PAYMENT" if client in V1_BUYERS else "PAYMENT-SIGNATURE"]
    await shop.receipt(first.headers["x-obol-receipt"])
    again = await BUYERS[client](Order(shop.url, wallet, stream=stream, headers=first.presented), scripts)
    assert (again.status, again.reason, again.presented) == (409, "payment_used", {})
    assert again.headers["x-obol-receipt"] == first.headers["x-obol-receipt"]
    assert len(await shop.payments_of(wallet.address)) == len(model_server.calls) == 1


@CLIENTS
async def test_a_saturated_seller_answers_429_and_asks_for_no_money(
    model_server: FakeModelServer, shop: Shop, scripts: Path, wallet: LocalAccount, client: str
) -> None:
    go_on, first_chunk = asyncio.Event(), asyncio.Event()
    model_server.behaviour = Behaviour(hold_between_tokens=go_on)
    await shop.fund(wallet.address)
    order = Order(shop.url, wallet, stream=True, notify=first_chunk.set)
    async with asyncio.TaskGroup() as group:
        holder = group.create_task(BUYERS["x402"](order, scripts))
        await first_chunk.wait()
        outcome = await BUYERS[client](Order(shop.url, wallet), scripts)
        go_on.set()
    assert holder.result().status == 200
    assert (outcome.status, outcome.reason, outcome.presented) == (429, "saturated", {})
    assert 1 <= int(outcome.headers["retry-after"]) <= 60
    assert not {"payment-required", "payment-response", "x-obol-receipt"} & set(outcome.headers)
    assert len(await shop.payments_of(wallet.address)) == 1


@CLIENTS
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_a_payment_that_the_facilitator_refuses_is_not_made_again(
    model_server: FakeModelServer, shop: Shop, scripts: Path, wallet: LocalAccount, client: str, stream: bool
) -> None:
    shop.facilitator.behaviour = RefuseVerify("insufficient_funds")
    await shop.fund(wallet.address)
    outcome = await BUYERS[client](Order(shop.url, wallet, stream=stream), scripts)
    assert len(shop.facilitator.verified) == 1
    assert (outcome.status, outcome.receipt) == (None if client in OPENAI_BUYERS else 402, None)
    assert "payment-required" in outcome.headers
    assert model_server.calls == []
    assert await shop.payments_of(wallet.address) == []


@CLIENTS
async def test_a_payment_that_cannot_be_settled_is_told_by_the_receipt_and_not_made_again(
    shop: Shop, scripts: Path, wallet: LocalAccount, client: str
) -> None:
    shop.facilitator.behaviour = RefuseSettle("insufficient_funds")
    await shop.fund(wallet.address)
    outcome = await BUYERS[client](Order(shop.url, wallet), scripts)
    assert len(shop.facilitator.settle_asked) == 1
    assert outcome.status == (None if client in OPENAI_BUYERS else 402)
    assert outcome.receipt is not None
    assert (outcome.receipt["success"], outcome.receipt["errorReason"]) == (False, "insufficient_funds")
    assert (outcome.words, outcome.headers["x-obol-settlement"]) == ("", "failed")
    assert (await shop.receipt(outcome.headers["x-obol-receipt"]))["state"] == "settle_failed"
    assert await shop.payments_of(wallet.address) == []


@CLIENTS
async def test_an_answer_whose_settlement_is_unknown_is_owed_to_the_same_payment(
    model_server: FakeModelServer, shop: Shop, scripts: Path, wallet: LocalAccount, client: str
) -> None:
    shop.facilitator.behaviour = Drop(after_settling=True)
    await shop.fund(wallet.address)
    outcome = await BUYERS[client](Order(shop.url, wallet), scripts)
    assert (outcome.status, outcome.reason) == (503, "settlement_unknown")
    assert outcome.receipt is not None
    assert (outcome.receipt["success"], outcome.receipt["errorReason"]) == (False, "settlement_pending")
    assert "payment-required" not in outcome.headers

    shop.facilitator.behaviour = Ok()
    assert (await shop.receipt(outcome.headers["x-obol-receipt"]))["state"] == "owed"
    (moved,) = await shop.payments_of(wallet.address)
    again = await BUYERS[client](Order(shop.url, wallet, headers=outcome.presented), scripts)
    assert (again.status, again.words) == (200, "".join(WORDS[:5]))
    assert again.receipt is not None
    assert (again.receipt["success"], again.receipt["transaction"]) == (True, moved.transaction)
    assert await shop.payments_of(wallet.address) == [moved]
