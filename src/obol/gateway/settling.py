"""Settler: asks for the money, writes down what came of it, and keeps asking while it is not known.

None of its work belongs to a buyer's connection. A settlement is a task of its own; when the process dies the ledger
says where it stood, and `recover` goes on from there.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import msgspec

from obol.core.ledger import Change
from obol.core.payment import FINAL, Event, State
from obol.core.sale import Delivery, NewSale, Sale
from obol.errors import IllegalTransitionError, LedgerUnavailableError, SaleTakenError
from obol.gateway.ports import Ports
from obol.x402.facilitator import Settlement, SettleOutcome
from obol.x402.models import PaymentPayload, PaymentRequirements

T = TypeVar("T")

RETRY_SCHEDULE_S: Sequence[float] = (1, 2, 5, 15, 30, 60, 120, 300)
"""Waits between questions about an unresolved settlement; the last one repeats until it is resolved."""

SettledSteps = Callable[[bool], Sequence[Event]]
"""The steps to record when a settlement is known; the argument says that it is late, and nobody waits for it."""

ASKED_AT_ONCE = 64
"""Unresolved settlements asked about at the same time: a restart with many must not bury the facilitator."""
RESUMED_AT_ONCE = 256
"""Adopted sales whose next step is recorded together: as many as share a commit."""
Recording = asyncio.Task[bool]
"""A step being recorded; False: the sale belongs to another attempt now, and it was not."""
RELEASE_PATIENCE_S = 1.0
"""How long a refusal waits for its payment to be free again."""
_STOPPED = "gateway_stopped"
_TOLD = (LedgerUnavailableError, SaleTakenError)
_UNFINISHED = frozenset(State) - FINAL - {State.OWED}
_IDLE = frozenset({State.CLAIMED, State.SERVED, State.REDEEMING})
"""Nobody was asked for the money of this answer, or it has come: nobody else is at work on it."""


class Settler:
    """The settlements of one gateway. `retry_schedule_s` is passed in so that tests need not wait."""

    def __init__(self, ports: Ports, retry_schedule_s: Sequence[float] = RETRY_SCHEDULE_S) -> None:
        self._ports = ports
        self._schedule_s = retry_schedule_s
        self._tasks: set[asyncio.Task[Any]] = set()
        self._chasing: set[asyncio.Task[Any]] = set()
        self._asking = asyncio.Semaphore(ASKED_AT_ONCE)
        self._pursued: set[str] = set()
        """Ids of the sales that a background task sees to their end: nothing else may move them."""

    def settle(self, sale: Sale, steps: SettledSteps) -> asyncio.Task[Settlement]:
        """Ask for the money of a sale that is recorded as SETTLING.

        The answer is recorded before the task ends, a settlement by `steps`. The task raises `LedgerUnavailableError`
        when the answer could not be recorded; asking and recording go on in the background. `SaleTakenError` when
        another gateway does that now.
        """
        return self._spawn(self._settle(sale, steps), self._tasks)

    def settle_soon(self, sale: Sale, change: Change, steps: SettledSteps, *, after: Recording | None) -> None:
        """Ask for the money of a sale that is SERVED, once `change` and the step to SETTLING are recorded."""
        self._spawn(self._settle_when_recorded(sale, change, steps, after), self._tasks)

    async def release(self, sale: Sale | NewSale, reason: str) -> None:
        """Nothing was delivered: go back to where the buyer loses nothing, trying until it is recorded.

        That is RELEASED, or OWED when money has moved. A sale whose step to SETTLING was recorded although the ledger
        could not say so is treated as after a crash: asked about until it is known. Returns after the first try, or
        `RELEASE_PATIENCE_S`: the payment can then be presented again at once, and a ledger that fails keeps neither
        buyer nor slot waiting.
        """
        tried = asyncio.Event()
        self._spawn(self._go_on(attempt_of(sale), reason, tried, Delivery.NONE), self._tasks)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RELEASE_PATIENCE_S):
                await tried.wait()

    def let_go(self, sale: Sale, reason: str) -> None:
        """Release a sale whose serving ended in a way that nobody foresaw, if nothing was delivered or asked for.

        One that is SETTLING is left to its settlement, or to the next start: a yes may be on its way.
        """
        self._spawn(self._go_on(sale.attempt, reason, asyncio.Event(), None, only=_IDLE), self._tasks)

    def record_soon(
        self, sale: Sale, events: Sequence[Event], change: Change, *, after: Recording | None = None
    ) -> Recording:
        """Record a step of the attempt that holds `sale`, trying until it is recorded; nobody waits for it.

        `after` is what must be recorded before it.
        """
        return self._spawn(self._keep_recording(sale, events, change, after), self._tasks)

    async def recover(self, network: str) -> int:
        """Go on with the sales on a network that a dead process left unfinished; how many there were."""
        sales = await self._ports.ledger.adopt(network)
        for some in _in_parts(sales, RESUMED_AT_ONCE):
            async with asyncio.TaskGroup() as tasks:
                for sale in some:
                    tasks.create_task(self._resume_adopted(sale))
        return len(sales)

    async def _resume_adopted(self, sale: Sale) -> None:
        """It is ours now: nobody else would go on with it."""
        try:
            await self._resume(sale, _STOPPED)
        except SaleTakenError:  # by a gateway that took us for dead
            self._ports.log.warning("sale_taken", sale=sale.id)
        except IllegalTransitionError as bug:  # one that cannot be gone on with must not keep the others
            self._ports.log.error("sale_not_resumed", sale=sale.id, exc_info=bug)
        except LedgerUnavailableError:
            self._ports.log.error("sale_not_recorded", sale=sale.id)
            self._spawn(self._go_on(sale.attempt, _STOPPED, asyncio.Event(), sale.delivery), self._tasks)

    async def drain(self, timeout_s: float) -> None:
        """Wait for settlements under way, then stop asking about unresolved ones: the ledger keeps them."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
        for task in (*self._tasks, *self._chasing):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._chasing, return_exceptions=True)

    async def _settle(self, sale: Sale, steps: SettledSteps) -> Settlement:
        settlement = await self._ask(sale)
        try:
            await self._book(sale, settlement, steps(False))
        except LedgerUnavailableError:
            self._ports.log.error("settlement_not_recorded", sale=sale.id)
            self._pursue(sale, steps, answer=settlement)
            raise
        except SaleTakenError:  # whoever has it asks too, and records what is true
            self._ports.log.warning("sale_taken", sale=sale.id)
            raise
        if not _is_resolved(settlement):
            self._pursue(sale, steps)
        return settlement

    async def _settle_when_recorded(
        self, sale: Sale, change: Change, steps: SettledSteps, after: Recording | None
    ) -> None:
        if await self._keep_recording(sale, [Event.SETTLE], change, after):
            await self._settle(sale, steps)

    def _pursue(self, sale: Sale, steps: SettledSteps, *, answer: Settlement | None = None) -> None:
        """See a sale to its end in the background, once. `answer` is one that could not be recorded."""
        if sale.id in self._pursued:
            return
        self._pursued.add(sale.id)
        task = self._spawn(self._pursuit(sale, steps, answer), self._chasing)
        task.add_done_callback(lambda _: self._pursued.discard(sale.id))

    async def _pursuit(self, sale: Sale, steps: SettledSteps, answer: Settlement | None) -> None:
        try:
            await self._ask_or_book_until_settled(sale, steps, answer)
        except SaleTakenError:  # another gateway took it for a dead one's, and sees it to its end
            self._ports.log.warning("sale_taken", sale=sale.id)

    async def _ask_or_book_until_settled(self, sale: Sale, steps: SettledSteps, answer: Settlement | None) -> None:
        attempt = 0
        while answer is not None:
            await self._wait(attempt)
            attempt += 1
            try:
                await self._book_late(sale, answer, steps(True))
            except LedgerUnavailableError:
                self._ports.log.error("settlement_not_recorded", sale=sale.id)
                continue
            if _is_resolved(answer):
                return
            answer = None
        await self._ask_until_settled(sale, steps)

    async def _book_late(self, sale: Sale, answer: Settlement, if_late: Sequence[Event]) -> None:
        """Record an answer that the ledger said it could not record: it may have been recorded all the same."""
        current = await self._ports.ledger.sale(sale.id)
        if current is None or current.state is State.SETTLING:
            await self._book(sale, answer, if_late)
        elif current.state is State.REDEEMING and current.attempt == sale.attempt and Event.SERVE not in if_late:
            # nobody serves it any more: that ended with the ledger's failure
            with contextlib.suppress(SaleTakenError):  # somebody redeems it in between: that one is served
                change = Change(reason=answer.reason)
                await self._ports.ledger.record(sale.id, [Event.RELEASE], change, attempt=sale.attempt)

    async def _ask_until_settled(self, sale: Sale, steps: SettledSteps) -> None:
        """Ask again and again: the same payload moves the money at most once, so asking is safe.

        A yes ends it, or a no that the chain itself says. After a lost answer a facilitator's no proves nothing: the
        first transaction may have won, and its money moved, before the window closed or the nonce was found used.
        """
        attempt = 0
        while True:
            await self._wait(attempt)
            attempt += 1
            async with self._asking:
                settlement = await self._ask(sale)
            if settlement.outcome is not SettleOutcome.SETTLED and not settlement.is_proven:
                self._ports.log.warning("settlement_unresolved", sale=sale.id, reason=settlement.reason)
                continue
            try:
                await self._book(sale, settlement, steps(True))
            except LedgerUnavailableError:
                self._ports.log.error("settlement_not_recorded", sale=sale.id)
                continue
            return

    async def _ask(self, sale: Sale) -> Settlement:
        payload = msgspec.json.decode(sale.payload, type=PaymentPayload)
        requirements = msgspec.json.decode(sale.requirements, type=PaymentRequirements)
        asked_s = self._ports.clock.monotonic_s()
        settlement = await self._ports.facilitator.settle(payload, requirements)
        self._ports.metrics.settlement_s.observe(self._ports.clock.monotonic_s() - asked_s)
        return settlement

    async def _book(self, sale: Sale, settlement: Settlement, on_settled: Sequence[Event]) -> None:
        ports = self._ports
        match settlement.outcome:
            case SettleOutcome.SETTLED:
                change = Change(
                    settled_atomic=sale.authorized_atomic,
                    transaction=settlement.transaction,
                    reason=settlement.reason,
                    log_index=settlement.log_index,
                )
                recorded = await ports.ledger.record(sale.id, on_settled, change)
                ports.metrics.revenue(sale.key.network, sale.key.asset, sale.authorized_atomic)
            case SettleOutcome.FAILED:
                change = Change(settled_atomic=0, reason=settlement.reason)
                recorded = await ports.ledger.record(sale.id, [Event.SETTLE_FAILED], change)
            case SettleOutcome.PENDING | SettleOutcome.UNKNOWN:
                change = Change(transaction=settlement.transaction or None, reason=settlement.reason)
                recorded = await ports.ledger.record(sale.id, [Event.SETTLE_UNKNOWN], change)
        ports.metrics.payment(sale.offer, recorded.state)
        ports.log.info(
            "settlement",
            sale=sale.id,
            offer=sale.offer,
            state=recorded.state.value,
            reason=settlement.reason,
            transaction=settlement.transaction,
        )

    async def _go_on(
        self,
        held_by: str,
        reason: str,
        tried: asyncio.Event,
        delivery: Delivery | None,
        *,
        only: frozenset[State] = _UNFINISHED,
    ) -> None:
        """Resume what an attempt holds; `delivery` None: as far as is recorded."""
        attempt = 0
        while True:
            try:
                current = await self._ports.ledger.held_by(held_by)
                if current is not None and current.id not in self._pursued and current.state in only:
                    await self._resume(replace(current, delivery=delivery or current.delivery), reason)
                return
            except SaleTakenError:  # released and redeemed by another in between
                return
            except LedgerUnavailableError:
                self._ports.log.error("sale_not_recorded", attempt=held_by)
            finally:
                tried.set()
            await self._wait(attempt)
            attempt += 1

    async def _resume(self, sale: Sale, reason: str) -> None:
        """Go on from where the ledger says a sale is, with `sale.delivery` for what was handed over."""
        ledger, handed_over = self._ports.ledger, Change(delivery=sale.delivery)
        late = [Event.SETTLED_UNDELIVERED] if sale.delivery is Delivery.NONE else [Event.SETTLED]
        match sale.state:
            case State.CLAIMED | State.SERVING | State.REDEEMING:
                await self._free(sale, reason)
            case State.SERVED if sale.delivery is Delivery.NONE:  # policy AFTER: nothing left, and nobody was asked
                await self._free(sale, reason)
            case State.SERVED:
                await ledger.record(sale.id, [Event.SETTLE, Event.SETTLE_UNKNOWN], handed_over)
                self._pursue(sale, lambda _: late)
            case State.SETTLING:
                await ledger.record(sale.id, [Event.SETTLE_UNKNOWN], handed_over)
                self._pursue(sale, lambda _: late)
            case State.SETTLE_UNKNOWN:
                self._pursue(sale, lambda _: late)
            case _:
                self._ports.log.error("adopted_a_finished_sale", sale=sale.id, state=sale.state.value)

    async def _free(self, sale: Sale, reason: str) -> None:
        """Back to where the buyer loses nothing: RELEASED, or OWED from REDEEMING."""
        freed = await self._ports.ledger.record(sale.id, [Event.RELEASE], Change(reason=reason), attempt=sale.attempt)
        self._ports.metrics.payment(freed.offer, freed.state)

    async def _keep_recording(
        self, sale: Sale, events: Sequence[Event], change: Change, after: Recording | None
    ) -> bool:
        """False when another holds the sale now, and nothing was recorded."""
        if after is not None:
            await asyncio.wait((after,))
        tries = 0
        while True:
            try:
                recorded = await self._ports.ledger.record(sale.id, events, change, attempt=sale.attempt)
            except SaleTakenError:  # adopted and released, then redeemed by another: that one's record counts
                self._ports.log.warning("sale_taken", sale=sale.id)
                return False
            except LedgerUnavailableError:
                self._ports.log.error("sale_not_recorded", sale=sale.id)
                await self._wait(tries)
                tries += 1
            else:
                if events:
                    self._ports.metrics.payment(recorded.offer, recorded.state)
                return True

    async def _wait(self, attempt: int) -> None:
        await asyncio.sleep(self._schedule_s[min(attempt, len(self._schedule_s) - 1)])

    def _spawn(self, work: Coroutine[Any, Any, T], tasks: set[asyncio.Task[Any]]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(self._report)
        return task

    def _report(self, task: asyncio.Task[Any]) -> None:
        """A background loop's edge: a bug must not vanish with its task."""
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, _TOLD):  # where it was met
            self._ports.log.error("settler_failed", error=type(error).__name__, exc_info=error)


def _in_parts(sales: Sequence[Sale], size: int) -> Iterator[Sequence[Sale]]:
    """In order, `size` at a time."""
    return (sales[start : start + size] for start in range(0, len(sales), size))


def attempt_of(sale: Sale | NewSale) -> str:
    """The attempt that holds a sale, or would hold one whose claim may have been recorded."""
    return sale.attempt if isinstance(sale, Sale) else sale.id


def _is_resolved(settlement: Settlement) -> bool:
    return settlement.outcome in (SettleOutcome.SETTLED, SettleOutcome.FAILED)
