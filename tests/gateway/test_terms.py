"""Who owes what when the buyer leaves, the upstream fails or the ledger does, at each moment of a sale."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace

import aiohttp
import msgspec
import pytest
from aiohttp import web

from obol import Gateway
from obol.core.ledger import Change
from obol.core.offer import SettlementPolicy, Standing
from obol.core.payment import Event
from obol.core.sale import Delivery, Receipt, Sale
from obol.core.usage import UNKNOWN_USAGE
from obol.gateway.chase import SettledSteps
from obol.gateway.terms import OnOutput
from obol.x402.client import payment_headers, sign_exact
from tests.fakes.clock import FakeClock
from tests.fakes.facilitator import Ok, RefuseSettle, SlowSettle
from tests.fakes.model_server import Behaviour, Death
from tests.gateway.failing_ledger import FailingLedger, Fault
from tests.gateway.fixtures import MakeShop
from tests.gateway.shop import PRICE_ATOMIC, USDC, Answer, Json, Shop, chat

BOTH = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
AFTER = SettlementPolicy.AFTER
BEFORE = SettlementPolicy.BEFORE
QUICK_S = (0.01,)
BIG = Behaviour(tokens=400, words=("x" * 65536,))
"""26 MB: more than the sockets between gateway and buyer hold."""


@asynccontextmanager
async def asking(shop: Shop, payment: dict[str, str], body: Json) -> AsyncIterator[None]:
    """Inside, a request is under way; leaving hangs up before its answer."""
    task = asyncio.get_running_loop().create_task(shop.post(payment, body))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def owe(shop: Shop, *, stream: bool = False) -> Answer:
    """A payment that was settled first, and whose upstream then failed."""
    shop.upstream.script = [Behaviour(status=500)]
    answer = await shop.pay(chat(stream=stream))
    assert answer.status == 500
    assert (await shop.receipt(answer))["state"] == "owed"
    return answer


# --------------------------------------------------------------------------------------- the buyer leaves: on-output


@BOTH
async def test_a_buyer_who_leaves_before_the_first_byte_pays_nothing(shop: Shop, stream: bool) -> None:
    assert (await shop.pay()).status == 200  # the model is loaded from now on
    head = asyncio.Event()
    shop.upstream.script = [Behaviour(hold_before_head=head)]
    payment = shop.payment()
    async with asking(shop, payment, chat(stream=stream)):
        await shop.upstream.wait_until(lambda: shop.upstream.in_flight == 1)
    async with asyncio.timeout(5):
        await shop.upstream.calls[1].disconnected.wait()
    await shop.until_states("settled", "released")
    assert (await shop.post(payment, chat(stream=stream))).status == 200
    await shop.until_states("settled", "released", "settled")
    assert await shop.earned_atomic() == 2 * PRICE_ATOMIC


async def test_a_buyer_who_leaves_while_the_model_thinks_pays_nothing(shop: Shop) -> None:
    """The head is there, but no output."""
    shop.upstream.script = [Behaviour(hold_before_first_token=asyncio.Event())]
    payment = shop.payment()
    async with asking(shop, payment, chat(stream=True)):
        await shop.upstream.wait_until(lambda: shop.upstream.in_flight == 1)
    async with asyncio.timeout(5):
        await shop.upstream.calls[0].disconnected.wait()
    await shop.until_states("released")
    assert (await shop.post(payment)).status == 200


async def test_a_buyer_who_leaves_a_cold_upstream_does_not_abort_its_loading(shop: Shop) -> None:
    head = asyncio.Event()
    shop.upstream.script = [Behaviour(hold_before_head=head)]
    async with asking(shop, shop.payment(), chat(stream=True)):
        await shop.upstream.wait_until(lambda: shop.upstream.in_flight == 1)
    await shop.until_status(inFlight=1)
    assert not shop.upstream.calls[0].disconnected.is_set()
    head.set()
    await shop.until_states("released")
    assert await shop.transfers() == []


async def test_a_buyer_who_leaves_after_the_first_output_has_bought_it(shop: Shop) -> None:
    rest = asyncio.Event()
    shop.upstream.behaviour = Behaviour(tokens=5, hold_between_tokens=rest)
    payment = shop.payment()
    async with shop.open(payment, chat(stream=True)) as response:
        assert b"Hello" in await response.content.readany()
        sale_id = response.headers["X-Obol-Receipt"].removeprefix("/receipts/")
    async with asyncio.timeout(5):
        await shop.upstream.calls[0].disconnected.wait()
    await shop.receipt_in("settled", sale_id, delivery="abandoned_by_buyer")
    assert (await shop.again(payment, chat(stream=True))).reason == "payment_used"
    assert await shop.earned_atomic() == PRICE_ATOMIC


async def test_a_buyer_who_leaves_while_a_plain_answer_is_settled_is_owed_it(make_shop: MakeShop) -> None:
    shop = await make_shop(facilitator=True)
    shop.facilitator.behaviour = SlowSettle()
    payment = shop.payment()
    async with asking(shop, payment, chat()):
        await shop.facilitator.settle_arrived.wait()
    shop.facilitator.release.set()
    await shop.until_states("owed")
    answer = await shop.post(payment)
    assert (answer.status, answer.settlement) == (200, "settled")
    await shop.receipt_in("settled", answer, delivery="complete")
    assert (await shop.again(payment)).reason == "payment_used"
    assert await shop.earned_atomic() == PRICE_ATOMIC


@pytest.mark.parametrize("settlement", list(SettlementPolicy))
async def test_a_buyer_who_leaves_before_the_end_of_a_plain_answer_has_had_it(
    make_shop: MakeShop, settlement: SettlementPolicy
) -> None:
    """Else one payment would buy any number of answers of which only the last bytes are missing."""
    shop = await make_shop(settlement=settlement)
    shop.upstream.behaviour = BIG
    payment = shop.payment()
    async with shop.open(payment, chat()) as response:
        assert await response.content.readexactly(1024 * 1024)
        sale_id = response.headers["X-Obol-Receipt"].removeprefix("/receipts/")
    await shop.receipt_in("settled", sale_id, delivery="abandoned_by_buyer")
    assert (await shop.again(payment)).reason == "payment_used"


@pytest.mark.parametrize("settlement", list(SettlementPolicy))
async def test_a_buyer_who_leaves_within_the_first_bytes_of_a_stream_has_had_them(
    make_shop: MakeShop, settlement: SettlementPolicy
) -> None:
    """A fast server's whole stream may be among them."""
    shop = await make_shop(settlement=settlement)
    event = b'data: {"choices":[{"index":0,"delta":{"content":"Hello"}}]}\n\n'
    shop.upstream.behaviour = Behaviour(body=event * 40_000, content_type="text/event-stream")
    shrink_send_buffers(shop)
    payment = shop.payment()
    host, port = shop.url.removeprefix("http://").split(":")
    with socket.socket() as buyer:
        buyer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        buyer.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(buyer, (host, int(port)))
        await loop.sock_sendall(buyer, request_bytes(payment, chat(stream=True)))
        received = b""
        while b"Hello" not in received:
            received += await loop.sock_recv(buyer, 1024)
    await shop.until_states("settled")
    assert (await shop.again(payment)).reason == "payment_used"


