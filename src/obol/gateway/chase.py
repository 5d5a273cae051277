"""Chase: asking again and again about one settlement whose answer was lost, until it is known and recorded."""

import asyncio
import math
from collections.abc import Callable, Sequence

from obol.core.payment import Event, State
from obol.core.sale import Sale
from obol.gateway.booking import UNRESOLVED, ask, book_late, is_resolved
from obol.gateway.ports import Ports
from obol.x402.facilitator import Settlement, SettleOutcome

SettledSteps = Callable[[bool], Sequence[Event]]
"""The steps to record when a settlement is known; the argument says that it is late, and nobody waits for it."""

LATE_PARTS = 20
"""Between questions passes at least this part of the time since the payment expired: an hour after 20 hours, a day
after 20 days."""


class Chase:
    """One sale that is SETTLING or SETTLE_UNKNOWN. Holds its id and not the sale: there may be very many.

    Asking again is safe: the same payload moves the money at most once. A yes ends it, or a no that the chain itself
    says. After a lost answer a facilitator's no proves nothing: the first transaction may have won, and its money
    moved, before the window closed or the nonce was found used. While nothing of any ask has left us (`has_left` is
    False), a no is a first no, and ends it.
    """

    __slots__ = ("_answer", "_asked_s", "_has_left", "_ports", "_sale_id", "_steps", "_turns")

    def __init__(
        self,
        ports: Ports,
        sale_id: str,
        steps: SettledSteps,
        turns: asyncio.Semaphore,
        *,
        has_left: bool,
        answer: Settlement | None = None,
    ) -> None:
        """`answer` is one that may not have been recorded; `turns` bounds how many ask at the same time."""
        self._ports = ports
        self._sale_id = sale_id
        self._steps = steps
        self._turns = turns
        self._answer = answer
        self._has_left = has_left
        self._asked_s = -math.inf

    async def go_on(self) -> bool:
        """One try: record the answer, or ask for one. True when the chase is over. Raises like the ledger."""
        if self._answer is None:
            async with self._turns:
                sale = await self._sale()
                if sale.state not in UNRESOLVED:
                    return True
                if not self._is_due(sale):
                    return False
                self._answer = await self._ask(sale)
        else:
            sale = await self._sale()
        if self._answer is None:
            return False
        await book_late(self._ports, sale, self._answer, self._steps(True))
        is_over = is_resolved(self._answer)
        self._answer = None
        return is_over

    async def _sale(self) -> Sale:
        sale = await self._ports.ledger.sale(self._sale_id)
        if sale is None:
            raise KeyError(self._sale_id)
        return sale

    def _is_due(self, sale: Sale) -> bool:
        """What expired long ago changes rarely, and a buyer can make payments whose end is never known for nothing."""
        late_s = self._ports.clock.now_s() - sale.valid_before_s
        return self._ports.clock.monotonic_s() - self._asked_s >= late_s / LATE_PARTS

    async def _ask(self, sale: Sale) -> Settlement | None:
        """What is to be recorded, if anything."""
        settlement = await ask(self._ports, sale, has_left=self._has_left)
        self._asked_s = self._ports.clock.monotonic_s()
        if settlement.outcome is SettleOutcome.SETTLED:
            return settlement
        if settlement.outcome is SettleOutcome.FAILED and (settlement.is_proven or not self._has_left):
            return settlement
        self._has_left = self._has_left or not settlement.is_unsent
        self._ports.log.warning("settlement_unresolved", sale=sale.id, reason=settlement.reason)
        if sale.state is State.SETTLING and not is_resolved(settlement):
            return settlement
        return None
