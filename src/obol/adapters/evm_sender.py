"""The nonce manager of one key on one chain: every call is mined once, or provably never was.

A transaction is in the journal before it is broadcast, so whatever happens next is found again: by its key, after a
crash, under whichever of its hashes. Nonces are given out in order under one lock, and the next one only once a node
has taken the one before, or may have: there is never a gap. What is not mined is watched: broadcast again, and
replaced at a higher fee when it is stuck. A transaction that reverted was mined; it is never sent again.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import structlog

from obol.adapters.chain_evm import EvmChain, TransactionReceipt
from obol.adapters.evm_journal import Attempt, CallState, EvmJournal, JournalCall
from obol.adapters.evm_signing import TransactionFields, TransactionSigner
from obol.adapters.rpc_http import RpcRefusedError
from obol.core.clock import Clock
from obol.errors import ChainUnavailableError, LedgerUnavailableError

_POLL_S = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Waits between looks at what is not mined; the last one repeats."""
_FEES_AGE_S = 2.0
_SAME = ("already known", "known transaction", "already imported")
_TOO_LOW = ("nonce too low", "already been used", "invalid nonce", "nonce is too low")


@dataclass(frozen=True, slots=True)
class SendingLimits:
    """What is paid for gas at most (wei per gas), and when a transaction counts as lost or stuck (seconds)."""

    max_fee_wei: int = 100 * 10**9
    rebroadcast_s: float = 10.0
    replace_after_s: float = 30.0


DEFAULT_LIMITS = SendingLimits()


@dataclass(frozen=True, slots=True)
class Call:
    """What to send. `keys` are its purposes: one that was sent is never sent again."""

    keys: tuple[str, ...]
    to: str
    data: bytes = field(repr=False)
    gas_limit: int
    is_alone: bool = False
    """It must have a transaction of its own."""


@dataclass(frozen=True, slots=True)
class Mined:
    """In a block that counts; `receipt.is_success` says how it ended."""

    receipt: TransactionReceipt


@dataclass(frozen=True, slots=True)
class Unmined:
    """Broadcast, or perhaps; it may be mined at any time."""

    transaction: str


@dataclass(frozen=True, slots=True)
class NotSent:
    """Nothing left this machine that could ever be mined. `reason` is a stable code."""

    reason: str
    message: str


