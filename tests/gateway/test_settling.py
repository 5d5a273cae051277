"""Settling: refused, lost, late, and what follows from it."""

import asyncio
import contextlib
from typing import Any

import aiohttp
import pytest

from obol.core.offer import SettlementPolicy
from obol.core.payment import Event
from tests.fakes.facilitator import (
    BadGateway,
    Behaviour,
    Drop,
    Garbage,
    Lie,
    Ok,
    Pending,
    RefuseSettle,
    SettleThenHang,
    SlowSettle,
)
from tests.fakes.model_server import Behaviour as Answering
from tests.gateway.failing_ledger import FailingLedger, Fault
from tests.gateway.fixtures import MakeShop
from tests.gateway.left_behind import leave_behind, new_sale
from tests.gateway.shop import PRICE_ATOMIC, Answer, Shop, chat, eventually

EITHER_POLICY = pytest.mark.parametrize("settlement", [SettlementPolicy.ON_OUTPUT, SettlementPolicy.BEFORE])
QUICK_S = (0.01,)

LOST: dict[str, Behaviour] = {
    "timeout after settling": SettleThenHang(),
    "502 after settling": BadGateway(after_settling=True),
    "502 without settling": BadGateway(after_settling=False),
    "dropped after settling": Drop(after_settling=True),
    "dropped without settling": Drop(after_settling=False),
    "settlement_pending": Pending(times=1000),
    "garbage": Garbage(),
    "success of another network": Lie(network="eip155:8453"),
    "success of another payer": Lie(payer="0x" + "33" * 20),
    "success without a transaction": Lie(transaction=""),
    "nonce used, by whom?": RefuseSettle("invalid_exact_evm_nonce_already_used"),
    "an error without an answer": RefuseSettle("unexpected_settle_error"),
}


async def buy_with(shop: Shop, behaviour: Behaviour, *, stream: bool = False) -> Answer:
    """Buy, the facilitator being asked to settle under `behaviour`; what it verified before is not spoilt."""
    head = asyncio.Event()
    shop.upstream.script = [Answering(hold_before_head=head)]
    shop.facilitator.settle_arrived.clear()
    async with asyncio.TaskGroup() as tasks:
        if shop.gateway.offer.settlement is SettlementPolicy.BEFORE:
            shop.facilitator.only_settles_badly = True
            shop.facilitator.behaviour = behaviour
            head.set()
            buying = tasks.create_task(shop.pay(chat(stream=stream)))
        else:
            buying = tasks.create_task(shop.pay(chat(stream=stream)))
            await shop.upstream.wait_until(lambda: shop.upstream.in_flight == 1)
            shop.facilitator.behaviour = behaviour
            head.set()
        await shop.facilitator.settle_arrived.wait()
    shop.upstream.script = []
    return buying.result()


# ------------------------------------------------------------------------------------------------------- refused


@EITHER_POLICY
async def test_a_refused_settlement_delivers_nothing(make_shop: MakeShop, settlement: SettlementPolicy) -> None:
    shop = await make_shop(facilitator=True, settlement=settlement)
    answer = await buy_with(shop, RefuseSettle("insufficient_funds"))
    assert answer.status == 402
    assert b"Hello" not in answer.body
    assert "insufficient_funds" in answer.challenge.error
    assert (answer.payment_response.success, answer.payment_response.error_reason) == (False, "insufficient_funds")
    assert len(shop.upstream.calls) == (1 if settlement is SettlementPolicy.ON_OUTPUT else 0)
    receipt = await shop.receipt(answer)
    assert (receipt["state"], receipt["paid"], receipt["settledAtomic"]) == ("settle_failed", False, "0")
    shop.facilitator.behaviour = Ok()
    assert (await shop.again(answer.payment)).reason == "payment_used"
    assert (await shop.pay()).status == 200


async def test_a_stream_is_cut_when_its_settlement_is_refused(make_shop: MakeShop) -> None:
    shop = await make_shop(facilitator=True)
    shop.facilitator.behaviour = RefuseSettle("insufficient_funds")
    never = asyncio.Event()
    shop.upstream.behaviour = Answering(tokens=5, hold_between_tokens=never)
    answer = await shop.pay(chat(stream=True))
    assert answer.status == 200
    cut = answer.body.split(b"event: error\ndata: ")
    assert len(cut) == 2
    assert b'"settlement_failed"' in cut[1]
    assert b"[DONE]" not in answer.body
    async with asyncio.timeout(5):
        await shop.upstream.calls[0].disconnected.wait()
    receipt = await shop.receipt_in("settle_failed", answer, delivery="started")
    assert not receipt["paid"]
    assert (await shop.again(answer.payment)).reason == "payment_used"
    assert shop.gateway.offer.capacity is None
    assert await shop.transfers() == []


