"""Whole sales: what is bought, what a payment buys twice (nothing), what costs nothing."""

import asyncio
from pathlib import Path

import aiohttp
import pytest

from obol import LocalSigner
from obol.core.offer import SettlementPolicy
from obol.x402.client import payment_headers
from tests.adapters.payments import account, pay
from tests.fakes.clock import FakeClock
from tests.fakes.facilitator import SlowSettle
from tests.fakes.model_server import Behaviour, Death
from tests.gateway.fixtures import MakeShop
from tests.gateway.shop import MODEL, PRICE_ATOMIC, PROMPT, Json, Shop, chat

BOTH = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
EITHER_POLICY = pytest.mark.parametrize("settlement", list(SettlementPolicy))

ERROR_STREAM = b'data: {"error": {"message": "out of memory", "code": 500}}\n\n'

WORTHLESS: dict[str, tuple[bool, Behaviour, int]] = {
    "refused 400": (False, Behaviour(status=400), 400),
    "error 500": (False, Behaviour(status=500), 500),
    "error 500 to a stream": (True, Behaviour(status=500), 500),
    "overloaded 503": (True, Behaviour(status=503, headers={"Retry-After": "7"}), 503),
    "200 with an error object": (False, Behaviour(body=b'{"error": {"message": "no", "code": 500}}'), 200),
    "200 with nonsense": (False, Behaviour(body=b"<h1>Hello</h1>", content_type="text/html"), 200),
    "200 with nothing": (False, Behaviour(body=b""), 200),
    "a stream that is an error": (True, Behaviour(body=ERROR_STREAM, content_type="text/event-stream"), 200),
    "an error before output": (True, Behaviour(error_after_tokens=0), 200),
    "dead before the head": (False, Behaviour(death=Death.BEFORE_HEAD), 502),
    "dead before the head of a stream": (True, Behaviour(death=Death.BEFORE_HEAD), 502),
    "dead before output": (True, Behaviour(death=Death.BEFORE_FIRST_TOKEN), 502),
    "dead in a plain answer": (False, Behaviour(death=Death.MIDWAY), 502),
    "dead at the end of a plain answer": (False, Behaviour(death=Death.BEFORE_END), 502),
    "the seller's credential refused": (False, Behaviour(status=401), 502),
    "the upstream wants money": (False, Behaviour(status=402), 502),
    "a redirect": (False, Behaviour(status=307, redirect_to="http://127.0.0.1:1/"), 502),
}
"""What an upstream may do instead of answering: whether a stream is asked for, and the status that the buyer gets."""


@BOTH
@EITHER_POLICY
async def test_a_payment_buys_one_answer(make_shop: MakeShop, stream: bool, settlement: SettlementPolicy) -> None:
    shop = await make_shop(settlement=settlement)
    answer = await shop.pay(chat(stream=stream))
    assert answer.status == 200
    assert b"Hello" in answer.body
    assert answer.body.endswith(b"data: [DONE]\n\n") is stream
    receipt = await shop.receipt_in("settled", answer, delivery="complete")
    assert (receipt["settledAtomic"], receipt["paid"]) == (str(PRICE_ATOMIC), True)
    if not stream:  # of a stream only when the buyer asks the upstream for it
        assert receipt["usage"] == {"inputTokens": len(PROMPT.split()), "outputTokens": 5}
    (moved,) = await shop.transfers()
    assert (moved.amount_atomic, moved.transaction) == (PRICE_ATOMIC, receipt["transaction"])


async def test_a_plain_answer_carries_its_settlement(shop: Shop) -> None:
    answer = await shop.pay()
    (moved,) = await shop.transfers()
    assert answer.payment_response.success
    assert answer.payment_response.transaction == moved.transaction
    assert (answer.payment_response.network, answer.payment_response.payer) == ("eip155:84532", shop.signer.address)
    assert answer.settlement == "settled"
    assert answer.headers["Cache-Control"] == "private, no-store"


async def test_a_stream_says_that_its_settlement_is_under_way(shop: Shop) -> None:
    answer = await shop.pay(chat(stream=True))
    assert (answer.payment_response.success, answer.payment_response.transaction) == (True, "")
    assert answer.settlement == "pending"
    assert answer.headers["Cache-Control"] == "private, no-store"