Sent = Mined | Unmined


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
        self._fees: tuple[float, int, int] | None = None
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
        sending = asyncio.get_running_loop().create_task(self._send_in_turn(call))
        self._sending.add(sending)
        sending.add_done_callback(self._sending.discard)
        watched = await asyncio.shield(sending)
        return watched if isinstance(watched, NotSent) else await self._wait(watched, wait_s)

    async def too_dear(self) -> NotSent | None:
        """Why nothing would be sent now: gas costs more than we pay. Raises `ChainUnavailableError`."""
        fees = await self._fees_now()
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
            self._watch(call, since_s=float("-inf"))
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

    async def _get_in_step(self) -> None:
        """Take the next nonce from chain and journal, and watch what the journal has open."""
        self._next_nonce = await self._chain.transaction_count(self.address)
        for call in await self._journal.open_calls():
            self._watch(call, since_s=float("-inf"))
            self._next_nonce = max(self._next_nonce, call.nonce + 1)
        self._is_in_step = True

    async def _send_in_turn(self, call: Call) -> "_Watched | NotSent":
        """The next nonce is given out when a node has this one, or may have it."""
        async with self._lock:
            if not self._is_in_step:
                await self._get_in_step()
            fees = await self._fees_now()
            if isinstance(fees, NotSent):
                return fees
            return await self._send(call, fees)

    async def _send(self, call: Call, fees: tuple[int, int]) -> "_Watched | NotSent":
        """Journal, then broadcast."""
        for _ in range(2):
            nonce = self._next_nonce
            attempt = await self._sign(nonce, call.to, call.data, call.gas_limit, fees)
            self._is_in_step = False  # until we know what was written down
            entry = await self._journal.add(call.keys, nonce, call.to, call.data, call.gas_limit, attempt)
            flaw = await self._broadcast(attempt)
            if flaw is None:
                self._next_nonce, self._is_in_step = nonce + 1, True
                return self._watch(entry, since_s=self._clock.monotonic_s())
            await self._journal.mark(entry, CallState.VOID)  # no node took it, and nobody else has it
            self._is_in_step = True
            if not _says(flaw, _TOO_LOW):
                return NotSent("transaction_refused", f"the node refuses the transaction: {flaw}")
            self._log.warning("nonce_taken_by_another", nonce=nonce, address=self.address)
            self._next_nonce = max(nonce + 1, await self._chain.transaction_count(self.address))
        return NotSent("nonce_taken", "another program sends with the same key")

    async def _sign(self, nonce: int, to: str, data: bytes, gas_limit: int, fees: tuple[int, int]) -> Attempt:
        max_fee_wei, priority_fee_wei = fees
        signed = await self._signer.sign(
            TransactionFields(self._chain.network.chain_id, nonce, to, data, gas_limit, max_fee_wei, priority_fee_wei)
        )
        return Attempt(signed.transaction, signed.raw, max_fee_wei, priority_fee_wei, self._clock.now_s())

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

    async def _fees_now(self) -> tuple[int, int] | NotSent:
        """Max fee and priority fee, in wei per gas: twice the base fee leaves room for five full blocks."""
        now_s = self._clock.monotonic_s()
        if self._fees is None or now_s - self._fees[0] > _FEES_AGE_S:
            block = await self._chain.block()
            self._fees = (now_s, block.base_fee_wei, await self._chain.priority_fee())
        _, base_wei, priority_wei = self._fees
        if base_wei + priority_wei > self._limits.max_fee_wei:
            text = f"gas costs {base_wei + priority_wei} wei now; the cap is {self._limits.max_fee_wei}"
            return NotSent("gas_price_above_cap", text)
        return min(2 * base_wei + priority_wei, self._limits.max_fee_wei), priority_wei

    # -------------------------------------------------------------------------------------------------- watching

    def _watch(self, call: JournalCall, *, since_s: float) -> "_Watched":
        """`since_s`: when it was broadcast for sure; long ago for what may not have been."""
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
        looks, log = 0, self._log
        while True:
            if not self._open:
                self._wake.clear()
                await self._wake.wait()
                looks = 0
            try:
                newest = await self._chain.newest_block()
            except ChainUnavailableError as error:
                log.warning("cannot_watch", error=str(error))
            else:
                for watched in list(self._open.values()):
                    await self._look_safely(watched, newest)
            if self._wake.is_set():
                self._wake.clear()
                looks = 0
            await asyncio.sleep(_POLL_S[min(looks, len(_POLL_S) - 1)])
            looks += 1

    async def _look_safely(self, watched: "_Watched", newest: int) -> None:
        """A background loop's edge: what is not watched would never be mined."""
        log = self._log
        try:
            await self._look(watched, newest)
        except (ChainUnavailableError, LedgerUnavailableError) as error:
            log.warning("cannot_watch", error=str(error))
        except Exception as bug:
            log.error("watching_failed", exc_info=bug)

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
        fees = await self._fees_now()
        wanted = (0, 0) if isinstance(fees, NotSent) else fees
        max_fee_wei = max(last.max_fee_wei * 9 // 8 + 1, wanted[0])
        priority_fee_wei = max(last.priority_fee_wei * 9 // 8 + 1, wanted[1])
        if max_fee_wei > self._limits.max_fee_wei:
            self._log.warning("fee_cap_reached", transaction=last.transaction, cap_wei=self._limits.max_fee_wei)
            return None
        attempt = await self._sign(
            call.nonce, call.to, call.data, call.gas_limit, (max_fee_wei, min(priority_fee_wei, max_fee_wei))
        )
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
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    receipt: TransactionReceipt | None = None
    revived_s: float = float("-inf")
    looked_at: int = -1
    """The newest block when its receipts were asked for in vain."""


def _says(flaw: str, texts: Sequence[str]) -> bool:
    return any(text in flaw.lower() for text in texts)
