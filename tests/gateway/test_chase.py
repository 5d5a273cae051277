"""The chase: who is asked again, what is believed, and what does not end it."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog

from obol.adapters.ledger_sqlite import SqliteLedger
from obol.adapters.metrics import Metrics
from obol.core.networks import DEFAULT_CATALOGUE
from obol.core.offer import SettlementPolicy
from obol.core.payment import Event, State
from obol.core.sale import Sale
from obol.gateway.ports import Ports
from obol.gateway.settling import DISOWN_BUGS, Settler
from obol.x402.facilitator import Facilitator, Settlement, SettleOutcome
from obol.x402.models import PaymentPayload, PaymentRequirements
from tests.adapters.payments import requirements, unsigned
from tests.adapters.sales import WAY_TO, a_new_sale
from tests.fakes.clock import FakeClock
from tests.fakes.facilitator import MakeBelieve, Ok, RefuseSettle
from tests.gateway.failing_ledger import FailingLedger, Fault
from tests.gateway.fixtures import MakeShop
from tests.gateway.left_behind import leave_behind, new_sale
from tests.gateway.many_tongues import ManyTongues
from tests.gateway.shop import PATIENCE_S, eventually

QUICK_S = (0.01,)


# -------------------------------------------------------------------------------------------------------- a first no


async def test_a_served_sale_that_nobody_was_asked_about_ends_with_the_first_no(make_shop: MakeShop) -> None:
    """Killed between the end of a stream and the first question."""
    shop = await make_shop(facilitator=True, retry_schedule_s=QUICK_S, settlement=SettlementPolicy.AFTER)
    await shop.stop()
    sale = new_sale(shop)
    await leave_behind(shop, sale, events=[Event.SERVE, Event.OUTPUT])
    shop.facilitator.behaviour = RefuseSettle("insufficient_funds")
    await shop.start()
    await shop.until_states("settle_failed")
    assert [row["delivery"] for row in await shop.ledger_rows()] == ["complete"]
    assert len(shop.facilitator.settle_asked) == 1


async def test_an_ask_that_never_left_is_no_lost_answer(make_shop: MakeShop) -> None:
    """The facilitator was being restarted. A no that comes then is the first that is said of this payment."""
    shop = await make_shop(facilitator=True, retry_schedule_s=QUICK_S, settlement=SettlementPolicy.BEFORE)
    assert (await shop.pay()).status == 200  # who has paid once is not verified first
    await shop.until_states("settled")
    await shop.facilitator.stop()
    answer = await shop.pay()
    assert (answer.status, answer.asks_for_money) == (503, False)
    shop.facilitator.behaviour = RefuseSettle("insufficient_funds")
    await shop.facilitator.start()
    await shop.until_states("settled", "settle_failed")


# --------------------------------------------------------------------------------------------------- a settler alone


class Stumbling(MakeBelieve):
    """A facilitator that raises, against its port, the first `times` that it is asked; the money moves all the same."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times
        self.asked = 0

    async def settle(self, payload: PaymentPayload, requirements: PaymentRequirements) -> Settlement:
        settlement = await super().settle(payload, requirements)
        self.asked += 1
        if self.asked <= self.times:
            raise RuntimeError("nobody foresaw this")
        return settlement


