"""A seller with an RPC endpoint: what the chain shows counts, whatever the facilitator says or does not say."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from obol.core.networks import BASE, BASE_SEPOLIA, DEFAULT_CATALOGUE, Asset
from obol.core.offer import SettlementPolicy
from obol.errors import SettingsError
from obol.x402.client import payment_headers
from tests.evm.anvil import USDC, Anvil
from tests.evm.authorizing import transfer_call
from tests.fakes.facilitator import BadGateway, FakeFacilitator, Lie, Ok, RefuseSettle
from tests.fakes.rpc import Drops, FakeRpc
from tests.gateway.shop import PRICE_ATOMIC, SELLER, Answer, Shop, chat, eventually

ShopOn = Callable[..., Awaitable[Shop]]


@pytest.fixture
async def shop_on(tmp_path: Path, anvil: Anvil) -> AsyncIterator[ShopOn]:
    """A shop that asks anvil, and whose facilitator only makes believe: what moves is what the test sends."""
    async with AsyncExitStack() as stack:

        async def make(**how: object) -> Shop:
            given = {"facilitator": True, "rpc_urls": (anvil.url,), "retry_schedule_s": (0.05,)} | how
            shop = await stack.enter_async_context(Shop(tmp_path, **given))  # type: ignore[arg-type]
            await anvil.mint(shop.signer.address, 10 * PRICE_ATOMIC)
            return shop

        yield make


async def send(anvil: Anvil, shop: Shop) -> None:
    """The buyer's payment, sent by a stranger."""
    (asked, *_) = shop.facilitator.settle_asked
    await anvil.send(USDC.address, transfer_call(asked.payment_payload), sender="0x" + "dd" * 20)


async def test_a_success_that_the_chain_does_not_show_delivers_nothing(shop_on: ShopOn, anvil: Anvil) -> None:
    shop = await shop_on(settlement=SettlementPolicy.BEFORE)
    shop.facilitator.behaviour = Lie()
    answer = await shop.pay(chat())
    assert answer.status == 503
    assert answer.payment_response.error_reason == "settlement_pending"
    assert not shop.upstream.calls
    receipt = await shop.receipt(answer)
    assert (receipt["state"], receipt["reason"], receipt["paid"]) == ("settle_unknown", "settlement_not_seen", False)
    await send(anvil, shop)
    receipt = await shop.receipt_in("owed", answer)
    (moved,) = await anvil.transfers(SELLER)
    assert (receipt["transaction"], receipt["logIndex"]) == (moved.transaction, moved.log_index)
    assert (await shop.post(answer.payment)).status == 200


async def lost(shop: Shop) -> Answer:
    shop.facilitator.behaviour = BadGateway(after_settling=False)
    answer = await shop.pay(chat())
    assert answer.status == 503
    return answer


async def test_a_payment_that_somebody_else_settled_is_paid(shop_on: ShopOn, anvil: Anvil) -> None:
    shop = await shop_on(settlement=SettlementPolicy.BEFORE)
    answer = await lost(shop)
    await send(anvil, shop)
    await shop.receipt_in("owed", answer)


async def test_what_is_unknown_ends_when_the_window_closes_unused(shop_on: ShopOn, anvil: Anvil) -> None:
    shop = await shop_on(settlement=SettlementPolicy.BEFORE)
    answer = await lost(shop)
    await anvil.pass_time(24 * 3600)
    receipt = await shop.receipt_in("settle_failed", answer)
    assert (receipt["reason"], receipt["paid"]) == ("authorization_expired", False)


async def test_a_refusal_after_the_money_moved_is_not_believed(shop_on: ShopOn, anvil: Anvil) -> None:
    shop = await shop_on(settlement=SettlementPolicy.BEFORE)
    paid = shop.sign()
    await anvil.send(USDC.address, transfer_call(paid))
    shop.facilitator.behaviour = RefuseSettle("insufficient_funds")
    assert (await shop.post(payment_headers(paid, 2))).status == 200


async def test_while_no_endpoint_answers_the_facilitator_is_believed(shop_on: ShopOn, anvil: Anvil) -> None:
    async with FakeRpc(anvil.url) as fake:
        shop = await shop_on(rpc_urls=(fake.url,))
        fake.behaviours = {"*": Drops()}
        shop.facilitator.behaviour = Ok()
        assert (await shop.pay(chat())).status == 200
        assert any(line["event"] == "witness_unavailable" for line in shop.logged)
        assert "s3cret" not in str(shop.logged)


async def test_the_next_facilitator_is_asked_while_the_first_cannot_be(tmp_path: Path) -> None:
    async with FakeFacilitator() as other, Shop(tmp_path, facilitator=True) as shop:
        await shop.restart(fallback_facilitator_urls=(other.url,))
        await shop.facilitator.stop()
        answer = await shop.pay(chat())
        assert answer.status == 200
        await eventually(lambda: len(other.settled) == 1, "settled by the other")


async def test_an_endpoint_of_another_chain_is_refused_at_the_start(tmp_path: Path, anvil: Anvil) -> None:
    async with FakeFacilitator() as fake:
        fake.inner.networks = (BASE.caip2,)  # type: ignore[attr-defined]
        shop = Shop(tmp_path, rpc_urls=(anvil.url,), chain="base", devnet=False, facilitator_url=fake.url)
        with pytest.raises(SettingsError, match="--rpc: is of chain 84532; base is chain 8453"):
            await shop.__aenter__()


async def test_a_token_that_signs_under_another_name_is_refused_at_the_start(tmp_path: Path, anvil: Anvil) -> None:
    misnamed = Asset("USDC", BASE_SEPOLIA, USDC.address, 6, "USD Coin", "2")
    async with FakeFacilitator() as fake:
        catalogue = DEFAULT_CATALOGUE.with_assets([], [misnamed])
        shop = Shop(tmp_path, rpc_urls=(anvil.url,), devnet=False, facilitator_url=fake.url, catalogue=catalogue)
        with pytest.raises(SettingsError, match=r"signs as 'USDC' version '2' .*; advertised is 'USD Coin'"):
            await shop.__aenter__()