@pytest.mark.parametrize("version", [1, 2])
async def test_both_protocol_versions_pay(shop: Shop, version: int) -> None:
    answer = await shop.pay(version=version)
    assert answer.status == 200
    assert await shop.earned_atomic() == PRICE_ATOMIC


async def test_the_first_byte_of_a_stream_arrives_while_upstream_and_settlement_are_held(make_shop: MakeShop) -> None:
    shop = await make_shop(facilitator=True)
    shop.facilitator.behaviour = SlowSettle()
    rest = asyncio.Event()
    shop.upstream.behaviour = Behaviour(tokens=5, hold_between_tokens=rest)
    async with shop.open(shop.payment(), chat(stream=True)) as response:
        first = await response.content.readany()
        assert b"Hello" in first
        assert shop.upstream.calls[0].sent_tokens == 1
        assert not shop.upstream.calls[0].ended.is_set()
        assert await shop.earned_atomic() == 0
        rest.set()
        assert (await response.read()).endswith(b"data: [DONE]\n\n")


@BOTH
async def test_an_answer_is_the_upstreams_bytes(shop: Shop, stream: bool) -> None:
    shop.upstream.behaviour = Behaviour(tokens=8, split_bytes=3 if stream else None)
    answer = await shop.pay(chat(stream=stream))
    async with shop.session.post(shop.upstream.url + "/v1/chat/completions", json=chat(stream=stream)) as direct:
        given = (await direct.read()).split(b"usage")[0]
    assert answer.body.split(b"usage")[0] == given


async def test_two_payments_buy_two_answers(shop: Shop) -> None:
    assert [(await shop.pay()).status for _ in range(2)] == [200, 200]
    assert (len(shop.upstream.calls), await shop.earned_atomic()) == (2, 2 * PRICE_ATOMIC)


@pytest.mark.parametrize("name", WORTHLESS)
async def test_what_is_no_answer_costs_nothing(shop: Shop, name: str) -> None:
    stream, behaviour, status = WORTHLESS[name]
    shop.upstream.script = [behaviour]
    answer = await shop.pay(chat(stream=stream))
    assert answer.status == status
    assert not answer.asks_for_money
    assert await shop.transfers() == []
    assert await shop.states() == ["released"]
    again = await shop.post(answer.payment, chat(stream=stream))
    assert again.status == 200
    await shop.until_states("released", "settled")
    assert await shop.earned_atomic() == PRICE_ATOMIC


@pytest.mark.parametrize("name", ["error 500", "200 with an error object", "an error before output"])
async def test_an_upstreams_error_does_not_say_that_money_moved(shop: Shop, name: str) -> None:
    stream, behaviour, _ = WORTHLESS[name]
    shop.upstream.script = [behaviour]
    answer = await shop.pay(chat(stream=stream))
    assert not answer.payment_response.success
    assert answer.settlement == "released"
    assert (await shop.receipt(answer))["paid"] is False


async def test_an_upstream_that_is_down_costs_nothing(shop: Shop) -> None:
    await shop.upstream.stop()
    answer = await shop.pay()
    assert (answer.status, answer.reason) == (503, "upstream_unavailable")
    assert int(answer.headers["Retry-After"]) >= 1
    assert await shop.states() == ["released"]
    refused = await shop.post()  # from now on it is known to be down: nothing is quoted
    assert (refused.status, refused.reason, refused.asks_for_money) == (503, "upstream_down", False)


@EITHER_POLICY
async def test_an_upstream_that_dies_midway_truncates_the_answer(
    make_shop: MakeShop, settlement: SettlementPolicy
) -> None:
    shop = await make_shop(settlement=settlement)
    dies = asyncio.Event()
    shop.upstream.behaviour = Behaviour(tokens=6, death=Death.MIDWAY, hold_before_death=dies)
    payment = shop.payment()
    async with shop.open(payment, chat(stream=True)) as response:
        assert b"Hello" in await response.content.readany()
        dies.set()
        with pytest.raises(aiohttp.ClientError):
            await response.read()
        sale_id = response.headers["X-Obol-Receipt"].removeprefix("/receipts/")
    await shop.receipt_in("settled", sale_id, delivery="broken_by_upstream")
    assert (await shop.again(payment)).reason == "payment_used"