class Alone:
    """A settler without a gateway, and its ledger; `logged` is what it says."""

    def __init__(self, ledger: SqliteLedger, facilitator: Facilitator) -> None:
        self.ledger = ledger
        self.clock = FakeClock()
        self.failing = FailingLedger()
        self.logged: list[dict[str, Any]] = []
        log = structlog.wrap_logger(None, processors=[self._note])
        ports = Ports(
            self.failing.wrap(ledger), facilitator, self.clock, secrets.token_bytes, Metrics(), log, DEFAULT_CATALOGUE
        )
        self.settler = Settler(ports, QUICK_S)

    def _note(self, _logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        self.logged.append(dict(event))
        raise structlog.DropEvent

    @property
    def bugs(self) -> list[str]:
        return [line["error"] for line in self.logged if line["event"] == "settler_failed"]

    async def sale_in(self, state: State) -> Sale:
        payment = unsigned(wanted := requirements())
        new = replace(a_new_sale(), payload=msgspec.json.encode(payment), requirements=msgspec.json.encode(wanted))
        await self.ledger.claim(new)
        return await self.ledger.record(new.id, WAY_TO[state])

    async def until(self, sale: Sale, state: State) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while (now := await self.ledger.sale(sale.id)) is None or now.state is not state:  # noqa: ASYNC110
                await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def alone(folder: Path, facilitator: Facilitator | None = None) -> AsyncIterator[Alone]:
    ledger = await SqliteLedger.open(folder / "ledger.sqlite", FakeClock())
    one = Alone(ledger, facilitator or MakeBelieve())
    try:
        yield one
    finally:
        await one.settler.drain(1.0)
        await ledger.close()


UNSENT = Settlement(SettleOutcome.UNKNOWN, is_unsent=True)
LOST = Settlement(SettleOutcome.UNKNOWN)
PENDING = Settlement(SettleOutcome.PENDING, "0x12")
NO = Settlement(SettleOutcome.FAILED, reason="insufficient_funds")
PROVEN_NO = replace(NO, is_proven=True)
YES = Settlement(SettleOutcome.SETTLED, "0x12")


@pytest.mark.parametrize(
    ("says", "state"),
    [
        ([UNSENT, NO], State.SETTLE_FAILED),
        ([UNSENT, UNSENT, UNSENT, NO], State.SETTLE_FAILED),
        ([LOST, PROVEN_NO], State.SETTLE_FAILED),
        ([LOST, NO, NO, YES], State.SETTLED),
        ([UNSENT, LOST, NO, NO, YES], State.SETTLED),
        ([UNSENT, PENDING, NO, YES], State.SETTLED),
        ([LOST, UNSENT, NO, YES], State.SETTLED),
        ([PENDING, UNSENT, NO, PROVEN_NO], State.SETTLE_FAILED),
    ],
)
async def test_a_no_is_believed_until_an_ask_has_left(tmp_path: Path, says: Sequence[Settlement], state: State) -> None:
    facilitator = ManyTongues(None, *says)
    facilitator.may_end.set()
    async with alone(tmp_path, facilitator) as one:
        sale = await one.sale_in(State.SETTLING)

        assert await one.settler.settle(sale, lambda _: [Event.SETTLED]) == says[0]

        await one.until(sale, state)
        assert len(facilitator.asked) == len(says)


async def test_a_settlement_that_ends_in_a_bug_is_not_known_and_is_chased(tmp_path: Path) -> None:
    async with alone(tmp_path, Stumbling(times=3)) as one:
        sale = await one.sale_in(State.SETTLING)

        settlement = await one.settler.settle(sale, lambda _: [Event.SETTLED])

        assert settlement.outcome is SettleOutcome.UNKNOWN
        await one.until(sale, State.SETTLED)
        assert one.bugs == ["RuntimeError"] * 3


async def test_a_payload_that_cannot_be_read_is_not_known(tmp_path: Path) -> None:
    async with alone(tmp_path) as one:
        sale = replace(await one.sale_in(State.SETTLING), payload=b"{")

        settlement = await one.settler.settle(sale, lambda _: [Event.SETTLED])

        assert settlement.outcome is SettleOutcome.UNKNOWN
        await one.until(sale, State.SETTLED)  # the ledger's own can be read


@pytest.mark.parametrize("recorded", [False, True])
async def test_an_answer_that_a_bug_kept_from_being_recorded_is_kept(tmp_path: Path, recorded: bool) -> None:
    facilitator = Stumbling(times=0)
    async with alone(tmp_path, facilitator) as one:
        sale = await one.sale_in(State.SETTLING)
        one.failing.faults = [Fault("record", Event.SETTLED, is_bug=True, recorded=recorded, times=3)]

        with pytest.raises(RuntimeError):
            await one.settler.settle(sale, lambda _: [Event.SETTLED])

        await one.until(sale, State.SETTLED)
        assert facilitator.asked == 1


@pytest.mark.parametrize("method", ["sale", "record"])
@pytest.mark.parametrize("is_bug", [False, True])
async def test_nothing_ends_a_chase_but_its_end(tmp_path: Path, method: str, is_bug: bool) -> None:
    async with alone(tmp_path, Stumbling(times=1)) as one:
        sale = await one.sale_in(State.SETTLING)
        assert (await one.settler.settle(sale, lambda _: [Event.SETTLED])).outcome is SettleOutcome.UNKNOWN
        one.failing.faults = [Fault(method, is_bug=is_bug, times=4)]

        await one.until(sale, State.SETTLED)


@pytest.mark.parametrize("state", [State.SETTLING, State.SETTLE_UNKNOWN])
async def test_a_sale_whose_money_nobody_asks_for_is_asked_about_when_it_is_let_go(
    tmp_path: Path, state: State
) -> None:
    """Its serving ended between the record and the asking."""
    async with alone(tmp_path) as one:
        sale = await one.sale_in(state)

        one.settler.let_go(sale, "internal")

        await one.until(sale, State.OWED)


@pytest.mark.parametrize("recorded", [False, True])
async def test_the_first_no_is_believed_where_the_step_before_the_asking_was_lost(
    make_shop: MakeShop, recorded: bool
) -> None:
    """This gateway knows that it has not asked."""
    ledger = FailingLedger()
    shop = await make_shop(
        facilitator=True, retry_schedule_s=QUICK_S, settlement=SettlementPolicy.BEFORE, wrap_ledger=ledger.wrap
    )
    ledger.faults = [Fault("record", Event.SETTLE, recorded=recorded)]
    shop.facilitator.behaviour = RefuseSettle("insufficient_funds")
    answer = await shop.pay()
    assert (answer.status, answer.asks_for_money) == (503, False)
    await shop.until_states("settle_failed" if recorded else "released")


async def test_what_a_dead_gateway_was_settling_may_have_been_asked_about(make_shop: MakeShop) -> None:
    """Also where its taking over failed at first."""
    ledger = FailingLedger()
    shop = await make_shop(facilitator=True, retry_schedule_s=QUICK_S, wrap_ledger=ledger.wrap)
    await shop.stop()
    await leave_behind(shop, new_sale(shop), events=WAY_TO[State.SETTLING])
    ledger.faults = [Fault("record", Event.SETTLE_UNKNOWN, recorded=True)]
    shop.facilitator.behaviour = RefuseSettle("insufficient_funds")
    await shop.start()
    await eventually(lambda: len(shop.facilitator.settle_asked) > 3, "asked again")
    assert await shop.states() == ["settle_unknown"]
    shop.facilitator.behaviour = Ok()
    await shop.until_states("settled")


async def test_a_sale_that_is_let_go_while_its_money_is_asked_for_is_owed_when_that_comes(tmp_path: Path) -> None:
    """It was to be served by whoever asked, and nobody does any more."""
    async with alone(tmp_path) as one:
        sale = await one.sale_in(State.SETTLING)

        settling = one.settler.settle(sale, lambda _: [Event.SETTLED_UNDELIVERED, Event.SERVE])
        one.settler.let_go(sale, "internal")

        assert (await settling).outcome is SettleOutcome.SETTLED
        await one.until(sale, State.OWED)


async def test_a_step_that_comes_to_light_while_a_sale_is_released_is_gone_on_from(tmp_path: Path) -> None:
    """Recorded by a try whose answer was lost, between the look at the sale and its release."""
    async with alone(tmp_path) as one:
        sale = await one.sale_in(State.CLAIMED)
        held_by = one.failing.held_by

        async def look(attempt: str) -> Sale | None:
            seen = await held_by(attempt)
            if seen is not None and seen.state is State.CLAIMED:
                await one.ledger.record(sale.id, WAY_TO[State.SETTLING])
            return seen

        one.failing.held_by = look  # type: ignore[method-assign]
        await one.settler.release(sale, "why")

        await one.until(sale, State.OWED)
        assert one.bugs == []


@pytest.mark.parametrize("is_owed", [False, True])
@pytest.mark.parametrize("recorded", [False, True])
async def test_a_claim_is_taken_back_whatever_goes_wrong(tmp_path: Path, recorded: bool, is_owed: bool) -> None:
    async with alone(tmp_path) as one:
        sale = await one.sale_in(State.OWED if is_owed else State.RELEASED)
        new = replace(a_new_sale(), key=sale.key)
        await one.ledger.claim(new)
        one.failing.faults = [
            Fault("disown", recorded=recorded, times=2),
            Fault("disown", recorded=recorded, is_bug=True, times=2),
        ]

        await one.settler.release(new, "why")

        await eventually(lambda: not any(fault.times for fault in one.failing.faults), "tried")
        await one.settler.drain(5.0)
        held = await one.ledger.find(sale.key)
        assert (held and held.state) == (State.OWED if is_owed else None)


async def test_what_expired_long_ago_is_asked_about_ever_more_rarely(tmp_path: Path) -> None:
    facilitator = Stumbling(times=10**6)
    async with alone(tmp_path, facilitator) as one:
        sale = await one.sale_in(State.SETTLING)
        one.clock.advance(300 + 20 * 3600)
        await one.settler.settle(sale, lambda _: [Event.SETTLED])
        await eventually(lambda: facilitator.asked == 2, "asked at first")
        for asked in (3, 4):
            await asyncio.sleep(0.05)  # some tries
            one.clock.advance(3000)
            await asyncio.sleep(0.05)
            assert facilitator.asked == asked - 1
            one.clock.advance(3000)
            await eventually(partial(asked_times, facilitator, asked), "asked again")


def asked_times(facilitator: Stumbling, times: int) -> bool:
    return facilitator.asked == times


async def test_a_claim_that_no_ledger_can_hold_is_not_tried_to_be_taken_back_for_ever(tmp_path: Path) -> None:
    """Else each request of a buyer who finds such a payment would leave a task behind."""
    async with alone(tmp_path) as one:
        new = replace(a_new_sale(), valid_before_s=2**200)

        await one.settler.release(new, "why")
        await one.settler.drain(PATIENCE_S)

        assert one.bugs == ["OverflowError"] * DISOWN_BUGS
