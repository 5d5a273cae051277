"""Attacks, races and accidents around one payment, against a whole gateway over sockets."""

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from obol import GatewayConfig
from obol.core.offer import SettlementPolicy
from obol.errors import SettingsError
from obol.gateway.settings import checked, offer_of
from obol.x402.client import payment_headers
from tests.attacks.forging import JUNK, SAME, UNWANTED, high_s, v1, v2, wire, with_signature
from tests.fakes.facilitator import Lie, SlowSettle
from tests.fakes.model_server import Behaviour
from tests.gateway.fixtures import MakeShop
from tests.gateway.shop import MODEL, PRICE_ATOMIC, SELLER, Shop, chat


@pytest.mark.parametrize("name", SAME)
async def test_the_same_authorization_in_other_bytes_is_the_same_payment(shop: Shop, name: str) -> None:
    value = wire(shop)
    assert (await shop.post(SAME[name](value))).status == 200
    for form in SAME.values():
        again = await shop.again(form(value))
        assert (again.status, again.reason, again.asks_for_money) == (409, "payment_used", False)
    assert (len(shop.upstream.calls), await shop.earned_atomic()) == (1, PRICE_ATOMIC)


async def test_all_forms_of_one_authorization_at_once_buy_one_stream(shop: Shop) -> None:
    value = wire(shop)
    answers = await asyncio.gather(*(shop.post(form(value), chat(stream=True)) for form in SAME.values()))
    assert sorted(answer.status for answer in answers) == [200] + [409] * (len(SAME) - 1)
    await shop.until_states("settled")
    assert (len(shop.upstream.calls), await shop.earned_atomic()) == (1, PRICE_ATOMIC)


async def test_the_same_header_ten_times_at_once_is_served_once(shop: Shop) -> None:
    payment = shop.payment()
    answers = await asyncio.gather(*(shop.post(payment) for _ in range(10)))
    assert sorted(answer.status for answer in answers) == [200] + [409] * 9
    assert not any(answer.asks_for_money for answer in answers)
    assert (len(shop.upstream.calls), await shop.earned_atomic()) == (1, PRICE_ATOMIC)


async def test_a_replay_meets_its_receipt_across_restarts_and_offers(shop: Shop, tmp_path: Path) -> None:
    answer = await shop.pay()
    await shop.restart(name="renamed")
    async with Shop(tmp_path, upstream=shop.upstream, signer=shop.signer, name="another") as another:
        for place in (shop, another):
            again = await place.post(answer.payment)
            assert (again.status, again.sale_id, again.asks_for_money) == (409, answer.sale_id, False)
    assert await shop.earned_atomic() == PRICE_ATOMIC


async def test_the_high_s_twin_of_a_signature_buys_nothing(shop: Shop) -> None:
    value = wire(shop)
    twin = await shop.post(v2(with_signature(value, high_s)))
    assert (twin.status, shop.upstream.calls) == (402, [])
    assert (await shop.post(v2(value))).status == 200
    assert (await shop.post(v2(with_signature(value, high_s)))).status == 402
    assert len(shop.upstream.calls) == 1


async def test_two_different_payments_in_one_request_buy_nothing(shop: Shop) -> None:
    one, other = wire(shop), wire(shop)
    for headers in (v1(one) | v2(other), v1(other) | v2(one)):
        answer = await shop.post(headers)
        assert (answer.status, answer.reason, answer.asks_for_money) == (400, "malformed_payment", False)
    assert await shop.ledger_rows() == []
    assert (await shop.post(v2(one))).status == 200


@pytest.mark.parametrize("name", ["PAYMENT-SIGNATURE", "X-PAYMENT"])
async def test_a_header_that_is_there_twice_or_merged_buys_nothing(shop: Shop, name: str) -> None:
    (value,) = shop.payment().values()
    (other,) = shop.payment().values()
    body = json.dumps(chat()).encode()
    for lines in (f"{name}: {value}\r\n{name}: {value}\r\n", f"{name}: {value}\r\n{name.lower()}: {other}\r\n"):
        status = await raw_status(shop, lines, body)
        assert status == 400
    for merged in (f"{value},{value}", f"{value}, {other}", f"{value},"):
        assert (await shop.post({name: merged})).status == 400
    assert await shop.ledger_rows() == []


async def raw_status(shop: Shop, lines: str, body: bytes) -> int:
    host, port = shop.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n{lines}\r\n"
    writer.write(head.encode() + body)
    status = int((await reader.readline()).split()[1])
    writer.close()
    await writer.wait_closed()
    return status