async def test_a_stream_that_ended_before_its_settlement_was_refused_is_whole(make_shop: MakeShop) -> None:
    """The seller's stated risk. The late refusal must not disturb anything that runs by then."""
    stumbles: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: stumbles.append(context))
    shop = await make_shop(facilitator=True)
    shop.facilitator.behaviour = SlowSettle()
    answer = await shop.pay(chat(stream=True))
    assert answer.body.endswith(b"data: [DONE]\n\n")
    await shop.facilitator.settle_arrived.wait()
    await shop.move_funds_away()
    shop.facilitator.release.set()
    await shop.receipt_in("settle_failed", answer, delivery="complete")
    await asyncio.sleep(0)
    assert stumbles == []


# ---------------------------------------------------------------------------------------------------------- lost


@EITHER_POLICY
@pytest.mark.parametrize("name", LOST)
async def test_a_lost_settlement_is_not_paid_twice_and_buys_its_answer(
    make_shop: MakeShop, name: str, settlement: SettlementPolicy
) -> None:
    shop = await make_shop(
        facilitator=True, retry_schedule_s=QUICK_S, settlement=settlement, verify_timeout_s=0.5, settle_timeout_s=0.5
    )
    answer = await buy_with(shop, LOST[name])
    assert (answer.status, answer.reason, answer.asks_for_money) == (503, "settlement_unknown", False)
    assert int(answer.headers["Retry-After"]) >= 1
    assert not answer.payment_response.success
    assert b"Hello" not in answer.body
    assert await shop.states() == ["settle_unknown"]

    meanwhile = await shop.post(answer.payment)
    assert (meanwhile.asks_for_money, meanwhile.status in (409, 502, 503)) == (False, True)

    shop.facilitator.behaviour = Ok()
    shop.facilitator.release.set()
    await shop.receipt_in("owed", answer)
    served = await asyncio.gather(*(shop.post(answer.payment) for _ in range(5)))
    assert sorted(one.status for one in served) == [200] + [409] * 4
    receipt = await shop.receipt_in("settled", answer, delivery="complete")
    assert receipt["settledAtomic"] == str(PRICE_ATOMIC)
    assert (await shop.again(answer.payment)).reason == "payment_used"
    assert await shop.earned_atomic() == PRICE_ATOMIC


@pytest.mark.parametrize("name", LOST)
async def test_a_stream_goes_on_while_its_settlement_is_not_known(make_shop: MakeShop, name: str) -> None:
    shop = await make_shop(facilitator=True, retry_schedule_s=QUICK_S, verify_timeout_s=0.5, settle_timeout_s=0.5)
    answer = await buy_with(shop, LOST[name], stream=True)
    assert answer.body.endswith(b"data: [DONE]\n\n")
    await shop.receipt_in("settle_unknown", answer, delivery="complete")
    shop.facilitator.behaviour = Ok()
    shop.facilitator.release.set()
    await shop.receipt_in("settled", answer, delivery="complete")
    assert (await shop.again(answer.payment, chat(stream=True))).reason == "payment_used"
    assert await shop.earned_atomic() == PRICE_ATOMIC


@EITHER_POLICY
async def test_a_settlement_that_is_not_known_survives_a_restart(
    make_shop: MakeShop, settlement: SettlementPolicy
) -> None:
    shop = await make_shop(facilitator=True, retry_schedule_s=(60.0,), settlement=settlement)
    answer = await buy_with(shop, BadGateway(after_settling=True))
    await shop.stop()
    shop.facilitator.behaviour = Ok()
    await shop.start()
    assert await shop.states() == ["settle_unknown"]
    await shop.stop()
    async with Shop(
        shop.folder, facilitator=True, upstream=shop.upstream, signer=shop.signer, retry_schedule_s=QUICK_S
    ) as later:
        await later.receipt_in("owed", answer)
        assert (await later.post(answer.payment)).status == 200
    assert await shop.earned_atomic() == PRICE_ATOMIC


async def test_a_no_after_a_lost_answer_proves_nothing(make_shop: MakeShop) -> None:
    shop = await make_shop(facilitator=True, retry_schedule_s=QUICK_S, settlement=SettlementPolicy.BEFORE)
    answer = await buy_with(shop, Drop(after_settling=True))
    shop.facilitator.behaviour = RefuseSettle("insufficient_funds")
    asked = len(shop.facilitator.settle_asked)
    await eventually(lambda: len(shop.facilitator.settle_asked) > asked + 2, "asked again")
    assert await shop.states() == ["settle_unknown"]
    shop.facilitator.behaviour = Ok()
    await shop.receipt_in("owed", answer)