def shrink_send_buffers(shop: Shop) -> None:
    """Have the first bytes of an answer wait for their reader, as on a slow line."""
    assert isinstance(shop.gateway, Gateway)
    for site in shop.gateway._runners[0].sites:
        assert isinstance(site, web.TCPSite)
        assert isinstance(site._server, asyncio.Server)
        for listening in site._server.sockets:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)


def request_bytes(payment: dict[str, str], body: Json) -> bytes:
    content = msgspec.json.encode(body)
    fields = {"Host": "shop", "Content-Type": "application/json", "Content-Length": str(len(content))} | payment
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n".encode() + content


# ------------------------------------------------------------------------------------------- settled before serving


@BOTH
async def test_an_upstream_that_fails_after_payment_leaves_the_answer_owed(make_shop: MakeShop, stream: bool) -> None:
    shop = await make_shop(settlement=BEFORE)
    owed = await owe(shop, stream=stream)
    assert (owed.settlement, owed.payment_response.success) == ("owed", True)
    assert await shop.earned_atomic() == PRICE_ATOMIC
    answer = await shop.post(owed.payment, chat(stream=stream))
    assert (answer.status, answer.settlement, answer.sale_id) == (200, "settled", owed.sale_id)
    (moved,) = await shop.transfers()
    assert answer.payment_response.transaction == moved.transaction
    await shop.receipt_in("settled", answer, delivery="complete")
    assert (await shop.again(owed.payment)).reason == "payment_used"


