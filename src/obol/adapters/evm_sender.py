"""The nonce manager of one key on one chain: every call is mined once, or provably never was.

A transaction is in the journal before it is broadcast, so whatever happens next is found again: by its key, after a
crash, under whichever of its hashes. Nonces are given out in order under one lock, and broadcast beside each other; the
nonce of what no node takes is given out again, or filled with an empty transaction where later ones are out already.
What is not mined is watched: broadcast again, and replaced at a higher fee when it is stuck. A transaction that
reverted was mined; it is never sent again.
"""

import asyncio
import contextlib
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import structlog

from obol.adapters.chain_evm import EvmChain, TransactionReceipt
from obol.adapters.evm_calls import Call, Mined, NotSent, Sent, Unmined
from obol.adapters.evm_fees import Fees, GasPrice
from obol.adapters.evm_journal import Attempt, CallState, EvmJournal, JournalCall
from obol.adapters.evm_signing import TransactionFields, TransactionSigner
from obol.adapters.rpc_http import RpcRefusedError
from obol.core.clock import Clock
from obol.errors import ChainUnavailableError, LedgerUnavailableError

_POLL_S = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Waits between looks at what is not mined; the last one repeats."""
_NOTHING_GAS = 21_000
"""For a transaction to ourselves that does nothing."""
_LONG_AGO, _NOT_YET = float("-inf"), float("inf")
_SAME = ("already known", "known transaction", "already imported")
_TOO_LOW = ("nonce too low", "already been used", "invalid nonce", "nonce is too low")


@dataclass(frozen=True, slots=True)
class SendingLimits:
    """What is paid for gas at most (wei per gas), and when a transaction counts as lost or stuck (seconds)."""

    max_fee_wei: int = 100 * 10**9
    rebroadcast_s: float = 10.0
    replace_after_s: float = 30.0


DEFAULT_LIMITS = SendingLimits()


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
        self._signer = signer
        self._journal = journal
        self._clock = clock
        self._log = log
        self._limits = limits
        self._lock = asyncio.Lock()
        self._next_nonce = 0
        self._price = GasPrice(chain, clock, cap_wei=limits.max_fee_wei)
        self._open: dict[int, _Watched] = {}
        """By nonce."""
        self._wake = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self._sending: set[asyncio.Task[_Watched | NotSent]] = set()
        self._is_in_step = False
        """Whether `_next_nonce` agrees with the journal."""

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
        return len(self._open)

    async def run(self, call: Call, *, wait_s: float) -> Sent | NotSent:
        """Send a call and wait up to `wait_s` for its end. None of its keys may have been sent before (`known`).

        Raises `ChainUnavailableError` where nothing was sent because the chain or the signer could not be asked,
        `LedgerUnavailableError` where it may or may not have been written down: ask `known` again.
        """
        # A task of its own: whoever waits may be cancelled, and what was written down must be sent all the same.
        sending = asyncio.get_running_loop().create_task(self._send_new(call))
        self._sending.add(sending)
        sending.add_done_callback(self._sending.discard)
        watched = await asyncio.shield(sending)
        return watched if isinstance(watched, NotSent) else await self._wait(watched, wait_s)

    async def too_dear(self) -> NotSent | None:
        """Why nothing would be sent now: gas costs more than we pay. Raises `ChainUnavailableError`."""
        fees = await self._price.now()
        return fees if isinstance(fees, NotSent) else None

    async def known(self, key: str, *, wait_s: float = 0.0) -> Sent | None:
        """What became of the call that was sent for a key, waiting for it; None when none was.

        A transaction that a reorganisation took back is open again. Raises like `run`.
        """
        call = await self._journal.by_key(key)
        if call is None:
            return None
        if call.state is CallState.MINED:
            receipt = await self._chain.receipt(call.mined)
            if receipt is not None:
                return Mined(receipt)
            if await self._chain.transaction_count(self.address) > call.nonce:
                raise ChainUnavailableError("the node does not show the receipt of a transaction that was mined")
            await self._journal.mark(call, CallState.OPEN)
            self._watch(call, since_s=_LONG_AGO)
        watched = self._open.get(call.nonce)
        if watched is None:  # mined since we looked
            return Unmined(call.attempts[-1].transaction)
        return await self._wait(watched, wait_s)

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
        await self._signer.close()

    # --------------------------------------------------------------------------------------------------- sending

    async def _start(self) -> None:
        await self._get_in_step()
        self._watching = asyncio.get_running_loop().create_task(self._watch_all())

    async def _send_new(self, call: Call) -> "_Watched | NotSent":
        """Journal in turn, then broadcast beside others: a node may see a later nonce first."""
        for _ in range(2):
            async with self._lock:
                watched = await self._write_down(call)
            if isinstance(watched, NotSent):
                return watched
            try:
                flaw = await self._broadcast(watched.call.attempts[0])
            finally:
                watched.since_s = self._clock.monotonic_s()
                self._wake.set()
            if flaw is None:
                return watched
            await self._take_back(watched)
            if not _says(flaw, _TOO_LOW):
                return NotSent("transaction_refused", f"the node refuses the transaction: {flaw}")
            self._log.warning("nonce_taken_by_another", nonce=watched.call.nonce, address=self.address)
        return NotSent("nonce_taken", "another program sends with the same key")

    async def _write_down(self, call: Call) -> "_Watched | NotSent":
        """Give out the next nonce. From here on the call is sent: after a crash by the watch."""
        fees = await self._price.now()
        if isinstance(fees, NotSent):
            return fees
        unready = None if self._is_in_step else await self._get_in_step()
        return unready or await self._add(call, self._next_nonce, fees)

    async def _add(self, call: Call, nonce: int, fees: Fees) -> "_Watched":
        attempt = await self._sign(nonce, call.to, call.data, call.gas_limit, fees)
        self._is_in_step = False  # until we know what was written down
        entry = await self._journal.add(call.keys, nonce, call.to, call.data, call.gas_limit, attempt)
        self._next_nonce, self._is_in_step = max(self._next_nonce, nonce + 1), True
        return self._watch(entry, since_s=_NOT_YET)

    async def _take_back(self, watched: "_Watched") -> None:
        """No node took it, and nobody else has it."""
        async with self._lock:
            self._is_in_step = False
            await self._journal.mark(watched.call, CallState.VOID)
            self._open.pop(watched.call.nonce, None)
            try:
                await self._get_in_step()
            except ChainUnavailableError as error:
                self._log.warning("nonces_out_of_step", error=str(error))  # the watch, or who sends next, tries again

    async def _get_in_step(self) -> NotSent | None:
        """Agree with chain and journal on the next nonce, and see that all before it can be mined; else why not."""
        self._is_in_step = False
        first = await self._chain.transaction_count(self.address)
        standing = await self._journal.standing(first)
        for call in standing:
            if call.state is CallState.MINED and call.nonce >= first:  # a reorganisation took it back
                await self._journal.mark(call, CallState.OPEN)
            self._watch(call, since_s=_LONG_AGO)
        taken = {call.nonce for call in standing}
        self._next_nonce = max(first, *(nonce + 1 for nonce in taken)) if taken else first
        for nonce in sorted(set(range(first, self._next_nonce)) - taken):
            fees = await self._price.now()
            if isinstance(fees, NotSent):
                return fees
            filler = await self._add(Call((), self.address, b"", _NOTHING_GAS), nonce, fees)
            filler.since_s = _LONG_AGO
            self._log.warning("nonce_filled", nonce=nonce, address=self.address)
        self._is_in_step = True
        return None

    async def _sign(self, nonce: int, to: str, data: bytes, gas_limit: int, fees: Fees) -> Attempt:
        signed = await self._signer.sign(
            TransactionFields(
                self._chain.network.chain_id, nonce, to, data, gas_limit, fees.max_fee_wei, fees.priority_fee_wei
            )
        )
        return Attempt(signed.transaction, signed.raw, fees.max_fee_wei, fees.priority_fee_wei, self._clock.now_s())

    async def _broadcast(self, attempt: Attempt) -> str | None:
        """None when a node has the transaction, or may have it; else why it was refused."""
        try:
            await self._chain.send_raw(attempt.raw)
        except RpcRefusedError as refused:
            if refused.is_last_word and not _says(str(refused), _SAME):
                return str(refused)
        except ChainUnavailableError:
            self._log.warning("broadcast_unknown", transaction=attempt.transaction)
        return None

    # -------------------------------------------------------------------------------------------------- watching

    def _watch(self, call: JournalCall, *, since_s: float) -> "_Watched":
        """`since_s`: when it was broadcast, at the earliest."""
        watched = self._open.get(call.nonce) or _Watched(call, since_s)
        self._open[call.nonce] = watched
        self._wake.set()
        return watched

    async def _wait(self, watched: "_Watched", wait_s: float) -> Sent:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await watched.ended.wait()
        if watched.receipt is not None:
            return Mined(watched.receipt)
        return Unmined(watched.call.attempts[-1].transaction)

    async def _watch_all(self) -> None:
        looks = 0
        while True:
            if not self._open:
                self._wake.clear()
                await self._wake.wait()
                looks = 0
            await self._safely(self._look_at_all())
            if self._wake.is_set():
                self._wake.clear()
                looks = 0
            await asyncio.sleep(_POLL_S[min(looks, len(_POLL_S) - 1)])
            looks += 1

    async def _safely(self, work: Coroutine[None, None, None]) -> None:
        """A background loop's edge: what is not watched would never be mined."""
        log = self._log
        try:
            await work
        except (ChainUnavailableError, LedgerUnavailableError) as error:
            log.warning("cannot_watch", error=str(error))
        except Exception as bug:
            log.error("watching_failed", exc_info=bug)

    async def _look_at_all(self) -> None:
        sent = [watched for watched in self._open.values() if watched.since_s != _NOT_YET]
        newest = await self._chain.newest_block() if sent else 0
        for watched in sent:
            await self._safely(self._look(watched, newest))
        if not self._is_in_step:
            async with self._lock:
                if not self._is_in_step:
                    await self._get_in_step()

    async def _look(self, watched: "_Watched", newest: int) -> None:
        """Is it mined? Asked once for each block. If not for long: is it lost, or stuck?"""
        if newest != watched.looked_at:
            is_young = self._clock.monotonic_s() - watched.since_s < self._limits.rebroadcast_s
            attempts = watched.call.attempts[-1:] if is_young else tuple(reversed(watched.call.attempts))
            for attempt in attempts:  # the newest is the likeliest
                receipt = await self._chain.receipt(attempt.transaction)
                if receipt is not None:
                    if newest - receipt.block + 1 >= self._chain.confirmations:
                        await self._end(watched, receipt)
                    return
            watched.looked_at = newest
        await self._revive(watched)

    async def _end(self, watched: "_Watched", receipt: TransactionReceipt) -> None:
        await self._journal.mark(watched.call, CallState.MINED, receipt.transaction)
        watched.receipt = receipt
        watched.ended.set()
        self._open.pop(watched.call.nonce, None)

    async def _revive(self, watched: "_Watched") -> None:
        """Broadcast again or replace, now and then. A nonce that somebody else used is void."""
        now_s = self._clock.monotonic_s()
        if now_s - max(watched.revived_s, watched.since_s) < self._limits.rebroadcast_s:
            return
        watched.revived_s = now_s
        last = watched.call.attempts[-1]
        if self._clock.now_s() - last.at_s >= self._limits.replace_after_s:
            last = await self._bump(watched) or last
        flaw = await self._broadcast(last)
        if flaw is not None and _says(flaw, _TOO_LOW):
            await self._void_if_taken(watched)
        elif flaw is not None:
            self._log.warning("transaction_stuck", transaction=last.transaction, error=flaw)

    async def _bump(self, watched: "_Watched") -> Attempt | None:
        """A replacement at fees that nodes accept (12.5 % more), in the journal; None at the cap."""
        call, last = watched.call, watched.call.attempts[-1]
        fees = await self._price.for_replacing(Fees(last.max_fee_wei, last.priority_fee_wei))
        if fees is None:
            self._log.warning("fee_cap_reached", transaction=last.transaction, cap_wei=self._price.cap_wei)
            return None
        attempt = await self._sign(call.nonce, call.to, call.data, call.gas_limit, fees)
        await self._journal.add_attempt(call, attempt)
        watched.call = replace(call, attempts=(*call.attempts, attempt))
        self._log.info("transaction_replaced", old=last.transaction, new=attempt.transaction)
        return attempt

    async def _void_if_taken(self, watched: "_Watched") -> None:
        """Somebody else's transaction has our nonce, deep enough to stay, and none of ours has a receipt: the call was
        never made."""
        deep = await self._chain.newest_block() - self._chain.confirmations + 1
        if await self._chain.transaction_count(self.address, hex(max(0, deep))) <= watched.call.nonce:
            return
        for attempt in watched.call.attempts:
            if await self._chain.receipt(attempt.transaction) is not None:
                return
        self._log.error("nonce_taken_by_another", nonce=watched.call.nonce, address=self.address)
        await self._journal.mark(watched.call, CallState.VOID)
        watched.ended.set()
        self._open.pop(watched.call.nonce, None)


@dataclass(slots=True, eq=False)
class _Watched:
    """A call that is not mined yet, and who waits for it."""

    call: JournalCall
    since_s: float
    """When it was broadcast: `_NOT_YET` while it is on its way for the first time, and nobody else may do anything."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    receipt: TransactionReceipt | None = None
    revived_s: float = float("-inf")
    looked_at: int = -1
    """The newest block when its receipts were asked for in vain."""


def _says(flaw: str, texts: Sequence[str]) -> bool:
    return any(text in flaw.lower() for text in texts)