async def test_what_is_asked_again_is_the_same_payload(make_shop: MakeShop) -> None:
    shop = await make_shop(facilitator=True, retry_schedule_s=QUICK_S, settlement=SettlementPolicy.BEFORE)
    answer = await buy_with(shop, Pending(times=3))
    await shop.receipt_in("owed", answer)
    first, *others = shop.facilitator.settle_asked
    assert len(others) >= 3
    assert all(other == first for other in others)


# ---------------------------------------------------------------------------------- a ledger that fails meanwhile


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize(
    ("settlement", "stream"),
    [(SettlementPolicy.BEFORE, False), (SettlementPolicy.ON_OUTPUT, False), (SettlementPolicy.BEFORE, True)],
)
async def test_a_settlement_that_cannot_be_recorded_buys_its_answer_later(
    make_shop: MakeShop, settlement: SettlementPolicy, stream: bool, recorded: bool
) -> None:
    ledger = FailingLedger()
    shop = await make_shop(wrap_ledger=ledger.wrap, retry_schedule_s=QUICK_S, settlement=settlement)
    ledger.faults = [Fault("record", Event.SETTLED_UNDELIVERED, recorded=recorded)]
    answer = await shop.pay(chat(stream=stream))
    assert (answer.status, answer.reason) == (503, "ledger_unavailable")
    assert b"Hello" not in answer.body
    await shop.until_states("owed")
    assert (await shop.post(answer.payment, chat(stream=stream))).status == 200
    await shop.until_states("settled")
    assert await shop.earned_atomic() == PRICE_ATOMIC
    assert [line for line in shop.logged if line["event"] == "settler_failed"] == []


async def test_a_settled_stream_that_cannot_be_recorded_is_recorded_later(make_shop: MakeShop) -> None:
    ledger = FailingLedger()
    shop = await make_shop(wrap_ledger=ledger.wrap, retry_schedule_s=QUICK_S)
    ledger.faults = [Fault("record", Event.SETTLED, times=3)]
    answer = await shop.pay(chat(stream=True))
    assert answer.body.endswith(b"data: [DONE]\n\n")
    await shop.receipt_in("settled", answer, delivery="complete")
    assert await shop.earned_atomic() == PRICE_ATOMIC


# ------------------------------------------------------------------------------------------------ what nobody foresaw


@pytest.mark.parametrize("event", [Event.SETTLED_UNDELIVERED, Event.SETTLED, Event.OUTPUT, Event.SETTLE])
@pytest.mark.parametrize("stream", [False, True])
async def test_whatever_goes_wrong_while_recording_the_sale_reaches_its_end(
    make_shop: MakeShop, event: Event, stream: bool
) -> None:
    for settlement in SettlementPolicy:
        ledger = FailingLedger()
        shop = await make_shop(wrap_ledger=ledger.wrap, retry_schedule_s=QUICK_S, settlement=settlement)
        ledger.faults = [Fault("record", event, is_bug=True, times=2)]
        with contextlib.suppress(aiohttp.ClientError):
            await shop.pay(chat(stream=stream))
        await shop.until_finished()


async def test_a_sale_whose_taking_over_fails_in_a_way_nobody_foresaw_is_gone_on_with(make_shop: MakeShop) -> None:
    ledger = FailingLedger()
    shop = await make_shop(wrap_ledger=ledger.wrap, retry_schedule_s=QUICK_S)
    await shop.stop()
    sales = [new_sale(shop) for _ in range(3)]
    await leave_behind(shop, *sales, events=[])
    ledger.faults = [Fault("record", Event.RELEASE, is_bug=True, times=5)]
    await shop.start()
    await shop.until_states("released", "released", "released")


@EITHER_POLICY
async def test_a_claim_that_ends_in_a_bug_does_not_lock_the_payment(
    make_shop: MakeShop, settlement: SettlementPolicy
) -> None:
    ledger = FailingLedger()
    shop = await make_shop(wrap_ledger=ledger.wrap, retry_schedule_s=QUICK_S, settlement=settlement)
    ledger.faults = [Fault("claim", recorded=True, is_bug=True)]
    answer = await shop.pay()
    assert (answer.status, answer.reason) == (500, "internal")
    assert (await shop.post(answer.payment)).status == 200