async def test_an_owed_answer_stays_owed_however_often_the_upstream_fails(make_shop: MakeShop) -> None:
    shop = await make_shop(settlement=BEFORE)
    owed = await owe(shop)
    for failure in (Behaviour(status=500), Behaviour(death=Death.BEFORE_HEAD), Behaviour(body=b"{}")):
        shop.upstream.script = [failure]
        assert not (await shop.post(owed.payment)).asks_for_money
        assert await shop.states() == ["owed"]
    assert (await shop.post(owed.payment)).status == 200
    assert await shop.earned_atomic() == PRICE_ATOMIC


@BOTH
async def test_a_buyer_who_leaves_after_paying_and_before_the_first_byte_is_owed(
    make_shop: MakeShop, stream: bool
) -> None:
    shop = await make_shop(settlement=BEFORE)
    shop.upstream.script = [Behaviour(hold_before_head=(head := asyncio.Event()))]
    payment = shop.payment()
    async with asking(shop, payment, chat(stream=stream)):
        await shop.upstream.wait_until(lambda: shop.upstream.in_flight == 1)
    head.set()
    await shop.until_states("owed")
    answer = await shop.post(payment, chat(stream=stream))
    assert answer.status == 200
    await shop.receipt_in("settled", answer, delivery="complete")
    assert await shop.earned_atomic() == PRICE_ATOMIC


async def test_an_owed_answer_is_served_to_one_of_many(make_shop: MakeShop) -> None:
    shop = await make_shop(settlement=BEFORE)
    owed = await owe(shop)
    answers = await asyncio.gather(*(shop.post(owed.payment) for _ in range(8)))
    assert sorted(answer.status for answer in answers) == [200] + [409] * 7
    assert len(shop.upstream.calls) == 2


async def test_an_owed_answer_does_not_expire(make_shop: MakeShop) -> None:
    clock = FakeClock()
    shop = await make_shop(settlement=BEFORE, clock=clock)
    owed = await owe(shop)
    clock.advance(7 * 86400)
    assert (await shop.post(owed.payment)).status == 200
    assert (await shop.again(owed.payment)).reason == "payment_used"


async def test_an_owed_answer_does_not_expire_in_the_queue(make_shop: MakeShop) -> None:
    clock = FakeClock()
    shop = await make_shop(settlement=BEFORE, clock=clock, max_inflight=1, max_queue_depth=1)
    owed = await owe(shop)
    head = asyncio.Event()
    shop.upstream.script = [Behaviour(hold_before_head=head)]
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(shop.pay())
        await shop.upstream.wait_until(lambda: shop.upstream.in_flight == 1)
        waiting = tasks.create_task(shop.post(owed.payment))
        await shop.until_status(queued=1)
        clock.advance(400)
        head.set()
    assert (serving.result().status, waiting.result().status) == (200, 200)


