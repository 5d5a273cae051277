"""Several facilitators in order: who is asked next, and whose no counts. Over real sockets."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from obol.adapters.facilitator_http import HttpFacilitator
from obol.adapters.facilitator_ring import FacilitatorRing
from obol.errors import FacilitatorUnavailableError, PeerProtocolError
from obol.x402.facilitator import Accepted, Refused, Settlement, SettleOutcome
from tests.adapters.payments import requirements, unsigned
from tests.fakes.clock import FakeClock
from tests.fakes.facilitator import (
    BadGateway,
    Behaviour,
    Drop,
    FakeFacilitator,
    Garbage,
    Ok,
    Pending,
    RefuseSettle,
    RefuseVerify,
    SettleThenHang,
    WrongStatus,
)

WANTED = requirements()
PAID = unsigned(WANTED)


@pytest.fixture
async def fakes() -> AsyncIterator[tuple[FakeFacilitator, FakeFacilitator]]:
    async with FakeFacilitator() as first, FakeFacilitator() as second:
        yield first, second


Fakes = tuple[FakeFacilitator, FakeFacilitator]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def ring(fakes: Fakes, clock: FakeClock) -> AsyncIterator[FacilitatorRing]:
    members = [HttpFacilitator(fake.url, verify_timeout_s=0.5, settle_timeout_s=0.5) for fake in fakes]
    ring = FacilitatorRing(members, clock)
    yield ring
    await ring.close()


def asked(fakes: Fakes) -> tuple[int, int]:
    return len(fakes[0].settle_asked), len(fakes[1].settle_asked)


async def test_the_first_that_answers_verifies(ring: FacilitatorRing, fakes: Fakes) -> None:
    assert await ring.verify(PAID, WANTED) == Accepted(PAID.payer)
    await fakes[0].stop()
    assert isinstance(await ring.verify(PAID, WANTED), Accepted)
    assert (len(fakes[0].verified), len(fakes[1].verified)) == (1, 1)


@pytest.mark.parametrize("broken", [WrongStatus(500), WrongStatus(404), Garbage(), Drop(after_settling=False)])
async def test_who_talks_nonsense_is_passed_over(ring: FacilitatorRing, fakes: Fakes, broken: Behaviour) -> None:
    fakes[0].behaviour = broken
    assert isinstance(await ring.verify(PAID, WANTED), Accepted)


async def test_a_refusal_is_an_answer_and_is_not_shopped_around(ring: FacilitatorRing, fakes: Fakes) -> None:
    fakes[0].behaviour = RefuseVerify()
    assert isinstance(await ring.verify(PAID, WANTED), Refused)
    assert not fakes[1].verified


async def test_nobody_to_verify_is_unavailable(ring: FacilitatorRing, fakes: Fakes) -> None:
    for fake in fakes:
        await fake.stop()
    with pytest.raises(FacilitatorUnavailableError):
        await ring.verify(PAID, WANTED)


async def test_only_nonsense_is_a_broken_protocol(ring: FacilitatorRing, fakes: Fakes) -> None:
    for fake in fakes:
        fake.behaviour = Garbage()
    with pytest.raises(PeerProtocolError):
        await ring.verify(PAID, WANTED)


async def test_who_failed_often_is_left_alone_and_tried_again(
    ring: FacilitatorRing, fakes: Fakes, clock: FakeClock
) -> None:
    for fake in fakes:
        fake.behaviour = WrongStatus(500)
    for _ in range(5):
        with pytest.raises(FacilitatorUnavailableError):
            await ring.verify(PAID, WANTED)
    verified = len(fakes[0].verified)
    with pytest.raises(FacilitatorUnavailableError, match="for a while"):
        await ring.verify(PAID, WANTED)
    assert len(fakes[0].verified) == verified
    fakes[0].behaviour = Ok()
    clock.advance(10)
    assert isinstance(await ring.verify(PAID, WANTED), Accepted)


async def test_the_next_settles_when_nothing_can_have_been_sent(ring: FacilitatorRing, fakes: Fakes) -> None:
    await fakes[0].stop()
    assert (await ring.settle(PAID, WANTED)).outcome is SettleOutcome.SETTLED
    assert asked(fakes) == (0, 1)


MAY_HAVE_SENT: list[Behaviour] = [
    SettleThenHang(),
    BadGateway(after_settling=True),
    BadGateway(after_settling=False),
    Drop(after_settling=True),
    Pending(times=1000),
    Garbage(),
]


@pytest.mark.parametrize("behaviour", MAY_HAVE_SENT)
async def test_who_may_have_sent_a_payment_is_the_one_that_is_asked_again(
    ring: FacilitatorRing, fakes: Fakes, behaviour: Behaviour
) -> None:
    fakes[0].behaviour = behaviour
    for _ in range(2):
        assert (await ring.settle(PAID, WANTED)).outcome in (SettleOutcome.UNKNOWN, SettleOutcome.PENDING)
    assert asked(fakes) == (2, 0)
    fakes[0].behaviour = Ok()
    assert (await ring.settle(PAID, WANTED)).outcome is SettleOutcome.SETTLED
    assert asked(fakes) == (3, 0)


@pytest.mark.parametrize("behaviour", MAY_HAVE_SENT)
async def test_anothers_no_proves_nothing_while_the_sender_cannot_be_reached(
    ring: FacilitatorRing, fakes: Fakes, behaviour: Behaviour
) -> None:
    fakes[0].behaviour = behaviour
    await ring.settle(PAID, WANTED)
    await fakes[0].stop()
    fakes[1].behaviour = RefuseSettle("insufficient_funds")
    assert (await ring.settle(PAID, WANTED)).outcome is SettleOutcome.UNKNOWN
    fakes[1].behaviour = Ok()
    assert (await ring.settle(PAID, WANTED)).outcome is SettleOutcome.SETTLED


async def test_a_cancelled_ask_counts_as_sent(ring: FacilitatorRing, fakes: Fakes) -> None:
    fakes[0].behaviour = SettleThenHang()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await ring.settle(PAID, WANTED)
    await fakes[0].stop()
    fakes[1].behaviour = RefuseSettle("insufficient_funds")
    assert (await ring.settle(PAID, WANTED)).outcome is SettleOutcome.UNKNOWN


async def test_a_definite_no_is_a_no_and_nobody_else_is_asked(ring: FacilitatorRing, fakes: Fakes) -> None:
    fakes[0].behaviour = RefuseSettle("insufficient_funds")
    for _ in range(2):
        assert (await ring.settle(PAID, WANTED)).outcome is SettleOutcome.FAILED
    assert asked(fakes) == (2, 0)


async def test_nobody_to_settle_is_unknown_and_nothing_was_sent(ring: FacilitatorRing, fakes: Fakes) -> None:
    for fake in fakes:
        await fake.stop()
    for _ in range(6):  # more than a circuit allows: money waits for it, so it is asked for all the same
        settlement = await ring.settle(PAID, WANTED)
        assert (settlement.outcome, settlement.is_unsent) == (SettleOutcome.UNKNOWN, True)
    await fakes[1].start()
    assert (await ring.settle(PAID, WANTED)).outcome is SettleOutcome.SETTLED


async def test_a_settlement_is_that_of_the_member(ring: FacilitatorRing, fakes: Fakes) -> None:
    direct = HttpFacilitator(fakes[0].url)
    assert await ring.settle(PAID, WANTED) == await direct.settle(PAID, WANTED)
    await direct.close()


async def test_what_is_supported_is_the_first_reachable_ones(ring: FacilitatorRing, fakes: Fakes) -> None:
    await fakes[0].stop()
    assert (await ring.supported()).kinds
    await fakes[1].stop()
    with pytest.raises(FacilitatorUnavailableError):
        await ring.supported()


def test_a_ring_of_nobody_is_a_bug(clock: FakeClock) -> None:
    with pytest.raises(ValueError, match="member"):
        FacilitatorRing([], clock)


class Unclosable(HttpFacilitator):
    async def close(self) -> None:
        raise RuntimeError("will not close")


async def test_all_are_closed_also_after_one_that_fails_to(fakes: Fakes, clock: FakeClock) -> None:
    good = HttpFacilitator(fakes[0].url)
    ring = FacilitatorRing([good, Unclosable(fakes[1].url)], clock)
    assert (await ring.settle(PAID, WANTED)).outcome == Settlement(SettleOutcome.SETTLED).outcome
    with pytest.raises(RuntimeError):
        await ring.close()
    assert good._session is None
