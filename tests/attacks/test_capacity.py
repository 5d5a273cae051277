"""Capacity attacks, against the whole gateway over sockets: no slot without a payment, and all come back."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import aiohttp
import pytest

from obol.adapters.signer_local import LocalSigner
from obol.core.ledger import NO_CHANGE, Change
from obol.core.offer import SettlementPolicy
from obol.core.payment import Event
from obol.core.sale import Sale
from tests.fakes.facilitator import SlowVerify
from tests.fakes.model_server import Behaviour, Death
from tests.fakes.raw_client import RawClient, post
from tests.gateway.failing_ledger import FailingLedger
from tests.gateway.fixtures import MakeShop
from tests.gateway.occupied import in_flight, occupied, until_in_flight, until_transfers
from tests.gateway.shop import CHAT, Answer, Shop, chat, eventually

BODY = b'{"model":"tiny","messages":[{"role":"user","content":"hi"}]}'
STREAM = BODY[:-1] + b',"stream":true}'


async def rich(shop: Shop) -> LocalSigner:
    """One more buyer with money."""
    signer = LocalSigner.generate()
    await shop.fund(signer)
    return signer


def assert_saturated(answer: Answer, reason: str = "saturated") -> None:
    assert (answer.status, answer.reason) == (429, reason), answer
    assert 1 <= int(answer.headers["Retry-After"]) <= 60
    assert not answer.asks_for_money
    assert answer.json["retriable"] is True
    assert "nothing was charged" in answer.json["error"]["message"]


async def assert_sells(shop: Shop) -> None:
    """Every slot is free again, and the next paid request gets an answer."""
    await until_in_flight(shop, 0)
    shop.upstream.behaviour = Behaviour()
    assert (await shop.pay(chat())).status == 200


# ------------------------------------------------------------------------------------------------------- saturation


async def test_saturated_is_429_with_retry_after_unpaid_and_paid_alike(make_shop: MakeShop) -> None:
    shop = await make_shop(max_inflight=1)
    payment = shop.payment()
    async with occupied(shop):
        unpaid, paid = await shop.post(), await shop.post(payment)
    for answer in (unpaid, paid):
        assert_saturated(answer)
        assert "PAYMENT-RESPONSE" not in answer.headers


async def test_the_payment_of_a_refused_request_is_untouched_and_buys_the_next_answer(make_shop: MakeShop) -> None:
    shop = await make_shop(max_inflight=1)
    payment = shop.payment()
    async with occupied(shop):
        assert_saturated(await shop.post(payment))
        assert len(await shop.ledger_rows()) == 1, "the refused payment was not even written down"
    served = await shop.post(payment)
    assert served.status == 200
    assert len(await shop.transfers()) == 2


async def test_host_variation_and_forged_headers_open_no_second_bucket(make_shop: MakeShop) -> None:
    shop = await make_shop(max_inflight=1, per_buyer_max_inflight=1)
    async with occupied(shop):
        for name in ("Host", "X-Forwarded-For", "X-Forwarded-Host", "X-Obol-Offer", "X-Real-IP", "User-Agent"):
            assert_saturated(await shop.post({**shop.payment(), name: "another.example"}))
    assert shop.upstream.max_in_flight == 1


async def test_the_limit_is_never_exceeded_by_a_crowd(make_shop: MakeShop) -> None:
    shop = await make_shop(max_inflight=2)
    shop.upstream.behaviour = Behaviour(token_interval_s=0.01)
    answers = await asyncio.gather(*(shop.pay(chat(stream=n % 2 == 0)) for n in range(20)))
    assert {answer.status for answer in answers} == {200, 429}
    assert shop.upstream.max_in_flight <= 2
    served = sum(answer.status == 200 for answer in answers)
    await assert_sells(shop)
    await until_transfers(shop, served + 1)


# ------------------------------------------------------------------------------------------- who does not hold a slot


async def test_unpaid_probes_hold_no_slot(make_shop: MakeShop) -> None:
    shop = await make_shop(max_inflight=1)
    answers = await asyncio.gather(*(shop.post() for _ in range(30)), shop.pay())
    assert [answer.status for answer in answers[:-1]].count(402) + [a.status for a in answers[:-1]].count(429) == 30
    assert answers[-1].status == 200, "no number of probes keeps a buyer out"


@pytest.mark.parametrize("settlement", [SettlementPolicy.ON_OUTPUT, SettlementPolicy.BEFORE])
async def test_junk_payments_hold_no_slot(make_shop: MakeShop, settlement: SettlementPolicy) -> None:
    shop = await make_shop(facilitator=True, max_inflight=1, settlement=settlement)
    shop.facilitator.behaviour = SlowVerify()
    poor = LocalSigner.generate()
    junk = [asyncio.ensure_future(shop.pay(signer=poor)) for _ in range(5)]
    junk += [asyncio.ensure_future(shop.post({"PAYMENT-SIGNATURE": "junk"})) for _ in range(5)]
    await eventually(lambda: len(shop.facilitator.verified) == 5)
    assert await in_flight(shop) == 0, "payments that nobody has verified yet hold nothing"
    shop.facilitator.release.set()
    statuses = [answer.status for answer in await asyncio.gather(*junk)]
    assert statuses == [402] * 5 + [400] * 5
    assert shop.upstream.calls == []


async def test_slow_bodies_hold_no_slot_and_are_ended(make_shop: MakeShop) -> None:
    shop = await make_shop(max_inflight=1, body_timeout_s=0.3)
    async with RawClient(shop.url) as first, RawClient(shop.url) as second:
        for client in (first, second):
            await client.send(post(CHAT, BODY[:10], shop.payment(), length=len(BODY)))
        assert (await shop.pay()).status == 200, "a slot was free all the time"
        for client in (first, second):
            answer = await client.answer()
            assert (answer.status, answer.json["reason"]) == (408, "body_timeout")
    await shop.until_states("settled")


async def test_a_body_that_trickles_is_ended_too(make_shop: MakeShop) -> None:
    shop = await make_shop(body_timeout_s=0.3)
    async with RawClient(shop.url) as client:
        await client.send(post(CHAT, b"", shop.payment(), length=10_000))
        answering = asyncio.ensure_future(client.answer())
        with suppress(ConnectionError):
            while not answering.done():
                await client.send(b" ")
                await asyncio.sleep(0.02)
        assert (await answering).status == 408


async def test_a_buyer_at_its_cap_does_not_block_others(make_shop: MakeShop) -> None:
    shop = await make_shop(max_inflight=3, per_buyer_max_inflight=1)
    other = await rich(shop)
    async with occupied(shop):
        assert_saturated(await shop.pay(), "buyer_saturated")
        assert (await shop.pay(signer=other)).status == 200
    assert (await shop.pay()).status == 200


async def test_a_buyer_at_its_cap_does_not_fill_the_queue(make_shop: MakeShop) -> None:
    shop = await make_shop(max_inflight=1, per_buyer_max_inflight=1, max_queue_depth=1)
    other = await rich(shop)
    async with occupied(shop) as release:
        assert_saturated(await shop.pay(), "buyer_saturated")
        waiting = asyncio.ensure_future(shop.pay(signer=other))
        await until_in_flight(shop, 1, queued=1)
        release.set()
        assert (await waiting).status == 200


# ------------------------------------------------------------------------------------- slots return on every ending


ENDINGS = {
    "500": Behaviour(status=500),
    "400": Behaviour(status=400),
    "429": Behaviour(status=429, headers={"Retry-After": "7"}),
    "redirect": Behaviour(status=302, redirect_to="http://127.0.0.1:1/"),
    "dies-before-head": Behaviour(death=Death.BEFORE_HEAD),
    "dies-before-output": Behaviour(death=Death.BEFORE_FIRST_TOKEN),
    "dies-midway": Behaviour(death=Death.MIDWAY),
    "dies-at-the-end": Behaviour(death=Death.BEFORE_END),
    "error-first": Behaviour(error_after_tokens=0),
    "error-midway": Behaviour(error_after_tokens=2),
    "nonsense": Behaviour(body=b"not json at all"),
    "nothing": Behaviour(body=b""),
    "no-done": Behaviour(done=False),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("ending", ENDINGS)
async def test_a_slot_returns_however_the_upstream_ends(make_shop: MakeShop, ending: str, stream: bool) -> None:
    shop = await make_shop(max_inflight=1)
    shop.upstream.behaviour = ENDINGS[ending]
    with suppress(aiohttp.ClientError):
        await shop.pay(chat(stream=stream))
    await assert_sells(shop)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_slot_returns_when_the_upstream_hangs_before_its_head(make_shop: MakeShop, stream: bool) -> None:
    shop = await make_shop(max_inflight=1, upstream_first_byte_timeout_s=0.2)
    shop.upstream.behaviour = Behaviour(hold_before_head=asyncio.Event())
    answer = await shop.pay(chat(stream=stream))
    assert (answer.status, answer.reason) == (504, "upstream_timeout")
    assert not answer.asks_for_money
    await shop.until_states("released")
    await assert_sells(shop)


async def test_a_slot_returns_when_a_stream_stalls(make_shop: MakeShop) -> None:
    shop = await make_shop(max_inflight=1, upstream_idle_timeout_s=0.2)
    shop.upstream.behaviour = Behaviour(hold_between_tokens=asyncio.Event())
    with pytest.raises(aiohttp.ClientPayloadError):
        await shop.pay(chat(stream=True))
    await shop.until_states("settled")
    await assert_sells(shop)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_slot_returns_when_the_buyer_leaves_before_the_first_byte(make_shop: MakeShop, stream: bool) -> None:
    shop = await make_shop(max_inflight=1)
    await shop.pay()  # warm
    shop.upstream.behaviour = Behaviour(hold_before_head=asyncio.Event())
    async with RawClient(shop.url) as client:
        await client.send(post(CHAT, STREAM if stream else BODY, shop.payment()))
        await shop.upstream.wait_until(lambda: shop.upstream.in_flight == 1)
    await assert_sells(shop)
    await shop.until_states("settled", "released", "settled")


async def test_a_slot_returns_when_the_buyer_leaves_in_the_middle_of_a_stream(make_shop: MakeShop) -> None:
    shop = await make_shop(max_inflight=1)
    shop.upstream.behaviour = Behaviour(hold_between_tokens=asyncio.Event())
    async with shop.open(shop.payment(), chat(stream=True)) as response:
        assert await response.content.readany()
        assert await in_flight(shop) == 1
        sale = response.headers["X-Obol-Receipt"].removeprefix("/receipts/")
    await shop.receipt_in("settled", sale, delivery="abandoned_by_buyer")
    await assert_sells(shop)


async def test_a_slot_returns_from_a_reader_that_never_reads(make_shop: MakeShop) -> None:
    shop = await make_shop(max_inflight=1, reader_timeout_s=0.3)
    shop.upstream.behaviour = Behaviour(tokens=2000, words=("x" * 10_000,))
    async with RawClient(shop.url, receive_buffer_bytes=4096) as client:
        await client.send(post(CHAT, STREAM, shop.payment()))
        await until_in_flight(shop, 1)
        await until_in_flight(shop, 0)
        sale = (await shop.ledger_rows())[0]["id"]
        await shop.receipt_in("settled", sale, delivery="abandoned_by_buyer")
    await assert_sells(shop)


async def test_a_slow_reader_that_reads_is_left_alone(make_shop: MakeShop) -> None:
    shop = await make_shop(max_inflight=1, reader_timeout_s=0.4)
    shop.upstream.behaviour = Behaviour(tokens=300, words=("x" * 10_000,))
    async with RawClient(shop.url, receive_buffer_bytes=65536) as client:
        await client.send(post(CHAT, STREAM, {**shop.payment(), "Connection": "close"}))
        seen = bytearray()
        while chunk := await client.read():
            seen += chunk
            if len(seen) < 500_000:
                await asyncio.sleep(0.1)
    assert b"[DONE]" in seen[-200:]


async def test_a_plain_answer_that_nobody_reads_does_not_stay_in_memory(make_shop: MakeShop) -> None:
    shop = await make_shop(reader_timeout_s=0.3)
    shop.upstream.behaviour = Behaviour(tokens=2000, words=("x" * 10_000,))
    async with RawClient(shop.url, receive_buffer_bytes=4096) as client:
        await client.send(post(CHAT, BODY, shop.payment()))
        await shop.until_states("settled")
        sale = (await shop.ledger_rows())[0]["id"]
        await shop.receipt_in("settled", sale, delivery="abandoned_by_buyer")


async def test_a_slow_reader_of_a_plain_answer_is_left_alone(make_shop: MakeShop) -> None:
    shop = await make_shop(reader_timeout_s=0.4)
    shop.upstream.behaviour = Behaviour(tokens=300, words=("x" * 10_000,))
    async with RawClient(shop.url, receive_buffer_bytes=65536) as client:
        await client.send(post(CHAT, BODY, {**shop.payment(), "Connection": "close"}))
        seen = 0
        while chunk := await client.read():
            seen += len(chunk)
            if seen < 500_000:
                await asyncio.sleep(0.1)
    assert seen > 3_000_000


async def test_a_plain_answer_that_nobody_reads_holds_no_slot(make_shop: MakeShop) -> None:
    shop = await make_shop(max_inflight=1)
    shop.upstream.behaviour = Behaviour(tokens=2000, words=("x" * 10_000,))
    async with RawClient(shop.url, receive_buffer_bytes=4096) as client:
        await client.send(post(CHAT, BODY, shop.payment()))
        await shop.upstream.wait_until(lambda: len(shop.upstream.calls) == 1 and shop.upstream.in_flight == 0)
        await assert_sells(shop)


class BuggyLedger(FailingLedger):
    """A ledger with a bug behind the claim: an exception that nobody expects ends the sale's task."""

    async def record(
        self, sale_id: str, events: Sequence[Event], change: Change = NO_CHANGE, *, attempt: str | None = None
    ) -> Sale:
        raise ValueError("a bug")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_slot_returns_when_the_task_of_a_sale_dies(make_shop: MakeShop, stream: bool) -> None:
    shop = await make_shop(max_inflight=1, wrap_ledger=BuggyLedger().wrap)
    answer = await shop.pay(chat(stream=stream))
    assert (answer.status, answer.reason) == (500, "internal")
    await until_in_flight(shop, 0)