async def test_an_owed_answer_that_finds_no_slot_stays_owed(make_shop: MakeShop) -> None:
    shop = await make_shop(settlement=BEFORE, max_inflight=1)
    owed = await owe(shop)
    head = asyncio.Event()
    shop.upstream.script = [Behaviour(hold_before_head=head)]
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(shop.pay())
        await shop.upstream.wait_until(lambda: shop.upstream.in_flight == 1)
        assert (await shop.post(owed.payment)).status == 429
        assert (await shop.receipt(owed))["state"] == "owed"
        head.set()
    assert serving.result().status == 200
    assert (await shop.post(owed.payment)).status == 200


async def test_an_owed_answer_needs_no_facilitator(make_shop: MakeShop) -> None:
    shop = await make_shop(facilitator=True, settlement=BEFORE)
    owed = await owe(shop)
    await shop.facilitator.stop()
    assert (await shop.post(owed.payment)).status == 200


@pytest.mark.parametrize("settlement", list(SettlementPolicy))
@pytest.mark.parametrize("version", [1, 2])
async def test_an_owed_answer_outlives_settings(
    make_shop: MakeShop, settlement: SettlementPolicy, version: int
) -> None:
    """Restarted with another policy, price and recipient: the buyer has paid what was asked then."""
    shop = await make_shop(settlement=BEFORE)
    shop.upstream.script = [Behaviour(status=500)]
    owed = await shop.pay(version=version)
    await shop.restart(settlement=settlement, price="0.02", pay_to="0x" + "44" * 20)
    assert (await shop.pay()).status == 200
    answer = await shop.post(owed.payment)
    assert answer.status == 200
    again = await shop.again(owed.payment)
    assert (again.status, again.reason, again.sale_id) == (409, "payment_used", owed.sale_id)


async def test_an_answer_owed_by_a_cheap_offer_is_not_served_by_a_dear_one(make_shop: MakeShop) -> None:
    cheap = await make_shop(settlement=BEFORE)
    owed = await owe(cheap)
    dear = await make_shop(settlement=BEFORE, name="dear", price="5", upstream=cheap.upstream, signer=cheap.signer)
    refused = await dear.post(owed.payment)
    assert refused.status == 402
    assert (await cheap.receipt(owed))["state"] == "owed"
    assert (await cheap.post(owed.payment)).status == 200


@pytest.mark.parametrize("settlement", list(SettlementPolicy))
@pytest.mark.parametrize("later_s", [0, -400], ids=["fresh", "expired"])
async def test_a_second_signature_over_an_owed_nonce_buys_nothing_dearer(
    make_shop: MakeShop, settlement: SettlementPolicy, later_s: int
) -> None:
    """Both authorizations have one nonce, so they are one payment: the cheap one, whatever the other promises."""
    cheap = await make_shop(settlement=BEFORE)
    owed = await owe(cheap)
    dear = await make_shop(settlement=settlement, name="dear", price="5", upstream=cheap.upstream, signer=cheap.signer)
    nonce = bytes.fromhex((await cheap.ledger_rows())[0]["nonce"][2:])
    now_s = cheap.clock.now_s() + later_s
    promise = sign_exact(cheap.signer, dear.requirements, USDC, now_s=now_s, nonce=nonce)
    refused = await dear.post(payment_headers(promise, 2))
    assert (refused.status, len(cheap.upstream.calls)) == (402, 1)
    assert (await cheap.receipt(owed))["state"] == "owed"
    assert (await cheap.post(owed.payment)).status == 200


# ---------------------------------------------------------------------------------------------- a ledger that fails


@pytest.mark.parametrize("settlement", list(SettlementPolicy))
async def test_without_a_ledger_nothing_is_sold(make_shop: MakeShop, settlement: SettlementPolicy) -> None:
    ledger = FailingLedger()
    shop = await make_shop(wrap_ledger=ledger.wrap, retry_schedule_s=QUICK_S, settlement=settlement)
    payment = shop.payment()
    ledger.is_down = True
    answer = await shop.post(payment)
    assert (answer.status, answer.reason, answer.asks_for_money) == (503, "ledger_unavailable", False)
    assert int(answer.headers["Retry-After"]) >= 1
    assert shop.upstream.calls == []
    ledger.is_down = False
    assert (await shop.post(payment)).status == 200


