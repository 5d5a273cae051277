"""The nonce manager of one key on one chain: every call is mined once, or provably never was.

A transaction is in the journal before it is broadcast, so whatever happens next is found again: by its key, after a
crash, under whichever of its hashes. Nonces are given out in order under one lock, and broadcast beside each other; the
nonce of what no node takes is given out again, or filled with an empty transaction where later ones are out already.
What is not mined is watched. A transaction that reverted was mined; it is never sent again.
"""

import asyncio
import contextlib
from collections.abc import Container, Set
from pathlib import Path
from typing import Self

import structlog

from obol.adapters.chain_evm import EvmChain
from obol.adapters.evm_calls import Call, Mined, NotSent, Sent, Unmined
from obol.adapters.evm_fees import Fees, GasPrice
from obol.adapters.evm_journal import CallState, EvmJournal
from obol.adapters.evm_outbox import Answer, Outbox
from obol.adapters.evm_refusals import Meaning
from obol.adapters.evm_signing import TransactionSigner
from obol.adapters.evm_watch import DEFAULT_LIMITS, LONG_AGO, NOT_YET, SendingLimits, Watch, Watched, newest
from obol.core.clock import Clock
from obol.errors import ChainUnavailableError

__all__ = ["DEFAULT_LIMITS", "Sender", "SendingLimits"]

_POLL_S = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Waits between looks at what is not mined; the last one repeats."""
_FAR_OFF = 1_000
"""A count of our transactions that is off the journal's by more is not believed."""
_MOST_NONCES = 2**40
"""Nobody has sent so many."""
_FILLED_AT_ONCE = 16
"""Free nonces that we never gave out are filled up to here. More come from a count that was wrong: new calls take them.
"""