@pytest.mark.parametrize("name", JUNK)
async def test_junk_is_refused_and_claims_nothing(shop: Shop, name: str) -> None:
    value = wire(shop)
    for header in ("PAYMENT-SIGNATURE", "X-PAYMENT"):
        junk = JUNK[name](value)
        answer = await shop.post({header: junk})
        assert (answer.status, answer.reason, answer.asks_for_money) == (400, "malformed_payment", False)
        assert not junk or len(junk) < 8 or junk not in answer.body.decode()
    assert (await shop.ledger_rows(), shop.upstream.calls) == ([], [])
    assert not any("exception" in line for line in shop.logged)
    assert (await shop.post(v2(value))).status == 200


@pytest.mark.parametrize("name", UNWANTED)
async def test_a_payment_that_was_tampered_with_buys_nothing(shop: Shop, name: str) -> None:
    value = wire(shop)
    answer = await shop.post(v2(UNWANTED[name](value)))
    assert answer.status == 402
    assert (await shop.ledger_rows(), shop.upstream.calls) == ([], [])
    assert (await shop.post(v2(value))).status == 200


@pytest.mark.parametrize("settlement", [SettlementPolicy.ON_OUTPUT, SettlementPolicy.BEFORE])
async def test_funds_moved_between_verify_and_settle_buy_no_plain_answer(
    make_shop: MakeShop, settlement: SettlementPolicy
) -> None:
    shop = await make_shop(settlement=settlement)
    head = asyncio.Event()
    shop.upstream.behaviour = Behaviour(hold_before_head=head)
    payment = shop.payment()
    if settlement is SettlementPolicy.BEFORE:
        await shop.move_funds_away()
        head.set()
        answer = await shop.post(payment)
        assert shop.upstream.calls == []
    else:
        async with asyncio.TaskGroup() as tasks:
            buying = tasks.create_task(shop.post(payment))
            await shop.upstream.wait_until(lambda: shop.upstream.in_flight == 1)
            await shop.move_funds_away()
            head.set()
        answer = buying.result()
    assert answer.status == 402
    assert b"Hello" not in answer.body
    assert await shop.states() == ([] if settlement is SettlementPolicy.BEFORE else ["settle_failed"])


async def test_funds_moved_away_buy_no_more_than_the_bound_under_after(make_shop: MakeShop) -> None:
    """Ten answers at once on an empty account: two prices may be owed, and the first no removes all trust."""
    shop = await make_shop(settlement=SettlementPolicy.AFTER, standing_after=1, max_unsettled="0.02", max_inflight=10)
    assert (await shop.pay()).status == 200
    await shop.until_states("settled")
    head = asyncio.Event()
    shop.upstream.behaviour = Behaviour(hold_before_head=head)
    async with asyncio.TaskGroup() as tasks:
        buying = [tasks.create_task(shop.pay()) for _ in range(10)]
        await shop.upstream.wait_until(lambda: shop.upstream.in_flight == 10)
        await shop.move_funds_away()
        head.set()
    served = [task.result() for task in buying if task.result().status == 200]
    assert len(served) <= 2
    await shop.until_states("settled", *["settle_failed"] * 10)
    shop.upstream.behaviour = Behaviour()
    await shop.fund(shop.signer)
    assert (await shop.pay()).headers["X-Obol-Settlement"] == "settled"


async def test_funds_moved_between_verify_and_settle_cut_a_stream(shop: Shop) -> None:
    head, never = asyncio.Event(), asyncio.Event()
    shop.upstream.behaviour = Behaviour(hold_before_head=head, hold_between_tokens=never)
    async with asyncio.TaskGroup() as tasks:
        buying = tasks.create_task(shop.pay(chat(stream=True)))
        await shop.upstream.wait_until(lambda: shop.upstream.in_flight == 1)
        await shop.move_funds_away()
        head.set()
    answer = buying.result()
    assert b"settlement_failed" in answer.body
    assert b"[DONE]" not in answer.body
    await shop.until_states("settle_failed")