async def test_ten_requests_with_one_payment_buy_one_answer(shop: Shop) -> None:
    go = asyncio.Event()
    shop.upstream.behaviour = Behaviour(hold_before_head=go)
    payment = shop.payment()
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(shop.post(payment)) for _ in range(10)]
        await shop.upstream.wait_until(lambda: shop.upstream.in_flight == 1)
        while sum(task.done() for task in asked) < 9:
            await asyncio.wait([task for task in asked if not task.done()], return_when=asyncio.FIRST_COMPLETED)
        go.set()
    answers = [task.result() for task in asked]
    assert sorted(answer.status for answer in answers) == [200] + [409] * 9
    assert {answer.reason for answer in answers if answer.status == 409} == {"payment_in_use"}
    assert len(shop.upstream.calls) == 1
    await shop.until_states("settled")
    assert await shop.earned_atomic() == PRICE_ATOMIC


@BOTH
@EITHER_POLICY
async def test_a_used_payment_gets_its_receipt_and_no_quote(
    make_shop: MakeShop, stream: bool, settlement: SettlementPolicy
) -> None:
    shop = await make_shop(settlement=settlement)
    answer = await shop.pay(chat(stream=stream))
    await shop.receipt_in("settled", answer)
    again = await shop.again(answer.payment, chat(stream=stream))
    assert (again.status, again.reason, again.sale_id) == (409, "payment_used", answer.sale_id)
    assert not again.asks_for_money
    assert len(shop.upstream.calls) == 1


async def test_a_used_nonce_that_is_signed_once_more_for_ever_buys_nothing(make_shop: MakeShop) -> None:
    """No ledger can hold such a time, and none has to: the nonce has bought its answer."""
    wallet = account()
    shop = await make_shop(signer=LocalSigner(bytes(wallet.key)))
    until_s = int(shop.clock.now_s()) + 200
    first = pay(shop.requirements, wallet, nonce="0x" + "12" * 32, validBefore=until_s)
    assert (await shop.post(payment_headers(first, 2))).status == 200
    await shop.until_finished()
    for late_s in (2**62 - 1, 2**63, 2**255):
        second = pay(shop.requirements, wallet, nonce="0x" + "12" * 32, validBefore=late_s)
        assert (await shop.post(payment_headers(second, 2))).reason == "payment_used"
    assert await shop.states() == ["settled"]


@EITHER_POLICY
async def test_a_restart_forgets_no_payment(make_shop: MakeShop, settlement: SettlementPolicy) -> None:
    shop = await make_shop(settlement=settlement)
    answer = await shop.pay()
    await shop.restart()
    again = await shop.again(answer.payment)
    assert (again.status, again.sale_id) == (409, answer.sale_id)
    assert (await shop.receipt(answer))["state"] == "settled"


@pytest.mark.parametrize("process", [False, True], ids=["one process", "two processes"])
async def test_two_gateways_on_one_ledger_serve_a_payment_once(shop: Shop, tmp_path: Path, process: bool) -> None:
    async with Shop(tmp_path, process=process, upstream=shop.upstream, signer=shop.signer, name="other") as other:
        payment = shop.payment()
        answers = await asyncio.gather(*(place.post(payment) for place in (shop, other) * 5))
        assert sorted(answer.status for answer in answers) == [200] + [409] * 9
    await shop.until_states("settled")
    assert (len(shop.upstream.calls), await shop.earned_atomic()) == (1, PRICE_ATOMIC)


async def test_a_payment_of_one_offer_is_used_at_another_of_the_same_price(shop: Shop, tmp_path: Path) -> None:
    async with Shop(tmp_path, upstream=shop.upstream, signer=shop.signer, name="other") as other:
        answer = await shop.pay()
        again = await other.again(answer.payment)
        assert (again.status, again.reason, again.sale_id) == (409, "payment_used", answer.sale_id)


async def test_the_upstream_gets_no_payment_and_no_credential(shop: Shop) -> None:
    secrets = {"Authorization": "Bearer buyers-own", "Cookie": "a=b", "X-Api-Key": "k", "X-Forwarded-For": "10.0.0.1"}
    for version in (1, 2):
        answer = await shop.post(shop.payment(version=version) | secrets)
        assert answer.status == 200
    for call in shop.upstream.calls:
        names = {name.lower() for name, _ in call.headers}
        assert names <= {"host", "content-type", "content-length", "accept", "x-request-id"}
        assert b"payment" not in call.body