@BOTH
@pytest.mark.parametrize("settlement", list(SettlementPolicy))
@pytest.mark.parametrize("recorded", [False, True])
async def test_a_claim_that_may_have_been_recorded_does_not_lock_the_payment(
    make_shop: MakeShop, settlement: SettlementPolicy, recorded: bool, stream: bool
) -> None:
    ledger = FailingLedger()
    shop = await make_shop(wrap_ledger=ledger.wrap, retry_schedule_s=QUICK_S, settlement=settlement)
    ledger.faults = [Fault("claim", recorded=recorded)]
    answer = await shop.pay(chat(stream=stream))
    assert (answer.status, shop.upstream.calls) == (503, [])
    assert (await shop.post(answer.payment, chat(stream=stream))).status == 200
    await shop.until_states("released", "settled")
    assert await shop.earned_atomic() == PRICE_ATOMIC


@BOTH
@pytest.mark.parametrize("settlement", list(SettlementPolicy))
@pytest.mark.parametrize("recorded", [False, True])
async def test_what_cannot_be_recorded_is_not_handed_over_and_not_lost(
    make_shop: MakeShop, settlement: SettlementPolicy, recorded: bool, stream: bool
) -> None:
    """The step before the answer fails, perhaps after it was recorded: the buyer has nothing, and must get its answer.

    Under AFTER that step asks nobody for money."""
    ledger = FailingLedger()
    shop = await make_shop(wrap_ledger=ledger.wrap, retry_schedule_s=QUICK_S, settlement=settlement)
    step = Event.OUTPUT if settlement is AFTER else Event.SETTLE
    ledger.faults = [Fault("record", step, recorded=recorded)]
    answer = await shop.pay(chat(stream=stream))
    assert (answer.status, answer.reason) == (503, "ledger_unavailable")
    assert b"Hello" not in answer.body
    is_owed = recorded and settlement is not AFTER
    await shop.until_states("owed" if is_owed else "released")
    assert (await shop.post(answer.payment, chat(stream=stream))).status == 200
    await shop.until_states(*(["settled"] if is_owed else ["released", "settled"]))
    assert await shop.earned_atomic() == PRICE_ATOMIC


@BOTH
@pytest.mark.parametrize("settlement", list(SettlementPolicy))
async def test_a_ledger_that_stays_down_keeps_neither_buyers_nor_slots_waiting(
    make_shop: MakeShop, settlement: SettlementPolicy, stream: bool
) -> None:
    ledger = FailingLedger()
    shop = await make_shop(wrap_ledger=ledger.wrap, retry_schedule_s=(0.05,), settlement=settlement, max_inflight=1)
    ledger.faults = [Fault("record", times=10**6), Fault("sale", times=10**6)]
    async with asyncio.timeout(5):
        answer = await shop.pay(chat(stream=stream))
    assert (answer.status, answer.reason) == (503, "ledger_unavailable")
    await shop.until_status(inFlight=0)
    ledger.faults = []
    await shop.until_states("released")
    assert (await shop.post(answer.payment, chat(stream=stream))).status == 200


async def test_an_ending_that_cannot_be_recorded_is_recorded_later(make_shop: MakeShop) -> None:
    ledger = FailingLedger()
    shop = await make_shop(wrap_ledger=ledger.wrap, retry_schedule_s=QUICK_S)
    head = asyncio.Event()
    shop.upstream.behaviour = Behaviour(hold_before_end=head)
    async with shop.open(shop.payment(), chat(stream=True)) as response:
        await shop.until_states("settled")
        ledger.is_down = True
        head.set()
        assert (await response.read()).endswith(b"data: [DONE]\n\n")
        sale_id = response.headers["X-Obol-Receipt"].removeprefix("/receipts/")
        ledger.is_down = False
    await shop.receipt_in("settled", sale_id, delivery="complete")


