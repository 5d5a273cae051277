"""A sale that another gateway took over while this one was at it: nothing is handed over, and nobody pays twice."""

from typing import Any

import pytest

from obol.core.ledger import NO_CHANGE, Change, Ledger
from obol.core.offer import SettlementPolicy
from obol.core.payment import Event
from obol.core.sale import Sale
from obol.errors import SaleTakenError
from tests.gateway.fixtures import MakeShop
from tests.gateway.shop import PRICE_ATOMIC, chat, eventually


class TakenLedger:
    """Refuses to record these events while `is_taken`, as a shared ledger does for whoever lost a sale."""

    def __init__(self, inner: Ledger, event: Event) -> None:
        self._inner = inner
        self._event = event
        self.is_taken = True
        self.refused = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def record(
        self, sale_id: str, events: list[Event], change: Change = NO_CHANGE, *, attempt: str | None = None
    ) -> Sale:
        if self.is_taken and self._event in events:
            self.refused += 1
            raise SaleTakenError("another gateway has it")
        return await self._inner.record(sale_id, events, change, attempt=attempt)


@pytest.mark.parametrize("settlement", [SettlementPolicy.ON_OUTPUT, SettlementPolicy.BEFORE])
@pytest.mark.parametrize("event", [Event.SETTLE, Event.SETTLED, Event.SETTLED_UNDELIVERED])
async def test_a_plain_answer_is_not_handed_over(
    make_shop: MakeShop, settlement: SettlementPolicy, event: Event
) -> None:
    taken: list[TakenLedger] = []

    def wrap(ledger: Ledger) -> Ledger:
        taken.append(TakenLedger(ledger, event))
        return taken[-1]  # type: ignore[return-value]

    shop = await make_shop(settlement=settlement, wrap_ledger=wrap)
    answer = await shop.pay(chat())
    assert (answer.status == 200) == (taken[-1].refused == 0)
    if answer.status != 200:
        assert (answer.status, answer.json["error"]["code"]) == (503, "ledger_unavailable")
        assert b"Hello" not in answer.body
    await eventually(lambda: not any(line["event"] == "bug" for line in shop.logged), "no bug")
    assert await shop.earned_atomic() in (0, PRICE_ATOMIC)
