"""Several payments in one transaction: what arrives within a short wait is sent together, by the batcher contract.

A batch is simulated before it is sent. What would fail in company, though it passed alone, is not sent now: who asks
again is told why, or is in another batch. Nobody's failure takes the others with it, and no batch is larger than a
transaction may be.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import structlog

from obol.adapters.chain_evm import EvmChain, RevertedError
from obol.adapters.contracts.batcher import (
    FACTORY,
    BatchedCall,
    Batcher,
    batch_share,
    load_batcher,
    run_data,
    run_gas_limit,
)
from obol.adapters.evm_abi import AbiError, decode_uint
from obol.adapters.evm_calls import Call, Mined, NotSent, Sent
from obol.adapters.evm_sender import Sender
from obol.errors import ChainUnavailableError

BATCH_MAX = 64
"""More is not worth it: from 20 on a payment costs the same gas, and a block has an end."""
_BATCH_GAS = 16_000_000
"""A transaction may have 2^24 (EIP-7825)."""
_BATCH_BYTES = 96 * 1024
"""Nodes take transactions of 128 KiB."""
_DEPLOY_KEY = "batcher"
_DEPLOY_GAS = 500_000
_DEPLOY_WAIT_S = 60.0


async def is_batcher_there(chain: EvmChain) -> bool:
    """Whether somebody has deployed the contract. Raises `ChainUnavailableError`."""
    return bool(await chain.code(load_batcher().address))


async def deploy_batcher(chain: EvmChain, sender: Sender, log: structlog.typing.FilteringBoundLogger) -> None:
    """Deploy the contract where it is not yet: once for everybody on a chain, by the factory that all chains have.

    Raises `ChainUnavailableError` where it is not there in the end.
    """
    batcher = load_batcher()
    if await chain.code(batcher.address):
        return
    call = Call((_DEPLOY_KEY,), FACTORY, batcher.deployment, _DEPLOY_GAS)
    known = await sender.known(_DEPLOY_KEY, wait_s=_DEPLOY_WAIT_S)
    sent = known or await sender.run(call, wait_s=_DEPLOY_WAIT_S)
    if not isinstance(sent, Mined) or await chain.code(batcher.address) != batcher.runtime:
        raise ChainUnavailableError(f"the batcher could not be deployed at {batcher.address}")
    log.info("batcher_deployed", address=batcher.address, transaction=sent.receipt.transaction)


@dataclass(slots=True, eq=False)
class _Waiting:
    """A call that waits for company, and who waits for it."""

    call: Call
    wait_s: float
    done: "asyncio.Future[Sent | NotSent]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class BatchingSender:
    """A `Sender` that sends up to `batch_max` calls together, none later than `batch_wait_s`. Takes over `sender`."""

    def __init__(
        self,
        chain: EvmChain,
        sender: Sender,
        log: structlog.typing.FilteringBoundLogger,
        *,
        batch_max: int,
        batch_wait_s: float,
    ) -> None:
        self.address = sender.address
        self._chain = chain
        self._sender = sender
        self._log = log
        self._batcher: Batcher = load_batcher()
        self._max = batch_max
        self._wait_s = batch_wait_s
        self._waiting: list[_Waiting] = []
        self._timer: asyncio.TimerHandle | None = None
        self._sending: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(
        cls,
        chain: EvmChain,
        sender: Sender,
        log: structlog.typing.FilteringBoundLogger,
        *,
        batch_max: int,
        batch_wait_s: float,
    ) -> Self:
        """With the contract in place. Raises `ChainUnavailableError` like `deploy_batcher`."""
        await deploy_batcher(chain, sender, log)
        return cls(chain, sender, log, batch_max=batch_max, batch_wait_s=batch_wait_s)

    @property
    def unmined(self) -> int:
        """See `Sender`."""
        return self._sender.unmined

    async def run(self, call: Call, *, wait_s: float) -> Sent | NotSent:
        """See `Sender`. `wait_s` counts from when its batch is sent."""
        if call.is_alone:
            return await self._sender.run(call, wait_s=wait_s)
        if not _fit([*(one.call for one in self._waiting), call]):
            self._flush()
        waiting = _Waiting(call, wait_s)
        self._waiting.append(waiting)
        if len(self._waiting) >= self._max:
            self._flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._wait_s, self._flush)
        return await waiting.done

    async def too_dear(self) -> NotSent | None:
        """See `Sender`."""
        return await self._sender.too_dear()

    async def known(self, key: str, *, wait_s: float = 0.0) -> Sent | None:
        """See `Sender`."""
        return await self._sender.known(key, wait_s=wait_s)

    async def close(self) -> None:
        """Send what waits, then close the sender. Idempotent."""
        self._flush()
        if self._sending:
            await asyncio.wait(self._sending)
        await self._sender.close()

    def _flush(self) -> None:
        """Send what waits now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch, self._waiting = self._waiting, []
        if batch:
            task = asyncio.get_running_loop().create_task(self._send(batch))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def _send(self, batch: list[_Waiting]) -> None:
        """Every waiter gets an outcome or an error."""
        try:
            together, alone = await self._sort(batch)
        except ChainUnavailableError as error:
            _fail(batch, error)
            return
        for waiting in batch:
            if waiting not in together and waiting not in alone:
                waiting.done.set_result(NotSent("fails_in_company", "it would fail beside others that were sent"))
        async with asyncio.TaskGroup() as tasks:
            for waiting in alone:
                tasks.create_task(self._resolve([waiting], waiting.call))
            if together:
                tasks.create_task(self._resolve(together, self._joined(together)))

    async def _sort(self, batch: list[_Waiting]) -> tuple[list[_Waiting], list[_Waiting]]:
        """What succeeds in company, and what has none; the rest is not sent."""
        if len(batch) == 1:
            return [], batch
        call = self._joined(batch)
        try:
            returned = await self._chain.call(call.to, call.data, sender=self.address, gas=call.gas_limit)
            succeeded = decode_uint(returned)
        except (RevertedError, AbiError) as error:
            self._log.error("batch_refused", calls=len(batch), error=str(error))
            return [], batch
        together = [waiting for place, waiting in enumerate(batch) if succeeded >> place & 1]
        return (together, []) if len(together) > 1 else ([], together)

    async def _resolve(self, batch: list[_Waiting], call: Call) -> None:
        """Send one transaction, and tell everybody whom it is for."""
        try:
            sent = await self._sender.run(call, wait_s=max(waiting.wait_s for waiting in batch))
        except Exception as error:  # noqa: BLE001 - who waits gets the error, whatever it is
            _fail(batch, error)
            return
        for waiting in batch:
            if not waiting.done.done():
                waiting.done.set_result(sent)

    def _joined(self, batch: list[_Waiting]) -> Call:
        calls = [_batched(one.call) for one in batch]
        keys = tuple(key for one in batch for key in one.call.keys)
        data = run_data(calls)
        return Call(keys, self._batcher.address, data, run_gas_limit(calls, data))


def _batched(call: Call) -> BatchedCall:
    return BatchedCall(call.to, call.data, call.gas_limit)


def _fit(calls: Sequence[Call]) -> bool:
    """Whether one transaction may run them all."""
    shares = [batch_share(_batched(call)) for call in calls]
    return sum(gas for gas, _ in shares) <= _BATCH_GAS and sum(size for _, size in shares) <= _BATCH_BYTES


def _fail(batch: list[_Waiting], error: Exception) -> None:
    for waiting in batch:
        if not waiting.done.done():
            waiting.done.set_exception(error)
