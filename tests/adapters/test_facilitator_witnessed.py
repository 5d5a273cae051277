"""A facilitator's word against the chain's: every cell of the table, over a real socket to a hostile facilitator."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from obol.adapters.facilitator_http import HttpFacilitator
from obol.adapters.facilitator_witnessed import NOT_SEEN, WitnessedFacilitator
from obol.adapters.logs import make_logger
from obol.errors import ChainUnavailableError
from obol.x402.facilitator import Accepted, Settlement, SettleOutcome
from obol.x402.models import PaymentPayload, PaymentRequirements
from obol.x402.witness import CANCELLED, EXPIRED, Fate, Moved, NeverMoves, StillOpen
from tests.adapters.payments import requirements, unsigned
from tests.fakes.facilitator import BadGateway, Behaviour, FakeFacilitator, Lie, Ok, Pending, RefuseSettle

WANTED = requirements()
PAID = unsigned(WANTED)
SEEN = Moved("0x" + "ab" * 32, 3)
BROADCAST = "0x" + "cd" * 32


class Chain:
    """A witness that says what it is told to."""

    def __init__(self) -> None:
        self.fates: list[Fate | None] = []
        """In order; the last one repeats. None: it cannot be asked."""
        self.asked = 0
        self.is_closed = False

    async def fate(self, payload: PaymentPayload, requirements: PaymentRequirements) -> Fate:
        self.asked += 1
        fate = self.fates[min(self.asked, len(self.fates)) - 1]
        if fate is None:
            raise ChainUnavailableError("nobody answers")
        return fate

    async def close(self) -> None:
        self.is_closed = True


@pytest.fixture
async def fake() -> AsyncIterator[FakeFacilitator]:
    async with FakeFacilitator() as fake:
        yield fake


@pytest.fixture
def chain() -> Chain:
    return Chain()


@pytest.fixture
async def witnessed(fake: FakeFacilitator, chain: Chain) -> AsyncIterator[WitnessedFacilitator]:
    log = make_logger(as_json=True)
    witnessed = WitnessedFacilitator(HttpFacilitator(fake.url), chain, log, seen_within_s=0.6)
    yield witnessed
    await witnessed.close()


SAYS: dict[str, Behaviour] = {
    "settled": Lie(),
    "pending": Pending(times=1000),
    "unknown": BadGateway(after_settling=False),
    "failed": RefuseSettle("insufficient_funds"),
    "failed after broadcast": RefuseSettle("transaction_failed", BROADCAST),
}
ANYTHING = pytest.mark.parametrize("said", SAYS.values(), ids=list(SAYS))


@ANYTHING
async def test_what_moved_is_settled_whatever_the_facilitator_says(
    witnessed: WitnessedFacilitator, fake: FakeFacilitator, chain: Chain, said: Behaviour
) -> None:
    fake.behaviour, chain.fates = said, [SEEN]
    settlement = await witnessed.settle(PAID, WANTED)
    assert settlement.outcome is SettleOutcome.SETTLED
    assert (settlement.transaction, settlement.log_index) == (SEEN.transaction, SEEN.log_index)


@ANYTHING
@pytest.mark.parametrize("reason", [CANCELLED, EXPIRED])
async def test_what_never_moves_is_a_proven_no_whatever_the_facilitator_says(
    witnessed: WitnessedFacilitator, fake: FakeFacilitator, chain: Chain, said: Behaviour, reason: str
) -> None:
    fake.behaviour, chain.fates = said, [NeverMoves(reason)]
    assert await witnessed.settle(PAID, WANTED) == Settlement(SettleOutcome.FAILED, "", reason, is_proven=True)


async def test_a_success_that_the_chain_does_not_show_is_not_believed(
    witnessed: WitnessedFacilitator, fake: FakeFacilitator, chain: Chain
) -> None:
    fake.behaviour, chain.fates = Lie(), [StillOpen()]
    settlement = await witnessed.settle(PAID, WANTED)
    assert (settlement.outcome, settlement.reason, settlement.transaction) == (SettleOutcome.PENDING, NOT_SEEN, "")
    assert chain.asked > 1


async def test_a_success_may_take_a_moment_to_be_seen(
    witnessed: WitnessedFacilitator, fake: FakeFacilitator, chain: Chain
) -> None:
    fake.behaviour, chain.fates = Lie(), [StillOpen(), SEEN]
    assert (await witnessed.settle(PAID, WANTED)).outcome is SettleOutcome.SETTLED
    assert chain.asked == 2


@pytest.mark.parametrize("said", ["pending", "unknown", "failed", "failed after broadcast"])
async def test_while_the_chain_shows_no_end_the_facilitators_other_answers_stand(
    witnessed: WitnessedFacilitator, fake: FakeFacilitator, chain: Chain, said: str
) -> None:
    fake.behaviour, chain.fates = SAYS[said], [StillOpen()]
    settlement = await witnessed.settle(PAID, WANTED)
    assert settlement.outcome is SettleOutcome(said.split(maxsplit=1)[0])
    assert not settlement.is_proven
    assert chain.asked == 1


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        ("settled", SettleOutcome.SETTLED),
        ("pending", SettleOutcome.PENDING),
        ("unknown", SettleOutcome.UNKNOWN),
        ("failed", SettleOutcome.FAILED),
        ("failed after broadcast", SettleOutcome.UNKNOWN),
    ],
)
async def test_while_no_rpc_answers_the_facilitator_is_heard_alone(
    witnessed: WitnessedFacilitator, fake: FakeFacilitator, chain: Chain, said: str, outcome: SettleOutcome
) -> None:
    fake.behaviour, chain.fates = SAYS[said], [None]
    settlement = await witnessed.settle(PAID, WANTED)
    assert (settlement.outcome, settlement.is_proven) == (outcome, False)


async def test_verify_and_supported_are_the_facilitators(
    witnessed: WitnessedFacilitator, fake: FakeFacilitator
) -> None:
    fake.behaviour = Ok()
    assert (await witnessed.supported()).kinds
    assert await witnessed.verify(PAID, WANTED) == Accepted(PAID.payer)


async def test_a_cancelled_settle_is_cancelled(
    witnessed: WitnessedFacilitator, fake: FakeFacilitator, chain: Chain
) -> None:
    fake.behaviour, chain.fates = Lie(), [StillOpen()]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await witnessed.settle(PAID, WANTED)


async def test_closing_closes_the_witness_too(witnessed: WitnessedFacilitator, chain: Chain) -> None:
    await witnessed.close()
    await witnessed.close()
    assert chain.is_closed
