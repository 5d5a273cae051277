"""Watches what was sent and is in no block that counts: every call ends mined, or provably never made.

What may be lost is broadcast again. What blocks pass by is replaced at a higher fee. What nodes refuse for good is
replaced by a filler, another attempt at its nonce that does nothing: whichever of the attempts is mined decides.
"""

import asyncio
import contextlib
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field, replace

import structlog

from obol.adapters.chain_evm import EvmChain, TransactionReceipt
from obol.adapters.evm_calls import Mined, NotSent, Sent, Unmined
from obol.adapters.evm_fees import Fees, GasPrice
from obol.adapters.evm_journal import Attempt, CallState, EvmJournal, JournalCall
from obol.adapters.evm_outbox import Answer, Outbox
from obol.adapters.evm_refusals import Meaning
from obol.core.clock import Clock
from obol.errors import ChainUnavailableError, LedgerUnavailableError

LONG_AGO, NOT_YET = float("-inf"), float("inf")
_UNCLEAR_PATIENCE = 10
"""How many times longer an error that we do not understand may last before it counts as a refusal for good."""
_ASKED_AT_ONCE = 16
_PASSING_BLOCKS = 2
"""Blocks after which a transaction could have been mined: the next one may have been under way already."""
_FLAWS = frozenset({Meaning.POOR, Meaning.CHEAP, Meaning.REFUSED, Meaning.UNCLEAR})
_RAISED = frozenset({Meaning.KEPT, Meaning.LOST, Meaning.RIVAL})
"""A higher fee may help, where blocks came."""


@dataclass(frozen=True, slots=True)
class SendingLimits:
    """What is paid for gas at most (wei per gas), and when a transaction counts as lost or stuck (seconds)."""

    max_fee_wei: int = 100 * 10**9
    rebroadcast_s: float = 10.0
    replace_after_s: float = 30.0


DEFAULT_LIMITS = SendingLimits()