async def test_an_observer_who_settles_first_takes_nothing_from_the_buyer(make_shop: MakeShop) -> None:
    """Money moved to us by somebody else's submission of the same authorization is still this buyer's payment."""
    shop = await make_shop(facilitator=True, retry_schedule_s=(0.01,))
    head = asyncio.Event()
    shop.upstream.script = [Behaviour(hold_before_head=head)]
    payload = shop.sign()
    async with asyncio.TaskGroup() as tasks:
        buying = tasks.create_task(shop.post(payment_headers(payload, 2)))
        await shop.upstream.wait_until(lambda: shop.upstream.in_flight == 1)
        await shop.facilitator.inner.settle(payload, shop.requirements)
        head.set()
    assert buying.result().status == 200
    assert await shop.earned_atomic() == PRICE_ATOMIC


@pytest.mark.parametrize("lie", [Lie(transaction=""), Lie(network="eip155:1"), Lie(payer="0x" + "77" * 20)])
async def test_a_facilitator_that_lies_carelessly_is_not_believed(make_shop: MakeShop, lie: Lie) -> None:
    shop = await make_shop(facilitator=True)
    shop.facilitator.behaviour = lie
    answer = await shop.pay()
    assert (answer.status, answer.reason) == (503, "settlement_unknown")
    assert b"Hello" not in answer.body


async def test_another_buyer_cannot_take_an_owed_answer(make_shop: MakeShop) -> None:
    shop = await make_shop(settlement=SettlementPolicy.BEFORE)
    shop.upstream.script = [Behaviour(status=500)]
    value = wire(shop)
    assert (await shop.post(v2(value))).status == 500
    assert await shop.states() == ["owed"]
    for forged in (with_signature(value, high_s), with_signature(value, lambda _: b"\x01" * 65)):
        assert (await shop.post(v2(forged))).status == 402
    assert await shop.states() == ["owed"]
    assert (await shop.post(v2(value))).status == 200


async def test_one_payment_does_not_pay_for_another_resource_at_the_same_time(shop: Shop) -> None:
    payment = shop.payment()
    embeddings = shop.post(payment, {"model": MODEL, "input": "a"}, path="/v1/embeddings")
    answers = await asyncio.gather(shop.post(payment), embeddings, shop.post(payment, chat(stream=True)))
    assert sorted(answer.status for answer in answers) == [200, 409, 409]


async def test_a_payment_in_the_query_or_body_is_no_payment(shop: Shop) -> None:
    (header,) = shop.payment().values()
    answer = await shop.post({}, chat(payment=header), path=f"/v1/chat/completions?PAYMENT-SIGNATURE={header}")
    assert answer.status == 402


async def test_paid_answers_and_quotes_are_kept_by_no_cache(shop: Shop) -> None:
    quoted, paid = await shop.post(), await shop.pay()
    again = await shop.post(paid.payment)
    assert quoted.headers["Cache-Control"] == "no-store"
    assert paid.headers["Cache-Control"] == "private, no-store"
    assert again.headers["Cache-Control"] == "no-store"
    assert (await shop.get(paid.headers["X-Obol-Receipt"])).headers["Cache-Control"] == "no-store"


async def test_a_slow_settlement_does_not_let_the_payment_in_again(make_shop: MakeShop) -> None:
    shop = await make_shop(facilitator=True)
    shop.facilitator.behaviour = SlowSettle()
    payment = shop.payment()
    async with shop.open(payment, chat(stream=True)) as response:
        await response.read()
        await shop.facilitator.settle_arrived.wait()
        again = await shop.post(payment)
        assert (again.status, again.reason, again.asks_for_money) == (409, "payment_in_use", False)
        shop.facilitator.release.set()
    await shop.until_states("settled")


async def test_a_locked_ledger_sells_nothing_and_spends_nothing(shop: Shop) -> None:
    payment = shop.payment()
    with closing(sqlite3.connect(shop.ledger_file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        answer = await shop.post(payment)
        assert (answer.status, answer.reason, answer.asks_for_money) == (503, "ledger_unavailable", False)
        assert "locked" not in answer.body.decode()
        assert shop.upstream.calls == []
        other.execute("ROLLBACK")
    assert (await shop.post(payment)).status == 200
    assert await shop.earned_atomic() == PRICE_ATOMIC


@pytest.mark.parametrize("price", ["0,01", "abc", "-1", "1e-9", "0x10", "0", "0.0000001", "", " 1", "1.", "NaN", "∞"])
def test_a_price_that_is_no_price_is_refused_at_start(price: str) -> None:
    config = GatewayConfig(upstream_url="http://127.0.0.1:1", pay_to=SELLER, price=price)
    with pytest.raises(SettingsError) as caught:
        offer_of(checked(config), (MODEL,))
    assert caught.value.field == "--price"
