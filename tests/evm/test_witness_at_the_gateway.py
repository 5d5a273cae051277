"""A seller with an RPC endpoint: what the chain shows counts, whatever the facilitator says or does not say."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest

from obol.core.networks import BASE, BASE_SEPOLIA, DEFAULT_CATALOGUE, Asset
from obol.core.offer import SettlementPolicy
from obol.errors import SettingsError
from obol.x402.client import payment_headers
from tests.evm.anvil import USDC, Anvil
from tests.evm.authorizing import transfer_call
from tests.fakes.facilitator import BadGateway, FakeFacilitator, Lie, Ok, RefuseSettle, RefuseVerify
from tests.fakes.rpc import Drops, Errors, FakeRpc, Says
from tests.gateway.shop import PRICE_ATOMIC, SELLER, Answer, Shop, chat, eventually

ShopOn = Callable[..., Awaitable[Shop]]
BUSY = Errors(-32007, "50/second request limit reached")


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
    shop.facilitator.only_settles_badly = True
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
        shop = await shop_on(rpc_urls=(fake.url,), retry_schedule_s=None)
        fake.behaviours = {"*": Drops()}
        shop.facilitator.behaviour = Ok()
        assert (await shop.pay(chat())).status == 200
        assert any(line["event"] == "witness_unavailable" for line in shop.logged)
        metrics = (await shop.get("/metrics")).body.decode()
        assert 'obol_chain_up{network="eip155:84532"} 0.0' in metrics
        assert 'obol_settlements_unseen{network="eip155:84532"} 1.0' in metrics
        assert "s3cret" not in str(shop.logged)


@pytest.mark.parametrize("method", ["eth_blockNumber", "eth_getTransactionReceipt", "eth_getBlockByNumber"])
@pytest.mark.parametrize("settlement", [SettlementPolicy.BEFORE, SettlementPolicy.ON_OUTPUT])
async def test_a_node_with_errors_of_its_own_is_one_that_does_not_answer(
    shop_on: ShopOn, anvil: Anvil, method: str, settlement: SettlementPolicy
) -> None:
    async with FakeRpc(anvil.url) as fake:
        shop = await shop_on(rpc_urls=(fake.url,), settlement=settlement)
        paid = shop.sign()
        if method == "eth_getTransactionReceipt":
            await anvil.send(USDC.address, transfer_call(paid))
        fake.behaviours = {method: BUSY}
        shop.facilitator.behaviour = Ok()
        assert (await shop.post(payment_headers(paid, 2))).status == 200
        await shop.until_states("settled")


async def test_the_next_endpoint_is_asked_while_the_first_answers_errors_of_its_own(
    shop_on: ShopOn, anvil: Anvil
) -> None:
    async with FakeRpc(anvil.url) as fake:
        shop = await shop_on(rpc_urls=(fake.url, anvil.url), settlement=SettlementPolicy.BEFORE)
        fake.behaviours = {"*": BUSY}
        paid = shop.sign()
        await anvil.send(USDC.address, transfer_call(paid))
        shop.facilitator.behaviour = RefuseSettle("insufficient_funds")
        assert (await shop.post(payment_headers(paid, 2))).status == 200


async def test_a_gateway_starts_while_a_node_answers_errors_of_its_own(shop_on: ShopOn, anvil: Anvil) -> None:
    async with FakeRpc(anvil.url) as fake:
        fake.behaviours = {"*": BUSY}
        shop = await shop_on(rpc_urls=(fake.url,))
        assert (await shop.pay(chat())).status == 200


async def test_a_settlement_is_still_asked_about_after_a_node_answered_errors_of_its_own(
    shop_on: ShopOn, anvil: Anvil
) -> None:
    async with FakeRpc(anvil.url) as fake:
        shop = await shop_on(rpc_urls=(fake.url,), settlement=SettlementPolicy.BEFORE)
        answer = await lost(shop)
        fake.behaviours = {"eth_blockNumber": BUSY}
        asked = fake.asked["eth_blockNumber"]
        await eventually(lambda: fake.asked["eth_blockNumber"] >= asked + 3, "asked again and again")
        fake.behaviours = {}
        await send(anvil, shop)
        await shop.receipt_in("owed", answer)


async def test_a_no_is_not_believed_while_the_chain_says_used_and_not_by_what(shop_on: ShopOn, anvil: Anvil) -> None:
    async with FakeRpc(anvil.url) as fake:
        shop = await shop_on(rpc_urls=(fake.url,), settlement=SettlementPolicy.BEFORE)
        paid = shop.sign()
        await anvil.send(USDC.address, transfer_call(paid))
        fake.behaviours = {"eth_getLogs": Says(lambda _: [])}
        shop.facilitator.behaviour = RefuseSettle("insufficient_funds")
        answer = await shop.post(payment_headers(paid, 2))
        assert answer.status == 503
        assert (await shop.receipt(answer))["state"] == "settle_unknown"
        fake.behaviours = {}  # its index of logs has caught up
        await shop.receipt_in("owed", answer)


class TestSettledBeforeItIsPresented:
    """A stranger saw the payment, and had it settled first; the facilitator finds its nonce used."""

    @pytest.fixture
    async def shop(self, shop_on: ShopOn) -> Shop:
        shop = await shop_on(settlement=SettlementPolicy.ON_OUTPUT)
        shop.facilitator.behaviour = RefuseVerify("invalid_exact_evm_nonce_already_used")
        return shop

    async def test_it_is_paid_and_buys_one_answer(self, shop: Shop, anvil: Anvil) -> None:
        paid = shop.sign()
        await anvil.send(USDC.address, transfer_call(paid))
        answer = await shop.post(payment_headers(paid, 2))
        assert answer.status == 200
        receipt = await shop.receipt_in("settled", answer)
        (moved,) = await anvil.transfers(SELLER)
        assert (receipt["transaction"], receipt["paid"]) == (moved.transaction, True)
        again = await shop.post(payment_headers(paid, 2), chat(temperature=1))
        assert again.status == 409

    async def test_what_paid_for_something_else_a_while_ago_buys_nothing_here(self, shop: Shop, anvil: Anvil) -> None:
        """At another service of the same seller: that one has settled it."""
        paid = shop.sign()
        await anvil.send(USDC.address, transfer_call(paid))
        await anvil.pass_time(20)
        await anvil.mine()
        assert (await shop.post(payment_headers(paid, 2))).status == 402

    async def test_it_does_not_buy_anything_without_the_payers_own_signature(self, shop: Shop, anvil: Anvil) -> None:
        """All but the signature can be read from the chain."""
        paid = shop.sign()
        await anvil.send(USDC.address, transfer_call(paid))
        other = "0x" + "11" * 70
        forged = msgspec.structs.replace(paid, payload=msgspec.structs.replace(paid.payload, signature=other))
        answer = await shop.post(payment_headers(forged, 2))
        assert answer.status == 402
        assert await shop.states() == []

    async def test_where_the_chain_does_not_show_by_what_nobody_says_no(self, shop_on: ShopOn, anvil: Anvil) -> None:
        async with FakeRpc(anvil.url) as fake:
            shop = await shop_on(rpc_urls=(fake.url,), settlement=SettlementPolicy.ON_OUTPUT)
            shop.facilitator.behaviour = RefuseVerify("invalid_exact_evm_nonce_already_used")
            paid = shop.sign()
            await anvil.send(USDC.address, transfer_call(paid))
            fake.behaviours = {"eth_getLogs": Says(lambda _: [])}
            answer = await shop.post(payment_headers(paid, 2))
            assert (answer.status, answer.reason) == (503, "facilitator_unavailable")
            fake.behaviours = {}
            assert (await shop.post(payment_headers(paid, 2))).status == 200

    async def test_a_refused_payment_that_nobody_settled_is_refused(self, shop: Shop) -> None:
        assert (await shop.pay(chat())).status == 402


async def test_who_has_paid_here_before_buys_nothing_with_what_paid_for_something_else(
    shop_on: ShopOn, anvil: Anvil
) -> None:
    """Such a payer is not verified before its payment is settled; the chain says that it moved before it came here."""
    shop = await shop_on(settlement=SettlementPolicy.BEFORE)
    first = shop.sign()
    await anvil.send(USDC.address, transfer_call(first))
    assert (await shop.post(payment_headers(first, 2))).status == 200
    await shop.until_states("settled")
    elsewhere = shop.sign()
    await anvil.mint(shop.signer.address, PRICE_ATOMIC)
    await anvil.send(USDC.address, transfer_call(elsewhere))
    await anvil.pass_time(60)
    await anvil.mine()
    assert (await shop.post(payment_headers(elsewhere, 2))).status == 402
    receipts = {row["state"]: row["reason"] for row in await shop.ledger_rows()}
    assert receipts == {"settled": "", "settle_failed": "authorization_used_before"}


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