async def test_the_sellers_own_credential_goes_to_the_upstream_only(make_shop: MakeShop) -> None:
    shop = await make_shop(upstream_authorization="Bearer sellers-own")
    answer = await shop.pay()
    assert shop.upstream.calls[0].header("Authorization") == "Bearer sellers-own"
    assert b"sellers-own" not in answer.body
    assert "sellers-own" not in str(answer.headers) + str(shop.logged)


async def test_the_upstreams_own_headers_stay_inside(shop: Shop) -> None:
    shop.upstream.behaviour = Behaviour(headers={"Server": "vllm", "X-Internal-Host": "gpu-7", "Set-Cookie": "s=1"})
    for stream in (False, True):
        answer = await shop.pay(chat(stream=stream))
        assert "gpu-7" not in str(answer.headers)
        assert "Set-Cookie" not in answer.headers
        assert answer.headers["Server"] != "vllm"


async def test_receipts_and_logs_hold_no_payment_and_no_prompt(shop: Shop) -> None:
    payload = shop.sign()
    answer = await shop.pay()
    shop.upstream.script = [Behaviour(death=Death.BEFORE_HEAD), Behaviour(status=500)]
    answers = [answer, await shop.pay(), await shop.pay(), await shop.post(answer.payment)]
    receipts = [await shop.receipt(one) for one in answers if "X-Obol-Receipt" in one.headers]
    rows = await shop.ledger_rows()
    signatures = [row["payload"].split(b'"signature":"')[1].split(b'"')[0].decode() for row in rows]
    assert all(len(signature) == 132 for signature in signatures)
    told = str(receipts) + str(shop.logged) + "".join(str(one.headers) + one.body.decode() for one in answers)
    assert not any(signature in told for signature in [*signatures, payload.payload.signature])
    assert PROMPT not in told
    assert "signature" not in str(receipts)
    assert shop.upstream.url not in told


async def test_verify_only_serves_once_and_never_settles(make_shop: MakeShop) -> None:
    shop = await make_shop(verify_only=True)
    for stream in (False, True):
        answer = await shop.pay(chat(stream=stream))
        assert (answer.status, answer.settlement) == (200, "verify-only")
        receipt = await shop.receipt_in("waived", answer, delivery="complete")
        assert (receipt["verifyOnly"], receipt["paid"], receipt["settledAtomic"]) == (True, False, "0")
        assert (await shop.again(answer.payment, chat(stream=stream))).reason == "payment_used"
    assert await shop.transfers() == []
    assert len(shop.upstream.calls) == 2


async def test_without_a_gate_nothing_is_asked_for_and_nothing_is_recorded(make_shop: MakeShop) -> None:
    shop = await make_shop(no_payment_gate=True, pay_to="")
    answer = await shop.post()
    assert (answer.status, "X-Obol-Receipt" in answer.headers) == (200, False)
    assert await shop.ledger_rows() == []


async def test_every_api_is_sold(make_shop: MakeShop) -> None:
    shop = await make_shop()
    bodies: dict[str, Json] = {
        "/v1/completions": {"model": MODEL, "prompt": "hi"},
        "/v1/embeddings": {"model": MODEL, "input": ["hi"]},
        "/v1/responses": {"model": MODEL, "input": "hi"},
    }
    for path, body in bodies.items():
        answer = await shop.pay(body, path=path)
        assert answer.status == 200, path
        await shop.receipt_in("settled", answer, delivery="complete")
    assert await shop.earned_atomic() == 3 * PRICE_ATOMIC


async def test_a_queue_that_outlasts_the_payment_leaves_it_unused(make_shop: MakeShop) -> None:
    clock = FakeClock()
    shop = await make_shop(clock=clock, max_inflight=1, max_queue_depth=1, max_timeout_s=300)
    first = asyncio.Event()
    shop.upstream.script = [Behaviour(hold_before_head=first)]
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(shop.pay(now_s=clock.now_s() + 60))
        await shop.upstream.wait_until(lambda: shop.upstream.in_flight == 1)
        waiting = tasks.create_task(shop.pay())
        await shop.until_status(queued=1)
        clock.advance(295)
        first.set()
    assert serving.result().status == 200
    late = waiting.result()
    assert late.status == 402
    assert "expired" in late.challenge.error
    await shop.until_states("settled", "released")
    assert len(shop.upstream.calls) == 1