@BOTH
@pytest.mark.parametrize("settlement", [SettlementPolicy.ON_OUTPUT, SettlementPolicy.AFTER])
async def test_nothing_goes_ahead_of_a_payment_that_has_expired_meanwhile(
    make_shop: MakeShop, settlement: SettlementPolicy, stream: bool
) -> None:
    """It was good when the model began to think; now it would be refused."""
    clock = FakeClock()
    shop = await make_shop(clock=clock, max_timeout_s=300, settlement=settlement)
    head = asyncio.Event()
    shop.upstream.script = [Behaviour(hold_before_head=head)]
    async with asyncio.TaskGroup() as tasks:
        buying = tasks.create_task(shop.pay(chat(stream=stream)))
        await shop.upstream.wait_until(lambda: shop.upstream.in_flight == 1)
        clock.advance(295)
        head.set()
    answer = buying.result()
    assert answer.status == 402
    assert "expired while the answer was made" in answer.challenge.error
    assert b"Hello" not in answer.body
    await shop.until_states("released")
    assert await shop.earned_atomic() == 0


async def test_who_has_all_of_a_stream_is_never_served_again(make_shop: MakeShop) -> None:
    """Its end leaves when it is written down that it began, so that a gateway which dies then knows."""
    ledger = FailingLedger()
    shop = await make_shop(wrap_ledger=ledger.wrap, retry_schedule_s=(0.1,), settlement=SettlementPolicy.BEFORE)
    ledger.faults = [Fault("record", Event.OUTPUT, times=2)]
    answer = await shop.pay(chat(stream=True))
    assert answer.status == 200
    assert [row["state"] for row in await shop.ledger_rows()] == ["settled"]


# --------------------------------------------------------------------------------------------------- whatever happens


async def test_a_reader_that_reads_nothing_gives_its_slot_back_when_it_leaves(make_shop: MakeShop) -> None:
    shop = await make_shop(max_inflight=1)
    shop.upstream.behaviour = Behaviour(tokens=400, words=("x" * 65536,))
    with suppress(aiohttp.ClientError):
        async with shop.open(shop.payment(), chat(stream=True)) as response:
            assert response.status == 200
    await shop.until_status(inFlight=0)
    await shop.until_states("settled")


@BOTH
async def test_a_bug_after_the_claim_does_not_lock_the_payment(make_shop: MakeShop, stream: bool) -> None:
    """Whatever goes wrong between claim and output, nothing was delivered: the payment is the buyer's again."""
    ledger = FailingLedger()
    shop = await make_shop(wrap_ledger=ledger.wrap)
    ledger.faults.append(Fault("record", Event.OUTPUT, is_bug=True))
    payment = shop.payment()
    failed = await shop.post(payment, chat(stream=stream))
    assert (failed.status, failed.reason) == (500, "internal")
    await shop.until_states("released")
    assert (await shop.post(payment, chat(stream=stream))).status == 200
    assert "request_failed" in [line["event"] for line in shop.logged]


# ------------------------------------------------------------------------------------------------- after, and standing


@BOTH
async def test_after_asks_for_the_money_when_the_answer_was_handed_over(make_shop: MakeShop, stream: bool) -> None:
    shop = await make_shop(facilitator=True, settlement=AFTER, max_unsettled="0.01")
    shop.facilitator.behaviour = SlowSettle()
    answer = await shop.pay(chat(stream=stream))
    assert (answer.status, answer.headers["X-Obol-Settlement"]) == (200, "pending")
    await shop.receipt_in("settling", answer, delivery="complete")
    shop.facilitator.release.set()
    await shop.receipt_in("settled", answer, delivery="complete")
    assert await shop.earned_atomic() == PRICE_ATOMIC


