"""A Hypothesis state machine: any interleaving of what users of one ledger do, against a model in memory.

A ledger is put under it by a subclass in a test module, which says how one more user opens the store:

    class MyLedgerMachine(LedgerMachine):
        async def open(self) -> Ledger: …

    TestMyLedgerMachine = MyLedgerMachine.TestCase
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, rule

from obol.core.ledger import NO_CHANGE, Change, Claimed, ClaimOutcome, InUse, Ledger, Redeeming, Used
from obol.core.money import UINT256_MAX
from obol.core.payment import FINAL, PAID, TABLE, Event, State, advance
from obol.core.sale import ClaimKey, Delivery, NewSale, Sale
from obol.core.usage import UNKNOWN_USAGE, Usage
from obol.errors import IllegalTransitionError
from tests.adapters.sales import ADOPTABLE, a_key, a_new_sale, as_claimed
from tests.fakes.clock import FakeClock


def _require_as_handed_over(before: Sale, change: Change, state: State) -> None:
    """What was refused and is found to be paid is settled if any of it was handed over, and only then."""
    is_handed_over = Delivery.NONE is not (change.delivery or before.delivery)
    if before.state is State.SETTLE_FAILED and state in PAID and is_handed_over != (state is State.SETTLED):
        raise IllegalTransitionError("otherwise handed over")


class LedgerMachine(RuleBasedStateMachine):
    """Two users of one ledger that claim, record, die and adopt; the model is a dict of sales and who holds them."""

    keys = tuple(a_key(number) for number in range(3))
    sales = Bundle("sales")

    async def open(self) -> Ledger:
        """One more user of the store."""
        raise NotImplementedError("the subclass opens its ledger")

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.runner = asyncio.Runner()
        self.users: list[Ledger] = []
        self.model: dict[str, Sale] = {}
        self.holders: dict[str, Ledger | None] = {}

    @initialize()
    def start(self) -> None:
        self.users = [self.runner.run(self.open()) for _ in range(2)]

    def teardown(self) -> None:
        for user in self.users:
            self.runner.run(user.close())
        self.runner.close()

    @rule(target=sales, user=st.integers(0, 1), key=st.sampled_from(keys), amount_atomic=st.integers(1, UINT256_MAX))
    def claim(self, user: int, key: ClaimKey, amount_atomic: int) -> str:
        self.clock.advance(1)
        new = a_new_sale(key, authorized_atomic=amount_atomic)
        expected = self._expected(new)
        self.model[expected.sale.id] = expected.sale
        if isinstance(expected, Claimed | Redeeming):
            self.holders[expected.sale.id] = self.users[user]

        assert self.runner.run(self.users[user].claim(new)) == expected
        return expected.sale.id

    def _expected(self, new: NewSale) -> ClaimOutcome:
        for sale in self.model.values():
            if sale.key == new.key and sale.state is not State.RELEASED:
                if sale.state is State.OWED:
                    return Redeeming(replace(sale, state=State.REDEEMING, updated_s=self.clock.now_s(), attempt=new.id))
                return Used(sale) if sale.state in FINAL else InUse(sale)
        return Claimed(as_claimed(new, self.clock.now_s()))

    @rule(target=sales, user=st.integers(0, 1), key=st.sampled_from(keys), is_recorded=st.booleans())
    def lose_a_claim(self, user: int, key: ClaimKey, is_recorded: bool) -> str:
        """The answer of a claim is lost, and it is taken back."""
        new = a_new_sale(key)
        expected = self._expected(new)
        if is_recorded:
            self.runner.run(self.users[user].claim(new))
        self.clock.advance(1)
        freed = None
        if is_recorded and isinstance(expected, Claimed | Redeeming):
            state = State.OWED if isinstance(expected, Redeeming) else State.RELEASED
            freed = replace(expected.sale, state=state, reason="lost", updated_s=self.clock.now_s())
            self.holders[freed.id] = self.users[user]
        left = freed or replace(as_claimed(new, self.clock.now_s()), state=State.RELEASED, reason="lost")
        self.model[left.id] = left

        assert self.runner.run(self.users[user].disown(new, "lost")) == freed
        return left.id

    @rule(
        user=st.integers(0, 1),
        sale_id=sales,
        events=st.lists(st.sampled_from(Event), max_size=2),
        change=st.builds(
            Change,
            delivery=st.none() | st.sampled_from(Delivery),
            settled_atomic=st.none() | st.integers(0, UINT256_MAX),
            transaction=st.none() | st.sampled_from(["", "0x12"]),
            reason=st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5),
            usage=st.none() | st.just(UNKNOWN_USAGE) | st.builds(Usage, st.none() | st.integers(0, 9), st.just(3)),
        ),
    )
    def record(self, user: int, sale_id: str, events: Sequence[Event], change: Change) -> None:
        self.clock.advance(1)
        before = self.model[sale_id]
        try:
            state = advance(before.state, events)
            _require_as_handed_over(before, change, state)
        except IllegalTransitionError:
            with pytest.raises(IllegalTransitionError):
                self.runner.run(self.users[user].record(sale_id, events, change))
            return
        given = {name: getattr(change, name) for name in Change.__slots__ if getattr(change, name) is not None}
        if change.delivery is Delivery.STARTED and before.delivery is not Delivery.NONE:
            del given["delivery"]
        self.model[sale_id] = replace(before, state=state, updated_s=self.clock.now_s(), **given)

        assert self.runner.run(self.users[user].record(sale_id, events, change)) == self.model[sale_id]

    @rule(user=st.integers(0, 1), sale_id=sales, choice=st.integers(0, 11))
    def step(self, user: int, sale_id: str, choice: int) -> None:
        """A legal step: drawn events alone seldom get far."""
        legal = sorted(TABLE[self.model[sale_id].state])
        if legal:
            self.record(user=user, sale_id=sale_id, events=[legal[choice % len(legal)]], change=NO_CHANGE)

    @rule(user=st.integers(0, 1))
    def die(self, user: int) -> None:
        """A user is gone, and another takes its place."""
        self.holders = {
            sale_id: None if holder is self.users[user] else holder for sale_id, holder in self.holders.items()
        }
        self.runner.run(self.users[user].close())
        self.users[user] = self.runner.run(self.open())

    @rule(user=st.integers(0, 1))
    def adopt(self, user: int) -> None:
        orphans = [
            sale_id
            for sale_id, holder in self.holders.items()
            if holder is None and self.model[sale_id].state in ADOPTABLE
        ]
        for sale_id in orphans:
            self.holders[sale_id] = self.users[user]

        adopted = self.runner.run(self.users[user].adopt())

        assert sorted(adopted, key=lambda sale: sale.id) == sorted(
            (self.model[sale_id] for sale_id in orphans), key=lambda sale: sale.id
        )

    @rule(user=st.integers(0, 1), key=st.sampled_from(keys))
    def find(self, user: int, key: ClaimKey) -> None:
        holding = [sale for sale in self.model.values() if sale.key == key and sale.state is not State.RELEASED]

        assert len(holding) <= 1
        assert self.runner.run(self.users[user].find(key)) == (holding[0] if holding else None)

    @rule(user=st.integers(0, 1), sale_id=consumes(sales))
    def read(self, user: int, sale_id: str) -> None:
        assert self.runner.run(self.users[user].sale(sale_id)) == self.model[sale_id]
