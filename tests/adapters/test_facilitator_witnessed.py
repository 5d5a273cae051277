"""A facilitator's word against the chain's: every cell of the table, over a real socket to a hostile facilitator."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from obol.adapters.facilitator_http import HttpFacilitator
from obol.adapters.facilitator_witnessed import NOT_SEEN, WitnessedFacilitator
from obol.adapters.logs import make_logger
from obol.errors import ChainUnavailableError, FacilitatorUnavailableError
from obol.x402.facilitator import Accepted, Refused, Settlement, SettleOutcome
from obol.x402.models import PaymentPayload, PaymentRequirements
from obol.x402.witness import (
    CANCELLED,
    EXPIRED,
    JUST_S,
    Fate,
    Moved,
    NeverMoves,
    PaidAlready,
    StillOpen,
    Unconfirmed,
    Used,
)
from tests.adapters.payments import requirements, unsigned
from tests.fakes.facilitator import BadGateway, Behaviour, FakeFacilitator, Lie, Ok, Pending, RefuseSettle, RefuseVerify

WANTED = requirements()
PAID = unsigned(WANTED)
SEEN = Moved("0x" + "ab" * 32, 3)
CONFIRMED_WITHIN_S = 1.5
BROADCAST = "0x" + "cd" * 32


class Chain:
    """A witness that says what it is told to."""

    def __init__(self) -> None:
        self.fates: list[Fate | None] = []
        """In order; the last one repeats. None: it cannot be asked."""
        self.asked = 0
        self.is_recent: bool | None = True
        """Whether what is used was used just now. None: it cannot be asked."""
        self.is_closed = False

    async def fate(self, payload: PaymentPayload, requirements: PaymentRequirements) -> Fate:
        self.asked += 1
        fate = self.fates[min(self.asked, len(self.fates)) - 1]
        if fate is None:
            raise ChainUnavailableError("nobody answers")
        return fate

    async def is_just_used(self, payload: PaymentPayload, requirements: PaymentRequirements) -> bool:
        if self.is_recent is None:
            raise ChainUnavailableError("nobody answers")
        return self.is_recent

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
    witnessed = WitnessedFacilitator(
        HttpFacilitator(fake.url), chain, log, seen_within_s=0.6, confirmed_within_s=CONFIRMED_WITHIN_S
    )
    yield witnessed
    await witnessed.close()


SAYS: dict[str, Behaviour] = {
    "settled": Lie(),
    "pending": Pending(times=1000),
    "unknown": BadGateway(after_settling=False),
    "failed": RefuseSettle("insufficient_funds"),
    "failed after broadcast": RefuseSettle("transaction_failed", BROADCAST),
}
REFUSE = RefuseVerify("invalid_exact_evm_nonce_already_used")
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


@pytest.mark.parametrize("fate", [StillOpen(), Unconfirmed()])
async def test_a_success_that_the_chain_does_not_show_is_not_believed(
    witnessed: WitnessedFacilitator, fake: FakeFacilitator, chain: Chain, fate: Fate
) -> None:
    fake.behaviour, chain.fates = Lie(), [fate]
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
    assert (witnessed.is_chain_up, witnessed.unseen) == (False, int(outcome is SettleOutcome.SETTLED))


async def test_it_is_known_whether_the_chain_could_be_asked_last(
    witnessed: WitnessedFacilitator, fake: FakeFacilitator, chain: Chain
) -> None:
    fake.behaviour, chain.fates = Lie(), [None, SEEN]
    known = [witnessed.is_chain_up]
    for _ in range(2):
        await witnessed.settle(PAID, WANTED)
        known.append(witnessed.is_chain_up)
    assert (known, witnessed.unseen) == ([None, False, True], 1)


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        ("settled", SettleOutcome.SETTLED),
        ("pending", SettleOutcome.PENDING),
        ("unknown", SettleOutcome.UNKNOWN),
        ("failed", SettleOutcome.UNKNOWN),
        ("failed after broadcast", SettleOutcome.UNKNOWN),
    ],
)
async def test_while_the_chain_says_used_and_not_by_what_a_yes_is_believed_and_no_no_is(
    witnessed: WitnessedFacilitator, fake: FakeFacilitator, chain: Chain, said: str, outcome: SettleOutcome
) -> None:
    fake.behaviour, chain.fates = SAYS[said], [Used()]
    settlement = await witnessed.settle(PAID, WANTED)
    assert (settlement.outcome, settlement.is_proven) == (outcome, False)
    assert chain.asked == 1


@pytest.mark.parametrize("said", ["pending", "unknown", "failed", "failed after broadcast"])
async def test_while_a_use_is_not_deep_enough_nothing_is_final(
    witnessed: WitnessedFacilitator, fake: FakeFacilitator, chain: Chain, said: str
) -> None:
    fake.behaviour, chain.fates = SAYS[said], [Unconfirmed()]
    settlement = await witnessed.settle(PAID, WANTED)
    assert settlement.outcome in (SettleOutcome.PENDING, SettleOutcome.UNKNOWN)
    assert not settlement.is_proven


async def test_a_refused_payment_that_has_moved_is_paid_already(
    witnessed: WitnessedFacilitator, fake: FakeFacilitator, chain: Chain
) -> None:
    fake.behaviour, chain.fates = REFUSE, [SEEN]
    outcome = await witnessed.verify(PAID, WANTED)
    assert isinstance(outcome, PaidAlready)
    assert outcome.reason == REFUSE.reason


@pytest.mark.parametrize("fate", [Used(), Unconfirmed()])
async def test_of_a_refused_payment_that_may_have_moved_nobody_can_say(
    witnessed: WitnessedFacilitator, fake: FakeFacilitator, chain: Chain, fate: Fate
) -> None:
    fake.behaviour, chain.fates = REFUSE, [fate]
    with pytest.raises(FacilitatorUnavailableError):
        await witnessed.verify(PAID, WANTED)


@pytest.mark.parametrize("fate", [StillOpen(), NeverMoves(CANCELLED), None])
async def test_a_refused_payment_that_has_not_moved_is_refused(
    witnessed: WitnessedFacilitator, fake: FakeFacilitator, chain: Chain, fate: Fate | None
) -> None:
    fake.behaviour, chain.fates = REFUSE, [fate]
    assert type(await witnessed.verify(PAID, WANTED)) is Refused


@pytest.mark.parametrize("is_recent", [False, None])
async def test_of_what_was_used_long_ago_the_refusal_stands_and_nothing_more_is_asked(
    witnessed: WitnessedFacilitator, fake: FakeFacilitator, chain: Chain, is_recent: bool | None
) -> None:
    fake.behaviour, chain.is_recent, chain.fates = REFUSE, is_recent, [SEEN]
    assert type(await witnessed.verify(PAID, WANTED)) is Refused
    assert chain.asked == 0


async def test_what_moved_a_while_ago_has_not_paid_for_this(
    witnessed: WitnessedFacilitator, fake: FakeFacilitator, chain: Chain
) -> None:
    fake.behaviour, chain.fates = REFUSE, [replace(SEEN, age_s=JUST_S + 1)]
    assert type(await witnessed.verify(PAID, WANTED)) is Refused
    chain.fates = [replace(SEEN, age_s=JUST_S)]
    assert type(await witnessed.verify(PAID, WANTED)) is PaidAlready


async def test_how_long_ago_it_moved_is_told(
    witnessed: WitnessedFacilitator, fake: FakeFacilitator, chain: Chain
) -> None:
    fake.behaviour, chain.fates = SAYS["failed"], [replace(SEEN, age_s=77)]
    assert (await witnessed.settle(PAID, WANTED)).age_s == 77


async def test_what_is_seen_is_given_longer_to_be_deep_enough(
    witnessed: WitnessedFacilitator, fake: FakeFacilitator, chain: Chain
) -> None:
    fake.behaviour, chain.fates = Lie(), [Unconfirmed(), SEEN]
    assert (await witnessed.settle(PAID, WANTED)).outcome is SettleOutcome.SETTLED
    assert chain.asked == 2  # a second apart: after what may take 0.6 s to be seen


async def test_for_a_payment_that_verifies_the_chain_is_not_asked(
    witnessed: WitnessedFacilitator, fake: FakeFacilitator, chain: Chain
) -> None:
    fake.behaviour = Ok()
    await witnessed.verify(PAID, WANTED)
    assert chain.asked == 0


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
