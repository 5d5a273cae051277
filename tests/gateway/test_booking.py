"""Booking: what the ledger could not say that it recorded is recorded, once, and nothing of it is lost."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
import structlog

from obol.adapters.ledger_sqlite import SqliteLedger
from obol.adapters.metrics import Metrics
from obol.core.ledger import NO_CHANGE, Change
from obol.core.networks import DEFAULT_CATALOGUE
from obol.core.offer import SettlementPolicy
from obol.core.payment import Event, State
from obol.core.sale import Delivery, Sale
from obol.core.usage import UNKNOWN_USAGE, Usage
from obol.errors import IllegalTransitionError
from obol.gateway.booking import Entry, book_late
from obol.gateway.ports import Ports
from obol.x402.facilitator import Settlement, SettleOutcome
from tests.adapters.sales import claimed_in
from tests.fakes.clock import FakeClock
from tests.fakes.facilitator import BadGateway, MakeBelieve, Ok
from tests.fakes.model_server import Behaviour as Answering
from tests.gateway.failing_ledger import FailingLedger, Fault
from tests.gateway.fixtures import MakeShop
from tests.gateway.shop import PRICE_ATOMIC, Shop, chat, eventually
from tests.gateway.test_settling import buy_with

QUICK_S = (0.01,)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("stream", [False, True])
async def test_the_step_to_settling_is_taken_once_and_the_money_asked_for(
    make_shop: MakeShop, stream: bool, recorded: bool
) -> None:
    """The answer was handed over: a gateway that never asks has given it away."""
    ledger = FailingLedger()
    shop = await make_shop(wrap_ledger=ledger.wrap, retry_schedule_s=QUICK_S, settlement=SettlementPolicy.AFTER)
    ledger.faults = [Fault("record", Event.SETTLE, recorded=recorded, times=2)]
    answer = await shop.pay(chat(stream=stream))
    assert answer.status == 200
    receipt = await shop.receipt_in("settled", answer, delivery="complete")
    assert stream or receipt["usage"]["outputTokens"]
    assert await shop.earned_atomic() == PRICE_ATOMIC
    assert bugs(shop) == []


@pytest.mark.parametrize("recorded", [False, True])
async def test_a_settlement_known_before_the_answer_has_left_keeps_its_delivery(
    make_shop: MakeShop, recorded: bool
) -> None:
    """A payer with standing who reads slowly; the money comes meanwhile, and cannot be recorded at once."""
    ledger = FailingLedger()
    shop = await make_shop(wrap_ledger=ledger.wrap, retry_schedule_s=(0.3,), max_unsettled="1", standing_after=1)
    assert (await shop.pay()).status == 200
    await shop.until_finished()
    shop.upstream.behaviour = Answering(tokens=5, words=("x" * 4_000_000,))
    ledger.faults = [Fault("record", Event.SETTLED_UNDELIVERED, recorded=recorded)]
    async with shop.open(shop.payment(), chat()) as response:
        await eventually(lambda: "settlement_not_recorded" in events(shop), "the fault is met")
        assert await response.read()
        sale_id = response.headers["X-Obol-Receipt"].removeprefix("/receipts/")
    receipt = await shop.receipt_in("settled", sale_id, delivery="complete")
    assert receipt["usage"]["outputTokens"]
    assert bugs(shop) == []


@pytest.mark.parametrize("recorded", [False, True])
async def test_a_late_settlement_whose_record_is_lost_is_recorded_once(make_shop: MakeShop, recorded: bool) -> None:
    ledger = FailingLedger()
    shop = await make_shop(
        facilitator=True, retry_schedule_s=QUICK_S, settlement=SettlementPolicy.BEFORE, wrap_ledger=ledger.wrap
    )
    ledger.faults = [Fault("record", Event.SETTLED_UNDELIVERED, recorded=recorded, times=2)]
    answer = await buy_with(shop, BadGateway(after_settling=True))
    shop.facilitator.behaviour = Ok()
    await shop.receipt_in("owed", answer)
    assert (await shop.post(answer.payment)).status == 200
    await shop.until_states("settled")
    assert bugs(shop) == []


def bugs(shop: Shop) -> list[str]:
    """The kinds of the errors that nobody foresaw."""
    return [line["error"] for line in shop.logged if line["event"] == "settler_failed"]


def events(shop: Shop) -> list[str]:
    return [line["event"] for line in shop.logged]


class Hurried(FailingLedger):
    """A ledger that takes its time, until `may_go_on`, to record how far an answer got."""

    def __init__(self) -> None:
        super().__init__()
        self.may_go_on = asyncio.Event()

    async def record(
        self, sale_id: str, events: Sequence[Event], change: Change = NO_CHANGE, *, attempt: str | None = None
    ) -> Sale:
        if not events:
            await self.may_go_on.wait()
        return await super().record(sale_id, events, change, attempt=attempt)


async def test_a_row_that_is_settled_says_that_something_was_handed_over_from_the_first(make_shop: MakeShop) -> None:
    """Were the gateway killed here, nobody would ever write it down."""
    ledger = Hurried()
    shop = await make_shop(wrap_ledger=ledger.wrap, retry_schedule_s=QUICK_S)
    shop.upstream.behaviour = Answering(tokens=3, hold_between_tokens=(rest := asyncio.Event()))
    async with shop.open(shop.payment(), chat(stream=True)) as response:
        await response.content.readany()
        await shop.until_states("settled")
        assert [row["delivery"] for row in await shop.ledger_rows()] == ["started"]
        ledger.may_go_on.set()
        rest.set()
        await response.read()
        sale_id = response.headers["X-Obol-Receipt"].removeprefix("/receipts/")
    await shop.receipt_in("settled", sale_id, delivery="complete")


async def test_what_the_ledger_cannot_keep_of_the_usage_does_not_keep_the_sale_from_its_end(tmp_path: Path) -> None:
    """An upstream whose counter underflowed."""
    ledger = await SqliteLedger.open(tmp_path / "ledger.sqlite", FakeClock())
    try:
        sale = await claimed_in(ledger, State.REDEEMING)
        entry = Entry(ledger, sale, [Event.OUTPUT], Change(delivery=Delivery.COMPLETE, usage=Usage(1, 2**64 - 1)))
        with pytest.raises(OverflowError):
            await entry.record()

        recorded = await entry.record()

        assert (recorded.state, recorded.delivery, recorded.usage) == (State.SETTLED, Delivery.COMPLETE, UNKNOWN_USAGE)
    finally:
        await ledger.close()


@pytest.mark.parametrize(
    ("if_late", "state"),
    [
        ([Event.SETTLED], State.SETTLED),
        ([Event.SETTLED_UNDELIVERED], State.OWED),
        ([Event.SETTLED_UNDELIVERED, Event.SERVE], State.REDEEMING),
    ],
)
async def test_a_settlement_that_was_recorded_unknowingly_ends_as_its_answer_did(
    tmp_path: Path, if_late: Sequence[Event], state: State
) -> None:
    """It was recorded while the answer was on its way; by now it was handed over, or not, or is still on its way."""
    ledger = await SqliteLedger.open(tmp_path / "ledger.sqlite", FakeClock())
    ports = Ports(ledger, MakeBelieve(), FakeClock(), bytes, Metrics(), structlog.get_logger(), DEFAULT_CATALOGUE)
    try:
        sale = await claimed_in(ledger, State.REDEEMING)
        await book_late(ports, sale, Settlement(SettleOutcome.SETTLED, "0x12"), if_late)
        now = await ledger.sale(sale.id)
        assert now is not None
        assert now.state is state
    finally:
        await ledger.close()


async def test_a_step_that_the_table_has_not_is_a_bug(tmp_path: Path) -> None:
    """Where no earlier try of it was lost."""
    ledger = await SqliteLedger.open(tmp_path / "ledger.sqlite", FakeClock())
    try:
        for state, event in (
            (State.SETTLED, Event.OUTPUT),
            (State.SETTLING, Event.SETTLE),
            (State.OWED, Event.RELEASE),
        ):
            sale = await claimed_in(ledger, state)
            with pytest.raises(IllegalTransitionError):
                await Entry(ledger, sale, [event], Change(delivery=Delivery.COMPLETE)).record()
            assert await ledger.sale(sale.id) == sale
    finally:
        await ledger.close()