@BOTH
async def test_after_serves_nobody_ahead_of_more_than_the_bound(make_shop: MakeShop, stream: bool) -> None:
    """Two prices may be out; the third answer is settled as under on-output."""
    shop = await make_shop(facilitator=True, settlement=AFTER, max_unsettled="0.02")
    shop.facilitator.behaviour = SlowSettle()
    ahead = [await shop.pay(chat()) for _ in range(2)]
    assert [answer.status for answer in ahead] == [200, 200]
    third = asyncio.get_running_loop().create_task(shop.pay(chat(stream=stream)))
    if stream:
        assert (await third).headers["X-Obol-Settlement"] == "pending"
    else:
        await shop.until_states("settling", "settling", "settling")
        assert not third.done()
    shop.facilitator.release.set()
    assert (await third).status == 200
    await shop.until_states("settled", "settled", "settled")


@BOTH
async def test_after_serves_nobody_ahead_again_whose_payment_was_refused(make_shop: MakeShop, stream: bool) -> None:
    """Else each refusal would make room for the next answer."""
    shop = await make_shop(facilitator=True, settlement=AFTER, max_unsettled="0.01")
    shop.facilitator.behaviour = RefuseSettle("insufficient_funds")
    assert (await shop.pay(chat(stream=stream))).status == 200
    await shop.until_states("settle_failed")
    refused = await shop.pay()
    assert (refused.status, b"Hello" in refused.body) == (402, False)
    shop.facilitator.behaviour = Ok()
    assert (await shop.pay()).headers["X-Obol-Settlement"] == "settled"
    await shop.until_finished()
    assert (await shop.pay(chat(stream=stream))).headers["X-Obol-Settlement"] == "pending"


@BOTH
async def test_after_asks_nothing_of_a_buyer_who_leaves_before_the_first_byte(
    make_shop: MakeShop, stream: bool
) -> None:
    shop = await make_shop(settlement=AFTER, max_unsettled="0.01")
    assert (await shop.pay()).status == 200
    await shop.until_states("settled")
    shop.upstream.script = [Behaviour(hold_before_head=(head := asyncio.Event()))]
    payment = shop.payment()
    async with asking(shop, payment, chat(stream=stream)):
        await shop.upstream.wait_until(lambda: shop.upstream.in_flight == 1)
    head.set()
    await shop.until_states("settled", "released")
    assert (await shop.post(payment)).status == 200


async def test_a_payer_with_standing_does_not_wait_for_the_money(make_shop: MakeShop) -> None:
    shop = await make_shop(facilitator=True, standing_after=2, max_unsettled="0.01")
    assert [(await shop.pay()).headers["X-Obol-Settlement"] for _ in range(2)] == ["settled", "settled"]
    verified = len(shop.facilitator.verified)
    shop.facilitator.behaviour = SlowSettle()
    answer = await shop.pay()
    assert (answer.status, answer.headers["X-Obol-Settlement"]) == (200, "pending")
    assert len(shop.facilitator.verified) == verified
    shop.facilitator.release.set()
    await shop.receipt_in("settled", answer, delivery="complete")


async def test_one_refused_settlement_removes_standing(make_shop: MakeShop) -> None:
    shop = await make_shop(facilitator=True, standing_after=1, max_unsettled="0.01")
    assert (await shop.pay()).status == 200
    shop.facilitator.behaviour = RefuseSettle()
    refused = await shop.pay()
    assert refused.status == 200
    await shop.receipt_in("settle_failed", refused, delivery="complete")
    shop.facilitator.behaviour = Ok()
    answer = await shop.pay()
    assert answer.headers["X-Obol-Settlement"] == "settled"


async def test_what_was_claimed_and_never_served_is_released_when_an_owed_claim_was_recorded_all_the_same(
    make_shop: MakeShop,
) -> None:
    """A ledger that says "failed" and has recorded the redemption: the owed sale must not stay REDEEMING."""
    ledger = FailingLedger()
    shop = await make_shop(settlement=BEFORE, wrap_ledger=ledger.wrap, retry_schedule_s=QUICK_S)
    answer = await owe(shop)
    ledger.faults = [Fault("claim", recorded=True)]
    assert (await shop.again(answer.payment)).status == 503
    await shop.receipt_in("owed", answer)
    assert (await shop.post(answer.payment)).status == 200
    await shop.receipt_in("settled", answer)