# ------------------------------------------------------------------------------------------------------------- queue


async def test_the_queue_is_first_come_first_served(make_shop: MakeShop) -> None:
    shop = await make_shop(max_inflight=1, max_queue_depth=3)
    async with occupied(shop) as release:
        waiting = []
        for n in range(3):
            waiting.append(asyncio.ensure_future(shop.pay(chat(user=f"buyer {n}"))))
            await until_in_flight(shop, 1, queued=n + 1)
        assert_saturated(await shop.pay())
        release.set()
        assert [answer.status for answer in await asyncio.gather(*waiting)] == [200] * 3
    assert [call.json.get("user") for call in shop.upstream.calls] == [None, "buyer 0", "buyer 1", "buyer 2"]
    assert shop.upstream.max_in_flight == 1


async def test_the_deadline_of_the_queue_is_honoured_and_the_payment_untouched(make_shop: MakeShop) -> None:
    shop = await make_shop(max_inflight=1, max_queue_depth=1, queue_timeout_s=0.2)
    payment = shop.payment()
    async with occupied(shop):
        assert_saturated(await shop.post(payment), "queue_timeout")
        await until_in_flight(shop, 1, queued=0)
    assert (await shop.post(payment)).status == 200


async def test_a_buyer_who_leaves_the_queue_gives_the_place_back(make_shop: MakeShop) -> None:
    shop = await make_shop(max_inflight=1, max_queue_depth=1)
    async with occupied(shop) as release:
        async with RawClient(shop.url) as client:
            await client.send(post(CHAT, BODY, shop.payment()))
            await until_in_flight(shop, 1, queued=1)
        await until_in_flight(shop, 1, queued=0)
        waiting = asyncio.ensure_future(shop.pay())
        await until_in_flight(shop, 1, queued=1)
        release.set()
        assert (await waiting).status == 200
    assert len(shop.upstream.calls) == 2, "nothing was asked for the one who left"
    await shop.until_states("settled", "released", "settled")


