"""Settler: asks for the money, writes down what came of it, and keeps asking while it is not known.

None of its work belongs to a buyer's connection. A settlement is a task of its own; when the process dies the ledger
says where it stood, and `recover` goes on from there. While it lives, a sale that something went wrong with is gone on
with in the same way: from what the ledger says, on a schedule, until it has reached its end.
"""

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from obol.core.ledger import Change
from obol.core.payment import FINAL, Event, State
from obol.core.sale import Delivery, NewSale, Sale
from obol.errors import IllegalTransitionError, LedgerUnavailableError, SaleTakenError
from obol.gateway.booking import UNRESOLVED, Entry, ask, book, is_resolved
from obol.gateway.chase import Chase, SettledSteps
from obol.gateway.errands import Errands, Step
from obol.gateway.ports import Ports
from obol.x402.facilitator import Settlement

RETRY_SCHEDULE_S: Sequence[float] = (1, 2, 5, 15, 30, 60, 120, 300)
"""Waits between questions about an unresolved settlement; the last one repeats until it is resolved."""
ASKED_AT_ONCE = 64
"""Unresolved settlements asked about at the same time: a restart with many must not bury the facilitator."""
RESUMED_AT_ONCE = 256
"""Adopted sales whose next step is recorded together: as many as share a commit."""
Recording = asyncio.Task[bool]
"""A step being recorded; False: the sale belongs to another attempt now, and it was not."""
RELEASE_PATIENCE_S = 1.0
"""How long a refusal waits for its payment to be free again."""
DISOWN_BUGS = 5
"""After so many errors that nobody foresaw a claim is not taken back: what no ledger can hold was not recorded, either,
and a buyer who finds such a payment must not be able to leave a task behind with each request."""
_STOPPED = "gateway_stopped"
_UNFINISHED = frozenset(State) - FINAL - {State.OWED}