@dataclass(slots=True, eq=False)
class Watched:
    """A call that is not mined yet, and who waits for it."""

    call: JournalCall
    since_s: float
    """When it was broadcast: `NOT_YET` while it is on its way for the first time, and nobody else may do anything."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    receipt: TransactionReceipt | None = None
    is_void: bool = False
    answer: Answer | None = None
    """To its last broadcast."""
    refused_since_s: float | None = None
    revived_s: float = LONG_AGO
    looked_at: int = -1
    """The newest block when its receipts were asked for in vain."""
    offered_at: int | None = None
    """The newest block when its last attempt was new."""
    was_used: bool = False
    """Its nonce was used when we looked last, and none of its attempts had a receipt."""

    async def outcome(self, wait_s: float) -> Sent | NotSent:
        """What became of it, waiting up to `wait_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self.ended.wait()
        if self.receipt is not None:
            return Mined(self.receipt)
        if self.is_void:
            return NotSent("never_mined", "no node took the transaction, and its nonce was used without it")
        return Unmined(newest(self.call))

    @property
    def is_early(self) -> bool:
        """A node wants those before it first."""
        return self.answer is not None and self.answer.meaning is Meaning.EARLY

    def heard(self, answer: Answer, now_s: float) -> None:
        """The answer to a broadcast."""
        self.answer = answer
        if answer.meaning not in _FLAWS:
            self.refused_since_s = None
        elif self.refused_since_s is None:
            self.refused_since_s = now_s


def newest(call: JournalCall) -> str:
    """The transaction that stands for a call: its last one that is not a filler."""
    return next((one.transaction for one in reversed(call.attempts) if not one.is_filler), "")


class Watch:
    """What is open, and all that is done about it. `open` is by nonce."""

    def __init__(
        self,
        chain: EvmChain,
        journal: EvmJournal,
        outbox: Outbox,
        price: GasPrice,
        clock: Clock,
        log: structlog.typing.FilteringBoundLogger,
        *,
        limits: SendingLimits,
    ) -> None:
        self.open: dict[int, Watched] = {}
        self.news = asyncio.Event()
        """Set when there is more to look at."""
        self._chain = chain
        self._journal = journal
        self._outbox = outbox
        self._price = price
        self._clock = clock
        self._log = log
        self._limits = limits
        self._asking = asyncio.Semaphore(_ASKED_AT_ONCE)

    def add(self, call: JournalCall, *, since_s: float) -> Watched:
        """`since_s`: when it was broadcast, at the earliest."""
        watched = self.open.get(call.nonce)
        if watched is None or watched.call.id != call.id:
            watched = self.open[call.nonce] = Watched(call, since_s)
        if since_s != NOT_YET:
            self.news.set()
        return watched

    def sent(self, watched: Watched, answer: Answer | None) -> None:
        """It was broadcast for the first time; None where that broke off. From here on it is looked after."""
        watched.since_s = self._clock.monotonic_s()
        if answer is not None:
            watched.heard(answer, watched.since_s)
        self.news.set()

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to look at: `news` tells when there is."""
        return all(watched.since_s == NOT_YET for watched in self.open.values())

    @property
    def waits_long(self) -> bool:
        """Whether something may be lost or stuck."""
        now_s = self._clock.monotonic_s()
        return any(now_s - watched.since_s >= self._limits.rebroadcast_s for watched in self.open.values())

    @property
    def is_poor(self) -> bool:
        """Whether something waits for money for gas."""
        answers = (watched.answer for watched in self.open.values())
        return any(answer is not None and answer.meaning is Meaning.POOR for answer in answers)

    def is_on_its_way(self, nonce: int) -> bool:
        """Nobody knows yet whether a node takes it."""
        watched = self.open.get(nonce)
        return watched is not None and watched.since_s == NOT_YET

    async def void(self, watched: Watched) -> None:
        """It was never made, and never will be."""
        await self._journal.mark(watched.call, CallState.VOID)
        watched.is_void = True
        self._forget(watched)

    async def look(self) -> None:
        """Once at everything that was sent, by nonce. Raises `ChainUnavailableError`."""
        sent = [self.open[nonce] for nonce in sorted(self.open) if self.open[nonce].since_s != NOT_YET]
        newest_block = await self._chain.newest_block() if sent else 0
        async with asyncio.TaskGroup() as tasks:  # a node that is far away is asked for many receipts at a time
            for watched in sent:
                tasks.create_task(self.safely(self._look_for(watched, newest_block)))
        for watched in sent:
            if watched.looked_at == newest_block and self.open.get(watched.call.nonce) is watched:
                await self.safely(self._revive(watched, newest_block))
        await self.safely(self._send_early(sent))

    async def safely(self, work: Coroutine[None, None, None]) -> None:
        """A background loop's edge: what is not watched would never be mined."""
        log = self._log
        try:
            await work
        except (ChainUnavailableError, LedgerUnavailableError) as error:
            log.warning("cannot_watch", error=str(error))
        except Exception as bug:
            log.error("watching_failed", exc_info=bug)

    async def _look_for(self, watched: Watched, newest_block: int) -> None:
        """Is it mined? Asked once for each block."""
        if watched.offered_at is None:
            watched.offered_at = newest_block
        if newest_block == watched.looked_at:
            return
        async with self._asking:
            for attempt in self._likely(watched):
                receipt = await self._chain.receipt(attempt.transaction)
                if receipt is not None:
                    if newest_block - receipt.block + 1 >= self._chain.confirmations:
                        await self._end(watched, attempt, receipt)
                    return
        watched.looked_at = newest_block

    def _likely(self, watched: Watched) -> Sequence[Attempt]:
        """Which attempts may be mined, the likeliest first."""
        is_young = self._clock.monotonic_s() - watched.since_s < self._limits.rebroadcast_s
        return watched.call.attempts[-1:] if is_young else watched.call.attempts[::-1]

    async def _end(self, watched: Watched, attempt: Attempt, receipt: TransactionReceipt) -> None:
        if attempt.is_filler:
            self._log.error("call_given_up", transaction=newest(watched.call), filler=attempt.transaction)
            await self.void(watched)
            return
        await self._journal.mark(watched.call, CallState.MINED, receipt.transaction)
        watched.receipt = receipt
        self._forget(watched)

    def _forget(self, watched: Watched) -> None:
        watched.ended.set()
        if self.open.get(watched.call.nonce) is watched:
            del self.open[watched.call.nonce]

    # --------------------------------------------------------------------------------------- what is lost or stuck

    async def _send_early(self, sent: Sequence[Watched]) -> None:
        """What came before its turn, in turn, as far as a node takes it; what is not new waits to be revived."""
        now_s = self._clock.monotonic_s()
        for watched in sent:
            is_young = now_s - watched.since_s < self._limits.rebroadcast_s
            if watched.is_early and is_young and not watched.ended.is_set():
                await self._broadcast(watched)
                if watched.is_early:
                    return

    async def _revive(self, watched: Watched, newest_block: int) -> None:
        """Broadcast again or replace, now and then. What cannot be mined any more is void."""
        now_s = self._clock.monotonic_s()
        if now_s - max(watched.revived_s, watched.since_s) < self._limits.rebroadcast_s:
            return
        watched.revived_s = now_s
        if self._is_refused_for_good(watched, now_s):
            await self._replace(watched, newest_block, is_filler=True)
        elif self._is_passed_by(watched, newest_block):
            await self._replace(watched, newest_block, is_filler=watched.call.attempts[-1].is_filler)
        answer = await self._broadcast(watched)
        if answer.meaning is Meaning.KEPT:
            watched.was_used = False
            return
        if answer.meaning in _FLAWS:
            self._log.warning("transaction_stuck", transaction=newest(watched.call), error=answer.text)
        await self._void_if_used(watched, newest_block)

    def _is_refused_for_good(self, watched: Watched, now_s: float) -> bool:
        """Not for want of money or at too low a price: that passes, and a filler would not be taken either."""
        answer, since_s = watched.answer, watched.refused_since_s
        if answer is None or since_s is None or watched.call.attempts[-1].is_filler:
            return False
        factor = {Meaning.REFUSED: 1, Meaning.UNCLEAR: _UNCLEAR_PATIENCE}.get(answer.meaning)
        return factor is not None and now_s - since_s >= factor * self._limits.replace_after_s

    def _is_passed_by(self, watched: Watched, newest_block: int) -> bool:
        """Whether it is its price that keeps it from being mined: a chain that stands still takes no higher one."""
        is_old = self._clock.now_s() - watched.call.attempts[-1].at_s >= self._limits.replace_after_s
        if watched.answer is None or watched.offered_at is None or not is_old:
            return False
        passed = newest_block - watched.offered_at
        return watched.answer.meaning is Meaning.CHEAP or (
            watched.answer.meaning in _RAISED and passed >= _PASSING_BLOCKS
        )

    async def _replace(self, watched: Watched, newest_block: int, *, is_filler: bool) -> None:
        """Another attempt, at a fee that nodes accept for a replacement where that is not above what we pay."""
        call, last = watched.call, watched.call.attempts[-1]
        offered = Fees(last.max_fee_wei, last.priority_fee_wei)
        fees = await self._price.for_replacing(offered)
        if fees is None and is_filler == last.is_filler:
            self._log.warning("fee_not_raised", transaction=last.transaction, max_fee_wei=last.max_fee_wei)
            return
        what = self._outbox.filler if is_filler else call
        attempt = await self._outbox.sign(call.nonce, what, fees or offered, is_filler=is_filler)
        await self._journal.add_attempt(call, attempt)
        watched.call = replace(call, attempts=(*call.attempts, attempt))
        watched.offered_at, watched.refused_since_s = newest_block, None
        self._log.info("transaction_replaced", old=last.transaction, new=attempt.transaction, is_filler=is_filler)

    async def _broadcast(self, watched: Watched) -> Answer:
        answer = await self._outbox.broadcast(watched.call.attempts[-1])
        watched.heard(answer, self._clock.monotonic_s())
        return answer

    async def _void_if_used(self, watched: Watched, newest_block: int) -> None:
        """Somebody else's transaction has its nonce, deep enough to stay, and none of ours has a receipt.

        Seen twice: nodes behind one address may not all be as far.
        """
        deep = max(0, newest_block - self._chain.confirmations + 1)
        is_used = await self._chain.transaction_count(self._outbox.address, hex(deep)) > watched.call.nonce
        for attempt in watched.call.attempts if is_used else ():
            is_used = is_used and await self._chain.receipt(attempt.transaction) is None
        if is_used and watched.was_used:
            self._log.error("nonce_taken_by_another", nonce=watched.call.nonce, address=self._outbox.address)
            await self.void(watched)
        watched.was_used = is_used
