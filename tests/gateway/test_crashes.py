"""`kill -9` between any two steps: the gateway that starts next finishes every sale, and nothing is settled twice."""

import asyncio
from contextlib import suppress

import aiohttp
import pytest

from obol.core.offer import SettlementPolicy
from tests.fakes.facilitator import SlowSettle
from tests.fakes.model_server import Behaviour
from tests.gateway.fixtures import MakeShop
from tests.gateway.shop import PRICE_ATOMIC, Answer, Json, Shop, chat

pytestmark = pytest.mark.timeout(60)
BEFORE, ON_OUTPUT = SettlementPolicy.BEFORE, SettlementPolicy.ON_OUTPUT
BOTH = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
EITHER_POLICY = pytest.mark.parametrize("settlement", [SettlementPolicy.ON_OUTPUT, SettlementPolicy.BEFORE])


async def lose(shop: Shop, payment: dict[str, str], body: Json) -> Answer | None:
    """The answer, or None when the gateway is killed meanwhile."""
    with suppress(aiohttp.ClientError):
        return await shop.post(payment, body)
    return None


async def serve_again(shop: Shop, payment: dict[str, str], *, stream: bool) -> None:
    """What was not delivered is delivered now, once."""
    answers = await asyncio.gather(*(shop.post(payment, chat(stream=stream)) for _ in range(3)))
    assert sorted(answer.status for answer in answers) == [200, 409, 409]
    assert (await shop.post(payment, chat(stream=stream))).status == 409


@BOTH
@EITHER_POLICY
async def test_killed_before_any_output(make_shop: MakeShop, settlement: SettlementPolicy, stream: bool) -> None:
    """Claimed, and settled if that comes first; the upstream has the request."""
    shop = await make_shop(process=True, settlement=settlement)
    shop.upstream.script = [Behaviour(hold_before_head=asyncio.Event())]
    payment = shop.payment()
    async with asyncio.TaskGroup() as tasks:
        lost = tasks.create_task(lose(shop, payment, chat(stream=stream)))
        await shop.upstream.wait_until(lambda: shop.upstream.in_flight == 1)
        assert await shop.states() == ["redeeming" if settlement is BEFORE else "claimed"]
        await shop.kill()
    assert lost.result() is None
    await shop.start()
    assert await shop.states() == ["owed" if settlement is BEFORE else "released"]
    assert await shop.earned_atomic() == (PRICE_ATOMIC if settlement is BEFORE else 0)
    await serve_again(shop, payment, stream=stream)
    await shop.until_states(*(["settled"] if settlement is BEFORE else ["released", "settled"]))
    assert await shop.earned_atomic() == PRICE_ATOMIC


@EITHER_POLICY
async def test_killed_while_the_settlement_is_under_way(make_shop: MakeShop, settlement: SettlementPolicy) -> None:
    """Of a plain answer: nothing was delivered."""
    shop = await make_shop(process=True, facilitator=True, settlement=settlement)
    shop.facilitator.behaviour = SlowSettle()
    payment = shop.payment()
    async with asyncio.TaskGroup() as tasks:
        lost = tasks.create_task(lose(shop, payment, chat()))
        await shop.facilitator.settle_arrived.wait()
        assert await shop.states() == ["settling"]
        await shop.kill()
    assert lost.result() is None
    shop.facilitator.release.set()
    await shop.start()
    await shop.until_states("owed")
    await serve_again(shop, payment, stream=False)
    await shop.until_states("settled")
    assert await shop.earned_atomic() == PRICE_ATOMIC


async def test_killed_in_a_stream_whose_settlement_is_under_way(make_shop: MakeShop) -> None:
    shop = await make_shop(process=True, facilitator=True)
    shop.facilitator.behaviour = SlowSettle()
    shop.upstream.behaviour = Behaviour(hold_between_tokens=asyncio.Event())
    payment = shop.payment()
    async with shop.open(payment, chat(stream=True)) as response:
        assert b"Hello" in await response.content.readany()
        await shop.facilitator.settle_arrived.wait()
        sale_id = response.headers["X-Obol-Receipt"].removeprefix("/receipts/")
        await shop.receipt_in("settling", sale_id, delivery="started")
        await shop.kill()
        with pytest.raises(aiohttp.ClientError):
            await response.read()
    shop.facilitator.release.set()
    await shop.start()
    await shop.until_states("settled")
    again = await shop.again(payment, chat(stream=True))
    assert (again.status, again.reason) == (409, "payment_used")
    assert (await shop.receipt(again))["delivery"] == "started"
    assert await shop.earned_atomic() == PRICE_ATOMIC


@EITHER_POLICY
async def test_killed_in_a_settled_stream(make_shop: MakeShop, settlement: SettlementPolicy) -> None:
    shop = await make_shop(process=True, settlement=settlement)
    shop.upstream.behaviour = Behaviour(hold_between_tokens=asyncio.Event())
    payment = shop.payment()
    async with shop.open(payment, chat(stream=True)) as response:
        assert b"Hello" in await response.content.readany()
        await shop.until_states("settled")
        await shop.kill()
        with pytest.raises(aiohttp.ClientError):
            await response.read()
    await shop.start()
    assert (await shop.again(payment, chat(stream=True))).reason == "payment_used"
    assert await shop.earned_atomic() == PRICE_ATOMIC


@EITHER_POLICY
async def test_killed_among_many_sales(make_shop: MakeShop, settlement: SettlementPolicy) -> None:
    """Wherever each of them stands: afterwards it is final or owed, and no payment moves twice.

    A plain answer that left just before the kill may be owed all the same: a crash is the seller's, and so is its cost.
    """
    shop = await make_shop(process=True, settlement=settlement)
    shop.upstream.behaviour = Behaviour(tokens=6, token_interval_s=0.004)
    payments = [shop.payment() for _ in range(24)]
    bodies = [chat(stream=number % 2 == 0) for number in range(24)]
    async with asyncio.TaskGroup() as tasks:
        lost = [tasks.create_task(lose(shop, *sale)) for sale in zip(payments, bodies, strict=True)]
        await asyncio.wait(lost, return_when=asyncio.FIRST_COMPLETED)
        await shop.kill()
    await shop.start()
    await shop.until_finished()
    served = [task.result() is not None for task in lost]
    again = [await shop.post(*sale) for sale in zip(payments, bodies, strict=True)]
    assert all(answer.status in (200, 409) for answer in again)
    streams = zip(served[::2], again[::2], strict=True)
    assert not any(first and second.status == 200 for first, second in streams)
    await shop.until_finished()
    assert sorted({row["state"] for row in await shop.ledger_rows()} - {"released"}) == ["settled"]
    moved = await shop.transfers()
    assert len({transfer.nonce for transfer in moved}) == len(moved) == len(payments)