class Settler:
    """The settlements of one gateway. `retry_schedule_s` is passed in so that tests need not wait."""

    def __init__(self, ports: Ports, retry_schedule_s: Sequence[float] = RETRY_SCHEDULE_S) -> None:
        self._ports = ports
        self._errands = Errands(ports.log, retry_schedule_s)
        self._turns = asyncio.Semaphore(ASKED_AT_ONCE)
        self._turns_of_adopted = asyncio.Semaphore(ASKED_AT_ONCE)
        """Of their own: the buyer of a new sale must not stand behind all that a dead gateway left."""
        self._in_hand: dict[str, asyncio.Task[Any]] = {}
        """By the id of a sale, the task that asks for its money: nothing else may move it."""

    def settle(self, sale: Sale, steps: SettledSteps) -> asyncio.Task[Settlement]:
        """Ask for the money of a sale that is recorded as SETTLING.

        The answer is recorded before the task ends, a settlement by `steps`. The task raises `LedgerUnavailableError`
        when the answer could not be recorded; asking and recording go on in the background. `SaleTakenError` when
        another gateway does that now.
        """
        task = self._errands.start(self._settle(sale, steps))
        self._take_in_hand(sale.id, task)
        return task

    def settle_soon(self, sale: Sale, change: Change, steps: SettledSteps, *, after: Recording | None) -> None:
        """Ask for the money of a sale that is SERVED, once `change` and the step to SETTLING are recorded."""
        task = self._errands.start(self._settle_when_recorded(sale, change, steps, after))
        self._take_in_hand(sale.id, task)

    async def release(self, sale: Sale | NewSale, reason: str) -> None:
        """Nothing was delivered: go back to where the buyer loses nothing, trying until it is recorded.

        That is RELEASED, or OWED when money has moved. A sale whose step to SETTLING was recorded although the ledger
        could not say so is treated as after a crash: asked about until it is known. A `NewSale` is one of which it is
        not known whether its claim was recorded, or still will be. Returns after the first try, or
        `RELEASE_PATIENCE_S`: the payment can then be presented again at once, and a ledger that fails keeps neither
        buyer nor slot waiting.
        """
        tried = asyncio.Event()
        if isinstance(sale, Sale):
            releasing = self._errands.until_done(self._going_on(sale, reason, Delivery.NONE), sale.id, tried=tried)
        else:
            releasing = self._errands.until_done(
                partial(self._disown, sale, reason), sale.id, tried=tried, gives_up=_after(DISOWN_BUGS)
            )
        self._errands.start(releasing)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RELEASE_PATIENCE_S):
                await tried.wait()

    def let_go(self, sale: Sale, reason: str) -> None:
        """Go on with a sale whose serving ended in a way that nobody foresaw, as after a crash.

        One whose money is being asked for is left to that first: a yes may be on its way.
        """
        self._go_on_soon(sale, self._going_on(sale, reason))

    def record_soon(
        self, sale: Sale, events: Sequence[Event], change: Change, *, after: Recording | None = None
    ) -> Recording:
        """Record a step of the attempt that holds `sale`, trying until it is recorded; nobody waits for it.

        `after` is what must be recorded before it.
        """
        return self._errands.start(self._keep_recording(sale, events, change, after))

    async def recover(self, network: str) -> int:
        """Go on with the sales on a network that a dead process left unfinished; how many there were."""
        sales = await self._ports.ledger.adopt(network)
        for some in _in_parts(sales, RESUMED_AT_ONCE):
            async with asyncio.TaskGroup() as tasks:
                for sale in some:
                    tasks.create_task(self._resume_adopted(sale))
        return len(sales)

    async def drain(self, timeout_s: float) -> None:
        """Wait for settlements under way, then stop asking about unresolved ones: the ledger keeps them."""
        await self._errands.drain(timeout_s)

    # ------------------------------------------------------------------------------------------------------ settling

    async def _settle(self, sale: Sale, steps: SettledSteps) -> Settlement:
        settlement = await ask(self._ports, sale, has_left=False)
        has_left = not settlement.is_unsent
        try:
            await book(self._ports, sale, settlement, steps(False))
        except SaleTakenError:  # whoever has it asks too, and records what is true
            self._ports.log.warning("sale_taken", sale=sale.id)
            raise
        except Exception:  # foreseen or not: what is known of the money must not be lost with it
            self._ports.log.error("settlement_not_recorded", sale=sale.id)
            self._chase(sale.id, steps, self._turns, has_left=has_left, answer=settlement)
            raise
        if not is_resolved(settlement):
            self._chase(sale.id, steps, self._turns, has_left=has_left)
        return settlement

    async def _settle_when_recorded(
        self, sale: Sale, change: Change, steps: SettledSteps, after: Recording | None
    ) -> None:
        try:
            is_recorded = await self._keep_recording(sale, [Event.SETTLE], change, after)
        except IllegalTransitionError:
            self._go_on_soon(sale, self._going_on(sale, "internal", change.delivery))
            raise
        if is_recorded:
            await self._settle(sale, steps)

    def _chase(
        self,
        sale_id: str,
        steps: SettledSteps,
        turns: asyncio.Semaphore,
        *,
        has_left: bool,
        answer: Settlement | None = None,
    ) -> None:
        chase = Chase(self._ports, sale_id, steps, turns, answer=answer, has_left=has_left)
        chasing = self._errands.until_done(chase.go_on, sale_id, waits_first=True)
        self._take_in_hand(sale_id, self._errands.start(chasing, is_endless=True))

    def _take_in_hand(self, sale_id: str, task: asyncio.Task[Any]) -> None:
        def let_go(done: asyncio.Task[Any]) -> None:
            if self._in_hand.get(sale_id) is done:  # else a chase has taken over from it
                del self._in_hand[sale_id]

        self._in_hand[sale_id] = task
        task.add_done_callback(let_go)

    # ------------------------------------------------------------------------------------------------------ going on

    async def _disown(self, sale: NewSale, reason: str) -> bool:
        freed = await self._ports.ledger.disown(sale, reason)
        if freed is not None:
            self._ports.metrics.payment(freed.offer, freed.state)
        return True

    def _going_on(
        self, sale: Sale, reason: str, delivery: Delivery | None = None, *, may_have_asked: bool = False
    ) -> Step:
        """`_go_on` as a step. `delivery` None: as far as is recorded."""
        return partial(self._go_on, sale.attempt, reason, delivery, may_have_asked)

    def _go_on_soon(self, sale: Sale, step: Step) -> None:
        self._errands.start(self._errands.until_done(step, sale.id))

    async def _go_on(self, attempt: str, reason: str, delivery: Delivery | None, may_have_asked: bool) -> bool:
        """Resume what an attempt holds."""
        current = await self._ports.ledger.held_by(attempt)
        if current is None or current.state not in _UNFINISHED:
            return True
        if (asking := self._in_hand.get(current.id)) is not None:
            step = partial(self._go_on, attempt, reason, delivery, may_have_asked)
            self._errands.start(self._go_on_after(asking, step, current.id), is_endless=True)
            return True
        current = replace(current, delivery=delivery or current.delivery)
        try:
            await self._resume(current, reason, self._turns, may_have_asked=may_have_asked)
        except IllegalTransitionError:  # a step of ours whose answer was lost has come to light in between
            self._ports.log.warning("sale_moved", sale=current.id)
            return False
        return True

    async def _go_on_after(self, asking: asyncio.Task[Any], step: Step, sale_id: str) -> bool:
        """What is left when its money was asked for: nothing, unless it is kept for an answer that nobody serves."""
        await asyncio.wait((asking,))
        return await self._errands.until_done(step, sale_id)

    async def _resume_adopted(self, sale: Sale) -> None:
        """It is ours now: nobody else would go on with it."""
        may_have_asked = sale.state in UNRESOLVED  # the dead one; nobody knows
        again = self._going_on(sale, _STOPPED, sale.delivery, may_have_asked=may_have_asked)
        try:
            await self._resume(sale, _STOPPED, self._turns_of_adopted, may_have_asked=may_have_asked)
        except SaleTakenError:  # by a gateway that took us for dead
            self._ports.log.warning("sale_taken", sale=sale.id)
        except LedgerUnavailableError:
            self._ports.log.error("sale_not_recorded", sale=sale.id)
            self._go_on_soon(sale, again)
        except Exception as bug:  # an edge: one that cannot be gone on with must not keep the others
            self._ports.log.error("sale_not_resumed", sale=sale.id, exc_info=bug)
            self._go_on_soon(sale, again)

    async def _resume(self, sale: Sale, reason: str, turns: asyncio.Semaphore, *, may_have_asked: bool) -> None:
        """Go on from where the ledger says a sale is, with `sale.delivery` for what was handed over.

        `may_have_asked`: somebody may have asked for its money whose answer is lost. What is in nobody's hands here,
        and was not adopted in the middle of it, was never asked about: the first no is to be believed.
        """
        ledger, handed_over = self._ports.ledger, Change(delivery=sale.delivery)
        late = [Event.SETTLED_UNDELIVERED] if sale.delivery is Delivery.NONE else [Event.SETTLED]
        match sale.state:
            case State.CLAIMED | State.SERVING | State.REDEEMING:
                await self._free(sale, reason)
                return
            case State.SERVED if sale.delivery is Delivery.NONE:  # policy AFTER: nothing left, and nobody was asked
                await self._free(sale, reason)
                return
            case State.SERVED:
                await ledger.record(sale.id, [Event.SETTLE], handed_over)
            case State.SETTLING:
                await ledger.record(sale.id, [Event.SETTLE_UNKNOWN], handed_over)
        self._chase(sale.id, lambda _: late, turns, has_left=may_have_asked)

    async def _free(self, sale: Sale, reason: str) -> None:
        """Back to where the buyer loses nothing: RELEASED, or OWED from REDEEMING."""
        freed = await self._ports.ledger.record(sale.id, [Event.RELEASE], Change(reason=reason), attempt=sale.attempt)
        self._ports.metrics.payment(freed.offer, freed.state)

    # ----------------------------------------------------------------------------------------------------- recording

    async def _keep_recording(
        self, sale: Sale, events: Sequence[Event], change: Change, after: Recording | None
    ) -> bool:
        """False when another holds the sale now, and nothing was recorded. Raises `IllegalTransitionError`."""
        if after is not None:
            await asyncio.wait((after,))
        entry = Entry(self._ports.ledger, sale, events, change)

        async def step() -> bool:
            recorded = await entry.record()
            if events:
                self._ports.metrics.payment(recorded.offer, recorded.state)
            return True

        return await self._errands.until_done(step, sale.id, gives_up=_is_illegal)


def _is_illegal(bug: Exception) -> bool:
    return isinstance(bug, IllegalTransitionError)


def _after(count: int) -> Callable[[Exception], bool]:
    """Whether it is the `count`th time that this is asked, or later."""
    times = itertools.count(1)
    return lambda _: next(times) >= count


def _in_parts(sales: Sequence[Sale], size: int) -> Iterator[Sequence[Sale]]:
    """In order, `size` at a time."""
    return (sales[start : start + size] for start in range(0, len(sales), size))