class Sender:
    """Open with `open`, end with `close`. Takes over signer and journal, not the chain."""

    def __init__(
        self,
        chain: EvmChain,
        signer: TransactionSigner,
        journal: EvmJournal,
        clock: Clock,
        log: structlog.typing.FilteringBoundLogger,
        *,
        limits: SendingLimits = DEFAULT_LIMITS,
    ) -> None:
        self.address = signer.address
        self._chain = chain
        self._journal = journal
        self._clock = clock
        self._log = log
        self._recount_s = limits.rebroadcast_s
        self._lock = asyncio.Lock()
        self._next_nonce = 0
        self._price = GasPrice(chain, clock, cap_wei=limits.max_fee_wei)
        self._outbox = Outbox(chain, signer, clock, log)
        self._watch = Watch(chain, journal, self._outbox, self._price, clock, log, limits=limits)
        self._watching: asyncio.Task[None] | None = None
        self._sending: set[asyncio.Task[Watched | NotSent]] = set()
        self._is_in_step = False
        """Whether `_next_nonce` agrees with the journal, and nothing before it is missing."""
        self._counted_s = LONG_AGO

    @classmethod
    async def open(
        cls,
        chain: EvmChain,
        signer: TransactionSigner,
        journal: Path,
        clock: Clock,
        log: structlog.typing.FilteringBoundLogger,
        *,
        limits: SendingLimits = DEFAULT_LIMITS,
    ) -> Self:
        """Go on where the journal says. Raises `SettingsError` (journal), `ChainUnavailableError`."""
        opened = await EvmJournal.open(journal)
        sender = cls(chain, signer, opened, clock, log, limits=limits)
        try:
            await sender._start()
        except BaseException:
            await sender.close()
            raise
        return sender

    @property
    def unmined(self) -> int:
        """Calls that are not in a block that counts yet."""
        return len(self._watch.open)

    async def run(self, call: Call, *, wait_s: float) -> Sent | NotSent:
        """Send a call and wait up to `wait_s` for its end. None of its keys may have been sent before (`known`).

        `NotSent`: it is not mined and never will be, it can be sent anew. Raises `ChainUnavailableError` where nothing
        was sent because the chain or the signer could not be asked, `LedgerUnavailableError` where it may or may not
        have been written down: ask `known` again.
        """
        # A task of its own: whoever waits may be cancelled, and what was written down must be sent all the same.
        sending = asyncio.get_running_loop().create_task(self._send_new(call))
        self._sending.add(sending)
        sending.add_done_callback(self._sending.discard)
        watched = await asyncio.shield(sending)
        return watched if isinstance(watched, NotSent) else await watched.outcome(wait_s)

    async def too_dear(self) -> NotSent | None:
        """Why nothing would be sent now: gas costs more than we pay, or can pay. Raises `ChainUnavailableError`."""
        fees = await self._fees()
        return fees if isinstance(fees, NotSent) else None

    async def known(self, key: str, *, wait_s: float = 0.0) -> Sent | None:
        """What became of the call that was sent for a key, waiting for it; None when none was, or it was never made.

        A transaction that a reorganisation took back is open again. Raises like `run`.
        """
        call = await self._journal.by_key(key)
        if call is None:
            return None
        if call.state is CallState.MINED:
            receipt = await self._chain.receipt(call.mined)
            if receipt is not None and await self._chain.is_deep(receipt.block):
                return Mined(receipt)
            if receipt is None and await self._chain.transaction_count(self.address) > call.nonce:
                raise ChainUnavailableError("the node does not show the receipt of a transaction that was mined")
            await self._journal.mark(call, CallState.OPEN)
            self._watch.add(call, since_s=LONG_AGO)
            self._is_in_step = False  # others may be back as well
        watched = self._watch.open.get(call.nonce)
        if watched is None or watched.call.id != call.id:  # ended since we looked
            return Unmined(newest(call))
        sent = await watched.outcome(wait_s)
        return None if isinstance(sent, NotSent) else sent

    async def close(self) -> None:
        """Stop watching; the journal keeps what is not mined. Idempotent."""
        if self._sending:
            await asyncio.wait(self._sending)
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
        await self._journal.close()
        await self._outbox.close()

    # --------------------------------------------------------------------------------------------------- sending

    async def _start(self) -> None:
        await self._get_in_step()
        self._watching = asyncio.get_running_loop().create_task(self._watch_all())

    async def _send_new(self, call: Call) -> Watched | NotSent:
        """Journal in turn, then broadcast beside others: a node may see a later nonce first."""
        for _ in range(2):
            async with self._lock:
                watched = await self._write_down(call)
            if isinstance(watched, NotSent):
                return watched
            answer: Answer | None = None
            try:
                answer = await self._outbox.broadcast(watched.call.attempts[0])
                if answer.is_proof:
                    await self._take_back(watched)
            finally:  # until here nobody broadcasts it again: what was refused must never be mined
                self._watch.sent(watched, answer)
            if not answer.is_proof:
                return watched
            if answer.meaning is not Meaning.USED:
                return NotSent("transaction_refused", f"the node refuses the transaction: {answer.text}")
            self._log.warning("nonce_taken_by_another", nonce=watched.call.nonce, address=self.address)
        return NotSent("nonce_taken", "another program sends with the same key")

    async def _write_down(self, call: Call) -> Watched | NotSent:
        """Give out the next nonce. From here on the call is sent: after a crash by the watch."""
        fees = await self._fees()
        if isinstance(fees, NotSent):
            return fees
        unready = None if self._is_in_step else await self._get_in_step()
        if unready is not None:
            return unready
        is_in_step = self._is_in_step
        watched = await self._add(call, self._next_nonce, fees, since_s=NOT_YET)
        self._next_nonce, self._is_in_step = self._free_from(self._next_nonce), is_in_step
        return watched

    async def _fees(self) -> Fees | NotSent:
        """What is offered now. What comes behind a call that waits for money would wait as well."""
        if self._watch.is_poor:
            return NotSent("gas_account_empty", "the account that pays for gas has too little")
        return await self._price.now()

    async def _add(self, call: Call, nonce: int, fees: Fees, *, since_s: float) -> Watched:
        attempt = await self._outbox.sign(nonce, call, fees)
        self._is_in_step = False  # until we know what was written down, and whoever called us that it was all
        entry = await self._journal.add(call.keys, nonce, call.to, call.data, call.gas_limit, attempt)
        return self._watch.add(entry, since_s=since_s)

    async def _take_back(self, watched: Watched) -> None:
        """No node took it, and nobody else has it."""
        async with self._lock:
            self._is_in_step = False
            await self._watch.void(watched)
            try:
                await self._get_in_step()
            except ChainUnavailableError as error:
                self._log.warning("nonces_out_of_step", error=str(error))  # the watch, or who sends next, tries again

    # ---------------------------------------------------------------------------------------------------- nonces

    async def _get_in_step(self) -> NotSent | None:
        """Agree with chain and journal on the next nonce, and see that all before it can be mined; else why not."""
        self._is_in_step = False
        first = await self._count()
        standing = await self._journal.standing(first)
        for call in standing:
            if call.state is CallState.MINED and call.nonce >= first:  # a reorganisation took it back
                await self._journal.mark(call, CallState.OPEN)
            self._watch.add(call, since_s=LONG_AGO)
        taken = {call.nonce for call in standing if call.nonce >= first}
        unready = await self._fill(first, {nonce for nonce in taken if not self._watch.is_on_its_way(nonce)}, taken)
        if unready is None:
            self._next_nonce = self._free_from(first, taken)
        return unready

    async def _count(self) -> int:
        """Of our transactions in the chain, where that can be true: a node may be behind, and blocks be taken back."""
        counted = await self._chain.transaction_count(self.address)
        mined, used = await self._journal.last_nonces()
        most = _MOST_NONCES if used < 0 else used + 1 + _FAR_OFF
        if not mined + 1 - _FAR_OFF <= counted <= most:
            known = f"the journal knows of {mined + 1}, and of {used - mined} that may be"
            raise ChainUnavailableError(f"the node counts {counted} transactions of {self.address}; {known}")
        return counted

    async def _fill(self, first: int, out: Set[int], taken: Set[int]) -> NotSent | None:
        """Use the free nonces that keep those that are out from being mined; why not, where gas is too dear.

        Those before what is only on its way are free as long as no node has taken it.
        """
        end, last = max(out, default=first - 1) + 1, max(taken, default=first - 1)
        missing = end - first - sum(nonce < end for nonce in taken)
        ours = await self._journal.given_back(first) - taken if missing else set()
        if missing - sum(nonce < end for nonce in ours) > _FILLED_AT_ONCE:
            self._log.error("nonces_far_apart", count=first, last=end - 1, address=self.address)
            missing = 0
        for nonce in range(first, end) if missing else ():
            fees = await self._price.now() if nonce not in taken else None
            if isinstance(fees, NotSent):
                return fees
            if fees is not None:
                await self._add(self._outbox.filler, nonce, fees, since_s=LONG_AGO)
                self._log.warning("nonce_filled", nonce=nonce, address=self.address)
        self._is_in_step = last + 1 - end == sum(nonce >= end for nonce in taken)
        return None

    def _free_from(self, nonce: int, taken: Container[int] = ()) -> int:
        """The first that is not given out."""
        while nonce in taken or nonce in self._watch.open:
            nonce += 1
        return nonce

    # -------------------------------------------------------------------------------------------------- watching

    async def _watch_all(self) -> None:
        looks = 0
        while True:
            if self._watch.is_idle:
                self._watch.news.clear()
                await self._watch.news.wait()
                looks = 0
            await self._watch.safely(self._look())
            if self._watch.news.is_set():
                self._watch.news.clear()
                looks = 0
            if not self._watch.is_idle:
                await asyncio.sleep(_POLL_S[min(looks, len(_POLL_S) - 1)])
                looks += 1

    async def _look(self) -> None:
        await self._watch.look()
        await self._recount()
        if not self._is_in_step:
            async with self._lock:
                if not self._is_in_step:
                    await self._get_in_step()

    async def _recount(self) -> None:
        """What a reorganisation took back keeps later ones from being mined, though nobody asks for it any more."""
        now_s = self._clock.monotonic_s()
        if self._watch.waits_long and now_s - self._counted_s >= self._recount_s:
            self._counted_s = now_s
            if await self._chain.transaction_count(self.address) < min(self._watch.open):
                self._is_in_step = False