async def test_retry_after_follows_observed_service_times(make_shop: MakeShop) -> None:
    shop = await make_shop(max_inflight=1)
    shop.upstream.behaviour = Behaviour(tokens=1, token_interval_s=1.2)
    assert (await shop.pay()).status == 200
    async with occupied(shop):
        answer = await shop.post()
    assert_saturated(answer)
    assert answer.headers["Retry-After"] == "2", "1.2 s, rounded up"


# -------------------------------------------------------------------------------------------------------- cold start


async def test_giving_up_on_a_cold_upstream_does_not_abort_its_loading_and_nobody_pays(make_shop: MakeShop) -> None:
    shop = await make_shop(max_inflight=1)
    loaded = asyncio.Event()
    shop.upstream.script = [Behaviour(hold_before_head=loaded)]
    async with RawClient(shop.url) as client:
        await client.send(post(CHAT, STREAM, shop.payment()))
        await shop.upstream.wait_until(lambda: shop.upstream.in_flight == 1)
    call = shop.upstream.calls[0]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await call.disconnected.wait()
    assert await in_flight(shop) == 1, "the model is being loaded: the slot is in use"
    loaded.set()
    await shop.until_states("released")
    assert await shop.transfers() == []
    await assert_sells(shop)


async def test_giving_up_on_a_warm_upstream_ends_its_work(make_shop: MakeShop) -> None:
    shop = await make_shop(max_inflight=1)
    assert (await shop.pay()).status == 200
    shop.upstream.script = [Behaviour(hold_before_head=asyncio.Event())]
    async with RawClient(shop.url) as client:
        await client.send(post(CHAT, STREAM, shop.payment()))
        await shop.upstream.wait_until(lambda: shop.upstream.in_flight == 1)
    async with asyncio.timeout(5):
        await shop.upstream.calls[-1].disconnected.wait()
    await shop.until_states("settled", "released")
    assert len(await shop.transfers()) == 1
