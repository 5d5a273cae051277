"""What a payer may have under way at once."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obol.adapters.clock import SystemClock
from obol.adapters.in_flight import BALANCE_AGE_S, Account, Claim, InFlight
from tests.fakes.clock import FakeClock

LATER_S = 2e9


class Money:
    """A payer's: how often it was read, and which of the payments that were sent have ended."""

    def __init__(self, amount_atomic: int) -> None:
        self.amount_atomic = amount_atomic
        self.times = 0
        self.ended: set[str] = set()

    def account(self) -> Account:
        return Account(self._balance, self._has_ended)

    async def _balance(self) -> int:
        self.times += 1
        return self.amount_atomic

    async def _has_ended(self, key: str) -> bool:
        return key in self.ended


def claim(key: str, amount_atomic: int = 10, *, is_alone: bool = False, until_s: float = LATER_S) -> Claim:
    return Claim("payer", key, amount_atomic, until_s, is_alone=is_alone)


async def test_the_first_payment_goes_ahead_and_asks_nothing() -> None:
    money = Money(0)
    assert await InFlight(SystemClock()).enter(claim("a"), money.account(), wait_s=0.01)
    assert money.times == 0


async def test_more_goes_ahead_as_far_as_the_money_goes_and_it_is_read_once() -> None:
    in_flight, money = InFlight(SystemClock()), Money(35)
    entered = [await in_flight.enter(claim(key), money.account(), wait_s=0.01) for key in "abc"]
    assert entered == [True, True, True]
    assert money.times == 1
    assert not await in_flight.enter(claim("d"), money.account(), wait_s=0.01)


async def test_payers_do_not_wait_for_each_other() -> None:
    in_flight, money = InFlight(SystemClock()), Money(10)
    assert await in_flight.enter(claim("a"), money.account(), wait_s=0.01)
    assert await in_flight.enter(Claim("another", "b", 10, LATER_S), money.account(), wait_s=0.01)


@pytest.mark.parametrize("is_paid", [True, False])
async def test_who_waits_goes_on_when_another_has_ended(is_paid: bool) -> None:
    in_flight, money = InFlight(SystemClock()), Money(10)
    await in_flight.enter(claim("a"), money.account(), wait_s=0.01)
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(in_flight.enter(claim("b"), money.account(), wait_s=5))
        await asyncio.sleep(0)
        assert not waiting.done()
        in_flight.leave("payer", "a", is_paid=is_paid)
    assert waiting.result()


async def test_what_was_sent_and_nobody_asks_about_any_more_does_not_hold_others_up() -> None:
    """A payer could hold its money up for ever by a payment to itself that it never asks about again."""
    in_flight, money = InFlight(SystemClock()), Money(10)
    assert await in_flight.enter(claim("a"), money.account(), wait_s=0.01)
    in_flight.is_sent("payer", "a")
    assert not await in_flight.enter(claim("b"), money.account(), wait_s=0.01)
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(in_flight.enter(claim("b"), money.account(), wait_s=5))
        await asyncio.sleep(0)
        money.ended.add("a")
    assert waiting.result()


@pytest.mark.parametrize("first", [True, False])
async def test_what_must_be_alone_is(first: bool) -> None:
    in_flight, money = InFlight(SystemClock()), Money(1000)
    assert await in_flight.enter(claim("a", is_alone=first), money.account(), wait_s=0.01)
    assert not await in_flight.enter(claim("b", is_alone=not first), money.account(), wait_s=0.01)


async def test_what_was_not_paid_makes_room_for_another() -> None:
    in_flight, money = InFlight(SystemClock()), Money(20)
    for key in "ab":
        assert await in_flight.enter(claim(key), money.account(), wait_s=0.01)
    in_flight.leave("payer", "b", is_paid=False)
    assert await in_flight.enter(claim("c"), money.account(), wait_s=0.01)
    assert money.times == 1


async def test_a_balance_is_read_again_after_a_while() -> None:
    clock, money = FakeClock(), Money(100)
    in_flight = InFlight(clock)
    for key in "ab":
        await in_flight.enter(claim(key), money.account(), wait_s=0.01)
    clock.advance(BALANCE_AGE_S)
    await in_flight.enter(claim("c"), money.account(), wait_s=0.01)
    assert money.times == 2


async def test_what_has_expired_is_not_under_way() -> None:
    clock, money = FakeClock(), Money(10)
    in_flight = InFlight(clock)
    await in_flight.enter(claim("a", until_s=clock.now_s() + 5), money.account(), wait_s=0.01)
    clock.advance(6)
    assert await in_flight.enter(claim("b"), money.account(), wait_s=0.01)


@given(st.integers(0, 100), st.lists(st.integers(1, 40), min_size=2, max_size=12))
def test_what_is_under_way_beside_others_is_covered(balance_atomic: int, amounts_atomic: list[int]) -> None:
    async def enter_all() -> list[bool]:
        in_flight = InFlight(SystemClock())
        claims = [claim(str(number), amount) for number, amount in enumerate(amounts_atomic)]
        money = Money(balance_atomic)
        return list(await asyncio.gather(*(in_flight.enter(each, money.account(), wait_s=0.0) for each in claims)))

    entered = asyncio.run(enter_all())
    under_way = [amount for amount, is_in in zip(amounts_atomic, entered, strict=True) if is_in]
    assert entered[0]
    assert len(under_way) == 1 or sum(under_way) <= balance_atomic
