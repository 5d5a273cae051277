"""The contract of `core.ledger.Ledger`, as tests.

A ledger is put under it by a subclass in a test module, whose fixture opens one more user of one and the same store:

    class TestMyLedger(LedgerContract):
        @pytest.fixture
        async def open_ledger(self, …) -> AsyncIterator[OpenLedger]: …

A user that was closed counts as dead: what it left unfinished is up for adoption.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from obol.core.ledger import NO_CHANGE, Change, Claimed, InUse, Ledger, Redeeming, SaleFilter, Used
from obol.core.money import UINT256_MAX
from obol.core.offer import Standing
from obol.core.payment import Event, State
from obol.core.sale import Delivery, Sale
from obol.core.usage import Usage
from obol.errors import IllegalTransitionError, LedgerUnavailableError, SaleTakenError
from tests.adapters.sales import ADOPTABLE, WAY_TO, a_key, a_new_sale, as_claimed, claimed_in
from tests.fakes.clock import FakeClock

OpenLedger = Callable[[], Awaitable[Ledger]]
FOUND = Change(settled_atomic=1000, transaction="0x12", reason="", log_index=3)
"""What is recorded of the transfer that a reconciliation finds."""


class LedgerContract:
    """Every test has `open_ledger`; all ledgers of one test share one store and this clock."""

    @pytest.fixture
    def clock(self) -> FakeClock:
        return FakeClock()

    @pytest.fixture
    def open_ledger(self) -> OpenLedger:
        raise NotImplementedError("the subclass opens its ledger")

    # ------------------------------------------------------------------------------------------------------- claim

    async def test_a_new_authorization_is_claimed_and_everything_is_recorded(
        self, open_ledger: OpenLedger, clock: FakeClock
    ) -> None:
        ledger = await open_ledger()
        new = a_new_sale()
        clock.advance(7)

        outcome = await ledger.claim(new)

        assert outcome == Claimed(as_claimed(new, clock.now_s()))
        assert await ledger.sale(new.id) == outcome.sale

    @pytest.mark.parametrize("amount_atomic", [1, 2**63, 2**64, UINT256_MAX])
    async def test_a_uint256_amount_survives(self, open_ledger: OpenLedger, amount_atomic: int) -> None:
        ledger, other = await open_ledger(), await open_ledger()
        new = a_new_sale(authorized_atomic=amount_atomic)

        await ledger.claim(new)
        await ledger.record(new.id, WAY_TO[State.SETTLED], Change(settled_atomic=amount_atomic))

        sale = await other.sale(new.id)
        assert sale is not None
        assert (sale.authorized_atomic, sale.settled_atomic) == (amount_atomic, amount_atomic)

    @pytest.mark.parametrize("state", sorted(ADOPTABLE - {State.REDEEMING}))
    async def test_an_authorization_of_an_unfinished_sale_is_in_use(
        self, open_ledger: OpenLedger, state: State
    ) -> None:
        ledger = await open_ledger()
        held = await claimed_in(ledger, state, key := a_key())

        assert await ledger.claim(a_new_sale(key)) == InUse(held)

    @pytest.mark.parametrize("state", [State.SETTLED, State.SETTLE_FAILED, State.WAIVED])
    async def test_an_authorization_of_a_finished_sale_is_used(self, open_ledger: OpenLedger, state: State) -> None:
        ledger = await open_ledger()
        finished = await claimed_in(ledger, state, key := a_key())

        assert await ledger.claim(a_new_sale(key)) == Used(finished)

    async def test_a_refused_claim_records_nothing(self, open_ledger: OpenLedger) -> None:
        ledger = await open_ledger()
        held = await claimed_in(ledger, State.SERVING, key := a_key())
        refused = a_new_sale(key)

        await ledger.claim(refused)

        assert await ledger.sale(refused.id) is None
        assert await ledger.sale(held.id) == held

    async def test_a_released_authorization_can_be_claimed_again_and_the_old_sale_stays(
        self, open_ledger: OpenLedger
    ) -> None:
        ledger = await open_ledger()
        old = await claimed_in(ledger, State.RELEASED, key := a_key())
        new = a_new_sale(key)

        outcome = await ledger.claim(new)

        assert isinstance(outcome, Claimed)
        assert outcome.sale.id == new.id
        assert await ledger.sale(old.id) == old

    async def test_an_authorization_can_be_released_many_times(self, open_ledger: OpenLedger) -> None:
        ledger = await open_ledger()
        key = a_key()

        sales = [await claimed_in(ledger, State.RELEASED, key) for _ in range(5)]

        assert [await ledger.sale(sale.id) for sale in sales] == sales
        assert isinstance(await ledger.claim(a_new_sale(key)), Claimed)

    @pytest.mark.parametrize("part", ["network", "asset", "payer", "nonce"])
    async def test_a_key_that_differs_in_any_part_is_another_authorization(
        self, open_ledger: OpenLedger, part: str
    ) -> None:
        ledger = await open_ledger()
        key = a_key()
        await ledger.claim(a_new_sale(key))

        value = getattr(key, part)
        other = replace(key, **{part: value[:-1] + ("8" if value[-1] == "7" else "7")})
        outcome = await ledger.claim(a_new_sale(other))

        assert isinstance(outcome, Claimed)

    async def test_of_a_hundred_concurrent_claims_exactly_one_wins(self, open_ledger: OpenLedger) -> None:
        ledgers = [await open_ledger(), await open_ledger()]
        key = a_key()

        outcomes = await asyncio.gather(*(ledgers[n % 2].claim(a_new_sale(key)) for n in range(100)))

        assert Counter(type(outcome) for outcome in outcomes) == {Claimed: 1, InUse: 99}
        assert len({outcome.sale.id for outcome in outcomes}) == 1

    async def test_an_owed_answer_is_redeemed_by_exactly_one(self, open_ledger: OpenLedger) -> None:
        ledgers = [await open_ledger(), await open_ledger()]
        owed = await claimed_in(ledgers[0], State.OWED, key := a_key())

        outcomes = await asyncio.gather(*(ledgers[n % 2].claim(a_new_sale(key)) for n in range(20)))

        assert Counter(type(outcome) for outcome in outcomes) == {Redeeming: 1, InUse: 19}
        assert {outcome.sale.id for outcome in outcomes} == {owed.id}
        assert {outcome.sale.state for outcome in outcomes} == {State.REDEEMING}

    async def test_an_owed_answer_that_failed_again_is_owed_again(self, open_ledger: OpenLedger) -> None:
        ledger = await open_ledger()
        owed = await claimed_in(ledger, State.OWED, key := a_key())
        await ledger.claim(a_new_sale(key))

        back = await ledger.record(owed.id, [Event.RELEASE])

        assert back.state is State.OWED
        assert isinstance(await ledger.claim(a_new_sale(key)), Redeeming)
        assert (await ledger.record(owed.id, [Event.OUTPUT])).state is State.SETTLED
        assert isinstance(await ledger.claim(a_new_sale(key)), Used)

    async def test_the_id_of_another_sale_is_refused_and_changes_nothing(self, open_ledger: OpenLedger) -> None:
        ledger = await open_ledger()
        held = await claimed_in(ledger, State.SERVING)

        with pytest.raises(ValueError, match="used before"):
            await ledger.claim(replace(a_new_sale(), id=held.id))

        assert await ledger.sale(held.id) == held

    # ------------------------------------------------------------------------------------------------------ record

    async def test_record_moves_a_sale_and_answers_what_is_recorded(
        self, open_ledger: OpenLedger, clock: FakeClock
    ) -> None:
        ledger = await open_ledger()
        await ledger.claim(new := a_new_sale())
        clock.advance(3)
        change = Change(Delivery.COMPLETE, 999, "0x" + "12" * 32, "why", Usage(7, None), log_index=0)

        sale = await ledger.record(new.id, WAY_TO[State.SETTLED], change)

        assert sale == replace(
            as_claimed(new, clock.now_s()),
            state=State.SETTLED,
            delivery=Delivery.COMPLETE,
            settled_atomic=999,
            transaction="0x" + "12" * 32,
            reason="why",
            usage=Usage(7, None),
            log_index=0,
        )
        assert await ledger.sale(new.id) == sale

    async def test_no_events_and_a_change_leave_the_state(self, open_ledger: OpenLedger) -> None:
        ledger = await open_ledger()
        sale = await claimed_in(ledger, State.SERVING)

        changed = await ledger.record(sale.id, [], Change(delivery=Delivery.STARTED))

        assert changed == replace(sale, delivery=Delivery.STARTED)

    @pytest.mark.parametrize("end", sorted(set(Delivery) - {Delivery.NONE, Delivery.STARTED}))
    async def test_how_an_answer_ended_is_kept_when_its_beginning_is_recorded_late(
        self, open_ledger: OpenLedger, end: Delivery
    ) -> None:
        ledger = await open_ledger()
        sale = await claimed_in(ledger, State.SETTLING)
        await ledger.record(sale.id, [], Change(delivery=end))

        settled = await ledger.record(sale.id, [Event.SETTLED], Change(delivery=Delivery.STARTED))

        assert (settled.state, settled.delivery) == (State.SETTLED, end)

    async def test_none_in_a_change_leaves_the_column(self, open_ledger: OpenLedger) -> None:
        ledger = await open_ledger()
        sale = await claimed_in(ledger, State.SETTLING)
        full = await ledger.record(sale.id, [], Change(Delivery.STARTED, 5, "0x12", "why", Usage(1, 2), 3))

        assert await ledger.record(sale.id, [], NO_CHANGE) == full

    async def test_an_illegal_step_records_nothing(self, open_ledger: OpenLedger) -> None:
        ledger = await open_ledger()
        sale = await claimed_in(ledger, State.CLAIMED)

        with pytest.raises(IllegalTransitionError):
            await ledger.record(sale.id, [Event.SERVE, Event.SETTLE], Change(reason="must not appear"))

        assert await ledger.sale(sale.id) == sale

    async def test_an_illegal_step_does_not_disturb_the_others(self, open_ledger: OpenLedger) -> None:
        ledger = await open_ledger()
        sales = [await claimed_in(ledger, State.CLAIMED) for _ in range(9)]
        steps = [[Event.OUTPUT] if n == 4 else [Event.SERVE] for n in range(9)]

        results = await asyncio.gather(
            *(ledger.record(sale.id, events) for sale, events in zip(sales, steps, strict=True)), return_exceptions=True
        )

        assert isinstance(results[4], IllegalTransitionError)
        recorded = [await ledger.sale(sale.id) for sale in sales]
        assert [sale and sale.state for sale in recorded] == [
            State.CLAIMED if n == 4 else State.SERVING for n in range(9)
        ]

    async def test_of_concurrent_equal_steps_exactly_one_is_taken(self, open_ledger: OpenLedger) -> None:
        ledgers = [await open_ledger(), await open_ledger()]
        sale = await claimed_in(ledgers[0], State.SERVED)

        results = await asyncio.gather(
            *(ledgers[n % 2].record(sale.id, [Event.SETTLE]) for n in range(10)), return_exceptions=True
        )

        assert Counter(type(result) for result in results) == {Sale: 1, IllegalTransitionError: 9}

    # ----------------------------------------------------------------------------------------------- found to be paid

    async def test_a_refused_sale_that_is_found_to_be_paid_is_owed_and_served_once(
        self, open_ledger: OpenLedger, clock: FakeClock
    ) -> None:
        gateway, books = await open_ledger(), await open_ledger()
        sale = await claimed_in(gateway, State.SETTLE_FAILED)
        await gateway.record(sale.id, [], Change(settled_atomic=0, transaction="0x1", reason="insufficient_funds"))
        clock.advance(1)

        owed = await books.record(sale.id, [Event.FOUND_PAID_UNDELIVERED], FOUND)

        assert owed == replace(
            sale,
            state=State.OWED,
            settled_atomic=sale.authorized_atomic,
            transaction="0x12",
            reason="",
            log_index=3,
            updated_s=clock.now_s(),
        )
        again = a_new_sale(sale.key)
        assert isinstance(await gateway.claim(again), Redeeming)
        served = await gateway.record(sale.id, [Event.OUTPUT], Change(Delivery.COMPLETE), attempt=again.id)
        assert (served.state, served.transaction) == (State.SETTLED, "0x12")
        assert await gateway.claim(a_new_sale(sale.key)) == Used(served)

    async def test_what_was_handed_over_is_not_owed_when_it_is_found_to_be_paid(self, open_ledger: OpenLedger) -> None:
        gateway, books = await open_ledger(), await open_ledger()
        sale = await claimed_in(gateway, State.SETTLE_FAILED)
        handed_over = await gateway.record(sale.id, [], Change(Delivery.STARTED))

        with pytest.raises(IllegalTransitionError):
            await books.record(sale.id, [Event.FOUND_PAID_UNDELIVERED], FOUND)

        assert await books.sale(sale.id) == handed_over
        settled = await books.record(sale.id, [Event.FOUND_PAID], FOUND)
        assert (settled.state, settled.delivery, settled.reason) == (State.SETTLED, Delivery.STARTED, "")

    async def test_what_was_not_handed_over_is_not_settled_when_it_is_found_to_be_paid(
        self, open_ledger: OpenLedger
    ) -> None:
        ledger = await open_ledger()
        sale = await claimed_in(ledger, State.SETTLE_FAILED)

        with pytest.raises(IllegalTransitionError):
            await ledger.record(sale.id, [Event.FOUND_PAID], FOUND)

        assert await ledger.sale(sale.id) == sale

    @pytest.mark.parametrize("event", [Event.FOUND_PAID, Event.FOUND_PAID_UNDELIVERED])
    @pytest.mark.parametrize("state", sorted(set(WAY_TO) - {State.SETTLE_FAILED}))
    async def test_only_a_refused_sale_can_be_found_to_be_paid(
        self, open_ledger: OpenLedger, state: State, event: Event
    ) -> None:
        ledger = await open_ledger()
        sale = await claimed_in(ledger, state)

        with pytest.raises(IllegalTransitionError):
            await ledger.record(sale.id, [event], FOUND)

        assert await ledger.sale(sale.id) == sale

    async def test_of_several_who_find_it_paid_one_records_it(self, open_ledger: OpenLedger) -> None:
        books = [await open_ledger(), await open_ledger()]
        sale = await claimed_in(books[0], State.SETTLE_FAILED)

        results = await asyncio.gather(
            *(books[n % 2].record(sale.id, [Event.FOUND_PAID_UNDELIVERED], FOUND) for n in range(10)),
            return_exceptions=True,
        )

        assert Counter(type(result) for result in results) == {Sale: 1, IllegalTransitionError: 9}

    async def test_what_is_found_to_be_paid_is_nobodys_to_adopt(self, open_ledger: OpenLedger) -> None:
        gateway, books = await open_ledger(), await open_ledger()
        sale = await claimed_in(gateway, State.SETTLE_FAILED)
        await books.record(sale.id, [Event.FOUND_PAID_UNDELIVERED], FOUND)
        await gateway.close()
        await books.close()

        assert await (await open_ledger()).adopt() == []

    async def test_a_refusal_that_is_found_to_be_paid_takes_no_standing(self, open_ledger: OpenLedger) -> None:
        ledger = await open_ledger()
        standing = Standing(after_sales=1, max_unsettled_atomic=5000)
        await claimed_in(ledger, State.SETTLED)
        refused = await claimed_in(ledger, State.SETTLE_FAILED)
        assert not await ledger.is_trusted(a_key(), 1000, standing)

        await ledger.record(refused.id, [Event.FOUND_PAID_UNDELIVERED], FOUND)

        assert await ledger.is_trusted(a_key(), 1000, standing)

    async def test_recording_an_unknown_sale_is_a_key_error(self, open_ledger: OpenLedger) -> None:
        ledger = await open_ledger()

        with pytest.raises(KeyError, match="nobody"):
            await ledger.record("nobody", [Event.SERVE])

    async def test_an_unknown_sale_is_none(self, open_ledger: OpenLedger) -> None:
        ledger = await open_ledger()

        assert await ledger.sale("nobody") is None

    @pytest.mark.parametrize("state", sorted(set(WAY_TO) - {State.RELEASED}))
    async def test_the_sale_that_holds_an_authorization_is_found(self, open_ledger: OpenLedger, state: State) -> None:
        ledger, other = await open_ledger(), await open_ledger()
        sale = await claimed_in(ledger, state, key := a_key())

        assert await other.find(key) == sale
        assert await other.find(a_key()) is None

    async def test_a_released_sale_holds_nothing(self, open_ledger: OpenLedger) -> None:
        ledger = await open_ledger()
        await claimed_in(ledger, State.RELEASED, key := a_key())
        assert await ledger.find(key) is None

        again = await claimed_in(ledger, State.SERVING, key)
        assert await ledger.find(key) == again

    # ------------------------------------------------------------------------------------------------------- adopt

    async def test_the_sales_of_live_users_are_left_alone(self, open_ledger: OpenLedger) -> None:
        mine, theirs = await open_ledger(), await open_ledger()
        for state in WAY_TO:
            await claimed_in(mine, state)
            await claimed_in(theirs, state)

        assert await mine.adopt() == []
        assert await theirs.adopt() == []

    async def test_the_unfinished_sales_of_a_dead_user_are_adopted_oldest_first(self, open_ledger: OpenLedger) -> None:
        dead = await open_ledger()
        left = [await claimed_in(dead, state) for state in WAY_TO]
        await dead.close()
        ledger = await open_ledger()

        adopted = await ledger.adopt()

        assert adopted == [sale for sale in left if sale.state in ADOPTABLE]
        assert await ledger.adopt() == []

    async def test_only_sales_of_the_asked_network_are_adopted(self, open_ledger: OpenLedger) -> None:
        """A gateway on another network could not settle them, and must not keep them from who can."""
        dead = await open_ledger()
        sale = await claimed_in(dead, State.SETTLE_UNKNOWN)
        await dead.close()
        stranger, heir = await open_ledger(), await open_ledger()

        assert await stranger.adopt("eip155:1") == []
        assert await heir.adopt(sale.key.network) == [sale]

    async def test_an_adopted_sale_is_finished_by_its_adopter(self, open_ledger: OpenLedger) -> None:
        dead = await open_ledger()
        await claimed_in(dead, State.SETTLING)
        await dead.close()
        ledger = await open_ledger()
        [adopted] = await ledger.adopt()

        settled = await ledger.record(adopted.id, [Event.SETTLED], Change(settled_atomic=1000, transaction="0x12"))

        assert settled.state is State.SETTLED
        await ledger.close()
        assert await (await open_ledger()).adopt() == []

    async def test_competing_adopters_get_each_sale_once(self, open_ledger: OpenLedger) -> None:
        left: list[Sale] = []
        for _ in range(3):
            dead = await open_ledger()
            left += [await claimed_in(dead, State.SERVED) for _ in range(4)]
            await dead.close()
        adopters = [await open_ledger() for _ in range(4)]

        adopted = await asyncio.gather(*(adopter.adopt() for adopter in adopters))
        adopted += await asyncio.gather(*(adopter.adopt() for adopter in adopters))  # what a lost race left

        assert sorted(sale.id for sales in adopted for sale in sales) == sorted(sale.id for sale in left)

    async def test_sales_are_adopted_again_when_their_adopter_dies(self, open_ledger: OpenLedger) -> None:
        first = await open_ledger()
        sale = await claimed_in(first, State.SETTLE_UNKNOWN)
        await first.close()
        second = await open_ledger()
        await second.adopt()
        await second.close()

        assert await (await open_ledger()).adopt() == [sale]

    async def test_a_redeemed_answer_belongs_to_who_redeems_it(self, open_ledger: OpenLedger) -> None:
        seller, redeemer, third = await open_ledger(), await open_ledger(), await open_ledger()
        owed = await claimed_in(seller, State.OWED, key := a_key())
        assert isinstance(await redeemer.claim(a_new_sale(key)), Redeeming)

        await seller.close()
        assert await third.adopt() == []
        await redeemer.close()
        assert [sale.id for sale in await third.adopt()] == [owed.id]

    # ----------------------------------------------------------------------------------------------- check and close

    async def test_check_returns_when_the_ledger_can_be_written(self, open_ledger: OpenLedger) -> None:
        ledger = await open_ledger()
        await claimed_in(ledger, State.SERVING)

        await ledger.check()

        assert await ledger.adopt() == []

    async def test_close_finishes_what_was_submitted(self, open_ledger: OpenLedger) -> None:
        ledger = await open_ledger()
        new = [a_new_sale() for _ in range(50)]

        async with asyncio.TaskGroup() as group:
            claims = [group.create_task(ledger.claim(sale)) for sale in new]
            await asyncio.sleep(0)  # all are submitted
            await ledger.close()

        assert {type(claim.result()) for claim in claims} == {Claimed}
        reader = await open_ledger()
        assert [sale.id for sale in await reader.adopt()] == [sale.id for sale in new]

    async def test_close_is_idempotent(self, open_ledger: OpenLedger) -> None:
        ledger = await open_ledger()

        await ledger.close()
        await asyncio.gather(ledger.close(), ledger.close())

    async def test_a_closed_ledger_is_unavailable(self, open_ledger: OpenLedger) -> None:
        ledger = await open_ledger()
        await ledger.close()

        calls: list[Awaitable[object]] = [
            ledger.claim(a_new_sale()),
            ledger.disown(a_new_sale(), "why"),
            ledger.record("sale", []),
            ledger.sale("sale"),
            ledger.find(a_key()),
            ledger.adopt(),
            ledger.check(),
        ]
        for call in calls:
            with pytest.raises(LedgerUnavailableError):
                await call

    # ---------------------------------------------------------------------------------------------------- attempts

    async def test_a_redemption_is_held_by_the_attempt_that_took_it(self, open_ledger: OpenLedger) -> None:
        ledger = await open_ledger()
        owed = await claimed_in(ledger, State.OWED, key := a_key())
        again = a_new_sale(key)

        outcome = await ledger.claim(again)

        assert isinstance(outcome, Redeeming)
        assert (outcome.sale.id, outcome.sale.attempt) == (owed.id, again.id)
        assert await ledger.held_by(again.id) == outcome.sale
        assert await ledger.held_by(owed.id) is None

    async def test_a_late_release_does_not_free_the_redemption_of_another(self, open_ledger: OpenLedger) -> None:
        ledger = await open_ledger()
        owed = await claimed_in(ledger, State.OWED, key := a_key())
        first, second = a_new_sale(key), a_new_sale(key)
        await ledger.claim(first)
        await ledger.record(owed.id, [Event.RELEASE], attempt=first.id)
        await ledger.claim(second)

        with pytest.raises(SaleTakenError):
            await ledger.record(owed.id, [Event.RELEASE], attempt=first.id)

        held = await ledger.held_by(second.id)
        assert held is not None
        assert held.state is State.REDEEMING
        assert await ledger.held_by(first.id) is None

    async def test_a_new_sale_is_held_by_itself(self, open_ledger: OpenLedger) -> None:
        ledger = await open_ledger()
        sale = await claimed_in(ledger, State.SERVING)

        assert await ledger.held_by(sale.id) == sale
        assert await ledger.held_by("nobody") is None

    # ------------------------------------------------------------------------------------------------------ disown

    async def test_a_claim_that_was_recorded_is_taken_back(self, open_ledger: OpenLedger, clock: FakeClock) -> None:
        ledger = await open_ledger()
        await ledger.claim(new := a_new_sale())
        clock.advance(1)

        freed = await ledger.disown(new, "why")

        assert freed == replace(as_claimed(new, clock.now_s()), state=State.RELEASED, reason="why")
        assert await ledger.sale(new.id) == freed
        assert isinstance(await ledger.claim(a_new_sale(new.key)), Claimed)

    async def test_a_claim_that_was_not_recorded_can_not_be_any_more(
        self, open_ledger: OpenLedger, clock: FakeClock
    ) -> None:
        ledger, other = await open_ledger(), await open_ledger()
        new = a_new_sale()

        assert await ledger.disown(new, "why") is None

        left = replace(as_claimed(new, clock.now_s()), state=State.RELEASED, reason="why")
        assert await ledger.sale(new.id) == left
        for late in (ledger, other):
            with pytest.raises(ValueError, match="used before"):
                await late.claim(new)
        assert await ledger.find(new.key) is None
        assert isinstance(await other.claim(a_new_sale(new.key)), Claimed)

    async def test_a_redemption_that_was_recorded_is_taken_back(self, open_ledger: OpenLedger) -> None:
        ledger = await open_ledger()
        owed = await claimed_in(ledger, State.OWED, key := a_key())
        await ledger.claim(again := a_new_sale(key))

        freed = await ledger.disown(again, "why")

        assert freed == replace(owed, attempt=again.id, reason="why")
        assert await ledger.sale(again.id) is None
        assert isinstance(await ledger.claim(a_new_sale(key)), Redeeming)

    async def test_taking_back_a_second_time_changes_nothing(self, open_ledger: OpenLedger) -> None:
        ledger = await open_ledger()
        await claimed_in(ledger, State.OWED, key := a_key())
        attempts = [a_new_sale(key), a_new_sale(), a_new_sale()]
        for attempt in attempts[:2]:
            await ledger.claim(attempt)
        for attempt in attempts:
            await ledger.disown(attempt, "why")
        before = await ledger.page(SaleFilter())

        assert [await ledger.disown(attempt, "again") for attempt in attempts] == [None] * 3

        assert await ledger.page(SaleFilter()) == before

    @pytest.mark.parametrize("state", sorted(set(WAY_TO) - {State.RELEASED}))
    async def test_taking_back_a_claim_leaves_the_sale_of_another_alone(
        self, open_ledger: OpenLedger, state: State
    ) -> None:
        ledger = await open_ledger()
        held = await claimed_in(ledger, state, key := a_key())

        assert await ledger.disown(a_new_sale(key), "why") is None
        assert await ledger.disown(replace(a_new_sale(), id=held.id), "why") is None

        assert await ledger.find(key) == held

    @pytest.mark.parametrize("is_owed", [False, True])
    async def test_a_claim_and_its_taking_back_at_the_same_time_leave_nothing_held(
        self, open_ledger: OpenLedger, is_owed: bool
    ) -> None:
        ledger, other = await open_ledger(), await open_ledger()
        for _ in range(10):
            key = a_key()
            if is_owed:
                await claimed_in(other, State.OWED, key)
            new = a_new_sale(key)

            await asyncio.gather(ledger.claim(new), ledger.disown(new, "why"), return_exceptions=True)
            await ledger.disown(new, "why")

            assert isinstance(await other.claim(a_new_sale(key)), Redeeming if is_owed else Claimed)

    # ---------------------------------------------------------------------------------------------------- standing

    async def test_standing_needs_that_many_settled_sales(self, open_ledger: OpenLedger, clock: FakeClock) -> None:
        ledger = await open_ledger()
        standing = Standing(after_sales=2, max_unsettled_atomic=5000)
        for _ in range(2):
            sale = await claimed_in(ledger, State.CLAIMED)
            assert await ledger.trust(sale.id, WAY_TO[State.SERVED], NO_CHANGE, standing) is None
            assert await ledger.sale(sale.id) == sale
            clock.advance(1)
            await claimed_in(ledger, State.SETTLED)

        served = await ledger.trust(sale.id, WAY_TO[State.SERVED], NO_CHANGE, standing)

        assert served is not None
        assert served.state is State.SERVED

    async def test_one_refused_settlement_removes_standing(self, open_ledger: OpenLedger, clock: FakeClock) -> None:
        ledger = await open_ledger()
        standing = Standing(after_sales=1, max_unsettled_atomic=5000)
        await claimed_in(ledger, State.SETTLED)
        assert await ledger.is_trusted(a_key(), 1000, standing)
        clock.advance(1)

        await claimed_in(ledger, State.SETTLE_FAILED)
        assert not await ledger.is_trusted(a_key(), 1000, standing)

        clock.advance(1)
        await claimed_in(ledger, State.SETTLED)
        assert await ledger.is_trusted(a_key(), 1000, standing)

    async def test_who_was_refused_needs_a_settled_sale_also_where_nobody_else_does(
        self, open_ledger: OpenLedger
    ) -> None:
        ledger = await open_ledger()
        standing = Standing(after_sales=0, max_unsettled_atomic=5000)
        assert await ledger.is_trusted(a_key(), 1000, standing)

        await claimed_in(ledger, State.SETTLE_FAILED)
        sale = await claimed_in(ledger, State.CLAIMED)
        assert not await ledger.is_trusted(a_key(), 1000, standing)
        assert await ledger.trust(sale.id, WAY_TO[State.SERVED], NO_CHANGE, standing) is None
        assert await ledger.is_trusted(replace(a_key(), payer="0x" + "cd" * 20), 1000, standing)
        assert await ledger.is_trusted(replace(a_key(), network="eip155:1"), 1000, standing)

        await claimed_in(ledger, State.SETTLED)
        assert await ledger.is_trusted(a_key(), 1000, standing)

    async def test_an_answer_that_ends_after_a_refusal_gives_no_standing_back(
        self, open_ledger: OpenLedger, clock: FakeClock
    ) -> None:
        ledger = await open_ledger()
        standing = Standing(after_sales=1, max_unsettled_atomic=5000)
        long_stream = await claimed_in(ledger, State.SETTLED)
        await claimed_in(ledger, State.SETTLE_FAILED)
        clock.advance(1)

        await ledger.record(long_stream.id, [], Change(delivery=Delivery.COMPLETE, usage=Usage(1, 2)))

        assert not await ledger.is_trusted(a_key(), 1000, standing)

    async def test_a_clock_that_is_set_back_keeps_a_refusal(self, open_ledger: OpenLedger, clock: FakeClock) -> None:
        ledger, other = await open_ledger(), await open_ledger()
        standing = Standing(after_sales=1, max_unsettled_atomic=5000)
        await claimed_in(ledger, State.SETTLED)
        clock.set_wall(clock.now_s() - 60)
        await claimed_in(other, State.SETTLE_FAILED)
        assert not await ledger.is_trusted(a_key(), 1000, standing)

        await claimed_in(other, State.SETTLED)
        assert await ledger.is_trusted(a_key(), 1000, standing)

    @pytest.mark.parametrize("state", [State.SERVED, State.SETTLING, State.SETTLE_UNKNOWN])
    async def test_what_a_payer_owes_counts_against_its_standing(self, open_ledger: OpenLedger, state: State) -> None:
        ledger = await open_ledger()
        standing = Standing(after_sales=0, max_unsettled_atomic=2500)
        assert await ledger.is_trusted(a_key(), 2500, standing)
        owing = await claimed_in(ledger, state)

        assert await ledger.is_trusted(a_key(), 1500, standing)
        assert not await ledger.is_trusted(a_key(), 1501, standing)
        assert await ledger.is_trusted(replace(a_key(), payer="0x" + "cd" * 20), 2500, standing)
        assert await ledger.is_trusted(replace(a_key(), network="eip155:1"), 2500, standing)
        assert (await ledger.trust(owing.id, [], NO_CHANGE, Standing(0, 1000))) == owing

    async def test_exposure_is_checked_and_booked_in_one_step(self, open_ledger: OpenLedger) -> None:
        ledger, other = await open_ledger(), await open_ledger()
        standing = Standing(after_sales=0, max_unsettled_atomic=3000)
        sales = [await claimed_in(ledger, State.CLAIMED) for _ in range(20)]

        outcomes = await asyncio.gather(
            *(
                (ledger if n % 2 else other).trust(sale.id, WAY_TO[State.SETTLING], NO_CHANGE, standing)
                for n, sale in enumerate(sales)
            )
        )

        assert sum(outcome is not None for outcome in outcomes) == 3

    # ------------------------------------------------------------------------------------------------------- pages

    async def test_pages_give_every_sale_once_in_the_order_of_their_claims(self, open_ledger: OpenLedger) -> None:
        ledger = await open_ledger()
        sales = [await claimed_in(ledger, State.CLAIMED) for _ in range(7)]

        found: list[Sale] = []
        page = await ledger.page(SaleFilter(), limit=3)
        while True:
            found.extend(page.sales)
            if page.cursor is None:
                break
            page = await ledger.page(SaleFilter(), after=page.cursor, limit=3)

        assert found == sales

    async def test_a_filter_restricts_by_everything_it_names(self, open_ledger: OpenLedger) -> None:
        ledger = await open_ledger()
        settled, owed = await claimed_in(ledger, State.SETTLED), await claimed_in(ledger, State.OWED)
        at_s = owed.created_s

        async def ids(**which: object) -> list[str]:
            return [sale.id for sale in (await ledger.page(SaleFilter(**which))).sales]  # type: ignore[arg-type]

        assert await ids(states=frozenset({State.OWED, State.WAIVED})) == [owed.id]
        assert await ids(states=frozenset()) == []
        assert await ids(since_s=at_s) == [owed.id]
        assert await ids(until_s=at_s) == [settled.id]
        assert await ids(offer="another") == []
        assert await ids(payer=owed.key.payer, network=owed.key.network, asset=owed.key.asset) == [settled.id, owed.id]

    async def test_a_sound_ledger_has_no_flaws(self, open_ledger: OpenLedger) -> None:
        ledger = await open_ledger()
        await claimed_in(ledger, State.SETTLED)

        assert await ledger.flaws() == []
