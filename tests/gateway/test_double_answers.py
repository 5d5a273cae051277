"""A facilitator that gives one question several answers: one sale, one receipt, one movement of money all the same."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from obol.core.offer import SettlementPolicy
from obol.core.payment import Event
from obol.x402.facilitator import Settlement
from tests.evm.anvil import Anvil
from tests.fakes.facilitator import Drop, FakeFacilitator, Ok, RefuseSettle
from tests.gateway.failing_ledger import FailingLedger, Fault
from tests.gateway.fixtures import MakeShop
from tests.gateway.many_tongues import (
    NOT_KNOWN,
    PENDING_A,
    REFUSED,
    SETTLED_A,
    SETTLED_B,
    USED,
    A,
    B,
    Payment,
    it_is_served_once,
    nobody_is_asked_to_pay_again,
    on,
    on_the_devnet,
    one_sale_is_settled,
    say,
)
from tests.gateway.shop import PRICE_ATOMIC, SELLER, Shop, chat, eventually

QUICK_S = (0.01,)
EVERY_ORDER = pytest.mark.parametrize("settlement", [SettlementPolicy.ON_OUTPUT, SettlementPolicy.BEFORE])
BOTH = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])


# ------------------------------------------------------------------------------------------- the facilitator is alone


SAYS: dict[str, Sequence[Settlement]] = {
    "pending as A, then settled as B": [PENDING_A, SETTLED_B],
    "not known, then settled as B": [NOT_KNOWN, SETTLED_B],
    "pending as A, then refused, then settled as B": [PENDING_A, REFUSED, SETTLED_B],
    "not known, then used by whom, then refused, then settled as B": [NOT_KNOWN, USED, REFUSED, SETTLED_B],
}


@EVERY_ORDER
@pytest.mark.parametrize("name", SAYS)
async def test_a_plain_answer_waits_for_a_yes_and_is_served_once(
    make_shop: MakeShop, name: str, settlement: SettlementPolicy
) -> None:
    shop = await make_shop(facilitator=True, retry_schedule_s=QUICK_S, settlement=settlement)
    tongues = say(shop, *SAYS[name], move=on_the_devnet(shop))
    answer = await shop.pay()
    assert (answer.status, answer.reason, answer.asks_for_money) == (503, "settlement_unknown", False)
    await tongues.asked_to_the_end()
    assert await shop.states() == ["settle_unknown"]
    await nobody_is_asked_to_pay_again(shop, answer.payment)
    tongues.may_end.set()
    await shop.receipt_in("owed", answer)
    await it_is_served_once(shop, answer.payment)
    await one_sale_is_settled(shop, answer.payment, transaction=B)
    assert await shop.earned_atomic() == PRICE_ATOMIC
    assert all(asked == tongues.asked[0] for asked in tongues.asked)
    assert len(tongues.asked) == len(SAYS[name])


@pytest.mark.parametrize("settlement", [SettlementPolicy.ON_OUTPUT, SettlementPolicy.AFTER])
@pytest.mark.parametrize("name", SAYS)
async def test_a_stream_is_whole_and_its_sale_is_settled_once(
    make_shop: MakeShop, name: str, settlement: SettlementPolicy
) -> None:
    shop = await make_shop(facilitator=True, retry_schedule_s=QUICK_S, settlement=settlement)
    tongues = say(shop, *SAYS[name], move=on_the_devnet(shop))
    answer = await shop.pay(chat(stream=True))
    assert answer.body.endswith(b"data: [DONE]\n\n")
    await tongues.asked_to_the_end()
    await nobody_is_asked_to_pay_again(shop, answer.payment)
    tongues.may_end.set()
    await one_sale_is_settled(shop, answer.payment, transaction=B)
    assert await shop.earned_atomic() == PRICE_ATOMIC


@EVERY_ORDER
async def test_a_yes_that_could_not_be_recorded_is_kept_and_not_asked_for_again(
    make_shop: MakeShop, settlement: SettlementPolicy
) -> None:
    ledger = FailingLedger()
    shop = await make_shop(facilitator=True, retry_schedule_s=QUICK_S, settlement=settlement, wrap_ledger=ledger.wrap)
    tongues = say(shop, SETTLED_A, SETTLED_B, move=on_the_devnet(shop))
    ledger.faults = [Fault("record", Event.SETTLED_UNDELIVERED, times=3)]
    answer = await shop.pay()
    assert (answer.status, answer.asks_for_money) == (503, False)
    await shop.until_states("owed")
    await it_is_served_once(shop, answer.payment)
    await one_sale_is_settled(shop, answer.payment, transaction=A)
    assert len(tongues.asked) == 1


@EVERY_ORDER
@pytest.mark.parametrize("second", [[SETTLED_B], [REFUSED, SETTLED_B], [USED, REFUSED, SETTLED_B]])
async def test_a_yes_that_died_with_its_gateway_is_asked_for_until_it_is_said_again(
    make_shop: MakeShop, settlement: SettlementPolicy, second: Sequence[Settlement]
) -> None:
    ledger = FailingLedger()
    shop = await make_shop(facilitator=True, retry_schedule_s=QUICK_S, settlement=settlement, wrap_ledger=ledger.wrap)
    tongues = say(shop, SETTLED_A, *second, move=on_the_devnet(shop))
    ledger.faults = [Fault("record", Event.SETTLED_UNDELIVERED, times=10**6)]
    answer = await shop.pay()
    assert (answer.status, answer.asks_for_money) == (503, False)
    await shop.stop()
    ledger.faults = []
    await shop.start()
    await tongues.asked_to_the_end()
    assert await shop.states() == ["settle_unknown"]  # a no proves nothing: the money has moved
    await nobody_is_asked_to_pay_again(shop, answer.payment)
    tongues.may_end.set()
    await shop.until_states("owed")
    await it_is_served_once(shop, answer.payment)
    await one_sale_is_settled(shop, answer.payment, transaction=B)
    assert await shop.earned_atomic() == PRICE_ATOMIC


async def test_the_no_of_a_second_facilitator_proves_nothing(make_shop: MakeShop) -> None:
    async with FakeFacilitator(behaviour=RefuseSettle("insufficient_funds")) as other:
        shop = await make_shop(
            facilitator=True,
            fallback_facilitator_urls=(other.url,),
            retry_schedule_s=QUICK_S,
            settlement=SettlementPolicy.BEFORE,
        )
        shop.facilitator.behaviour = Drop(after_settling=True)
        answer = await shop.pay()
        await shop.facilitator.stop()
        await eventually(lambda: len(other.settle_asked) > 2, "the other was asked")
        assert await shop.states() == ["settle_unknown"]
        await nobody_is_asked_to_pay_again(shop, answer.payment)
        shop.facilitator.behaviour = Ok()
        await shop.facilitator.start()
        await shop.receipt_in("owed", answer)
        await it_is_served_once(shop, answer.payment)
        (moved,) = await shop.transfers()
        await one_sale_is_settled(shop, answer.payment, transaction=moved.transaction)


@BOTH
@EVERY_ORDER
async def test_a_first_no_is_the_end_even_if_the_facilitator_then_settles(
    make_shop: MakeShop, settlement: SettlementPolicy, stream: bool
) -> None:
    """The stated limit: the seller keeps money for what was not released, and the books show it."""
    shop = await make_shop(facilitator=True, retry_schedule_s=QUICK_S, settlement=settlement)
    tongues = say(shop, REFUSED, SETTLED_B)
    answer = await shop.pay(chat(stream=stream))
    receipt = await shop.receipt_in("settle_failed", answer)
    assert (receipt["paid"], receipt["settledAtomic"], receipt["transaction"]) == (False, "0", "")
    await on_the_devnet(shop)(*tongues.asked[0])
    again = await shop.again(answer.payment, chat(stream=stream))
    assert (again.status, again.reason, again.asks_for_money) == (409, "payment_used", False)
    assert (await shop.states(), len(tongues.asked)) == (["settle_failed"], 1)


# --------------------------------------------------------------------------------------------- the chain can be asked


ShopOnAnvil = Callable[..., Awaitable[Shop]]


@pytest.fixture
async def shop_on_anvil(tmp_path: Path, anvil: Anvil) -> AsyncIterator[ShopOnAnvil]:
    async with AsyncExitStack() as stack:

        async def make(settlement: SettlementPolicy) -> Shop:
            shop = Shop(
                tmp_path,
                facilitator=True,
                retry_schedule_s=(0.05,),
                rpc_urls=(anvil.url,),
                settlement=settlement,
            )
            await stack.enter_async_context(shop)
            await anvil.mint(shop.signer.address, 10 * PRICE_ATOMIC)
            return shop

        yield make


async def is_named_by_its_sale(anvil: Anvil, shop: Shop, payment: Payment) -> None:
    """The one transfer that there is, and no other."""
    await shop.until_finished()
    (moved,) = await anvil.transfers(SELLER)
    receipt = await one_sale_is_settled(shop, payment, transaction=moved.transaction)
    assert (receipt["logIndex"], moved.amount_atomic) == (moved.log_index, PRICE_ATOMIC)


@BOTH
@EVERY_ORDER
@pytest.mark.parametrize("first", [SETTLED_A, PENDING_A, NOT_KNOWN, REFUSED], ids=lambda one: one.outcome.value)
async def test_what_moved_is_sold_at_once_whatever_is_said_and_the_sale_names_the_transfer(
    shop_on_anvil: ShopOnAnvil, anvil: Anvil, first: Settlement, settlement: SettlementPolicy, stream: bool
) -> None:
    shop = await shop_on_anvil(settlement)
    tongues = say(shop, first, SETTLED_B, move=on(anvil))
    answer = await shop.pay(chat(stream=stream))
    assert (answer.status, b"Hello" in answer.body or stream) == (200, True)
    await is_named_by_its_sale(anvil, shop, answer.payment)
    assert len(tongues.asked) == 1


@EVERY_ORDER
async def test_of_what_moves_after_several_answers_the_transfer_counts_and_not_the_answers(
    shop_on_anvil: ShopOnAnvil, anvil: Anvil, settlement: SettlementPolicy
) -> None:
    shop = await shop_on_anvil(settlement)
    tongues = say(shop, PENDING_A, REFUSED, SETTLED_B)
    answer = await shop.pay()
    assert (answer.status, answer.reason) == (503, "settlement_unknown")
    await tongues.asked_to_the_end()
    assert await shop.states() == ["settle_unknown"]
    await nobody_is_asked_to_pay_again(shop, answer.payment)
    await on(anvil)(*tongues.asked[0])
    tongues.may_end.set()
    await shop.receipt_in("owed", answer)
    await it_is_served_once(shop, answer.payment)
    await is_named_by_its_sale(anvil, shop, answer.payment)