class SlowTrust(FailingLedger):
    """A ledger that books an answer against its payer's standing, and says so when `release` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.booked, self.release = asyncio.Event(), asyncio.Event()

    async def trust(self, sale_id: str, events: Sequence[Event], change: Change, standing: Standing) -> Sale | None:
        sale = await super().trust(sale_id, events, change, standing)
        self.booked.set()
        await self.release.wait()
        return sale


async def test_a_trusted_buyer_who_left_before_the_first_byte_is_owed_what_is_settled_later(
    make_shop: MakeShop,
) -> None:
    ledger = SlowTrust()
    shop = await make_shop(
        facilitator=True, standing_after=0, max_unsettled="1", wrap_ledger=ledger.wrap, retry_schedule_s=QUICK_S
    )
    shop.facilitator.behaviour = SlowSettle()
    payment = shop.payment()
    async with asking(shop, payment, chat()):
        await ledger.booked.wait()
    await asyncio.sleep(0.05)  # the hang-up must have arrived; nothing tells a test when
    ledger.release.set()
    await shop.facilitator.settle_arrived.wait()
    shop.facilitator.release.set()
    await shop.until_states("owed")
    assert (await shop.post(payment)).status == 200
    await shop.until_states("settled")
    assert await shop.earned_atomic() == PRICE_ATOMIC


class NotedSettler:
    """Notes what is to be recorded."""

    def __init__(self) -> None:
        self.noted: list[list[Event]] = []
        self.steps: SettledSteps | None = None

    def settle(self, _sale: object, steps: SettledSteps) -> None:
        self.steps = steps

    def record_soon(self, _sale: object, events: list[Event], _change: Change, *, after: object) -> None:
        self.noted.append(events)


class NotedLedger:
    async def record(self, _sale_id: str, _events: object) -> Receipt:
        return SimpleNamespace(offer="o", state="settling")  # type: ignore[return-value]


async def test_a_stream_whose_settlement_is_known_late_is_not_owed_a_second_time() -> None:
    """The buyer reads nothing yet, so the first byte has not left; then the money comes; then the buyer reads."""
    settler = NotedSettler()
    ports = SimpleNamespace(ledger=NotedLedger(), metrics=SimpleNamespace(payment=lambda *_: None), clock=FakeClock())
    offer = SimpleNamespace(settlement=SettlementPolicy.ON_OUTPUT, standing=None)
    till = SimpleNamespace(settler=settler, ports=ports, live=SimpleNamespace(offer=offer))
    receipt = SimpleNamespace(under_way=dict)
    terms = OnOutput(SimpleNamespace(id="1", valid_before_s=2**40), till, receipt)  # type: ignore[arg-type]
    await terms.stream_begins()
    assert settler.steps is not None
    assert settler.steps(True) == [Event.SETTLED_UNDELIVERED, Event.SERVE]
    terms.stream_has_begun()
    assert settler.noted == [[Event.OUTPUT]]
    await terms.ended(Delivery.COMPLETE, UNKNOWN_USAGE)
    assert settler.noted == [[Event.OUTPUT], []]


async def test_a_stream_that_nobody_began_to_read_is_owed_when_its_money_comes() -> None:
    settler = NotedSettler()
    ports = SimpleNamespace(ledger=NotedLedger(), metrics=SimpleNamespace(payment=lambda *_: None), clock=FakeClock())
    offer = SimpleNamespace(settlement=SettlementPolicy.ON_OUTPUT, standing=None)
    till = SimpleNamespace(settler=settler, ports=ports, live=SimpleNamespace(offer=offer))
    terms = OnOutput(SimpleNamespace(id="1", valid_before_s=2**40), till, SimpleNamespace(under_way=dict))  # type: ignore[arg-type]
    await terms.stream_begins()
    await terms.ended(Delivery.NONE, UNKNOWN_USAGE)
    assert settler.steps is not None
    assert settler.steps(True) == [Event.SETTLED_UNDELIVERED]
