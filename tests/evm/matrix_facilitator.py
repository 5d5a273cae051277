"""Facilitators that die at a given step, each a process of its own: `python -m tests.evm.matrix_facilitator SOCKET`.

Each is the real one, over HTTP; its steps are what it writes down, what it asks the chain, and what it answers.
"""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

from aiohttp import web

from obol.adapters.chain_evm import EvmChain
from obol.adapters.clock import SystemClock
from obol.adapters.evm_batching import BatchingSender
from obol.adapters.evm_journal import Attempt, CallState, EvmJournal, JournalCall
from obol.adapters.evm_sender import Sender, SendingLimits
from obol.adapters.evm_signing import LocalTransactionSigner
from obol.adapters.facilitator_evm import EvmFacilitator, Served
from obol.adapters.group_commit import GroupCommitWriter
from obol.adapters.logs import make_logger
from obol.adapters.rpc_http import JsonRpc
from obol.core.networks import BASE_SEPOLIA
from obol.facilitator.app import build_app
from obol.facilitator.serve import serve
from obol.facilitator.settings import FacilitatorSettings
from obol.x402.eip712 import keccak
from tests.evm.anvil import USDC
from tests.evm.forking import Job, Tell, serve_forks
from tests.evm.matrix_steps import Kill, Steps

JOURNAL = "sender.sqlite3"
HELD = "held"
BATCH_WAIT_S = 0.02
SETTLE_WAIT_S = 5.0
DRAIN_S = 2.0
SEND = "eth_sendRawTransaction"
_LABELS = {
    "eth_call": "chain.call",
    SEND: "chain.send_raw",
    "eth_getTransactionReceipt": "chain.receipt",
}


class FacilitatorJob(Job, frozen=True):
    """What one facilitator is started with. `batch_max` 1: each payment is a transaction of its own."""

    port: int
    rpc_url: str
    gas_key: str
    """64 hex digits."""
    batch_max: int
    rebroadcast_s: float
    replace_after_s: float
    is_held: bool = False
    """Its node takes transactions, and no block does: they are in the file `HELD`."""
    kill: Kill | None = None


class LabelledJournal(EvmJournal):
    """What is written is a step; what is read is not."""

    def __init__(self, writer: GroupCommitWriter, lock: int) -> None:
        super().__init__(writer, lock)
        self.steps = Steps(None, lambda _: None)

    async def add(
        self, keys: Sequence[str], nonce: int, to: str, data: bytes, gas_limit: int, attempt: Attempt
    ) -> JournalCall:
        async with self.steps.around("journal.add"):
            return await super().add(keys, nonce, to, data, gas_limit, attempt)

    async def add_attempt(self, call: JournalCall, attempt: Attempt) -> None:
        async with self.steps.around("journal.add_attempt"):
            await super().add_attempt(call, attempt)

    async def mark(self, call: JournalCall, state: CallState, mined: str = "") -> None:
        async with self.steps.around(f"journal.mark {state.value}"):
            await super().mark(call, state, mined)


class LabelledRpc(JsonRpc):
    """Simulating, broadcasting, looking for a receipt are steps. What is broadcast goes to `held`, if that is set."""

    def __init__(self, url: str, steps: Steps, held: Path | None) -> None:
        super().__init__([url])
        self._steps = steps
        self._held = held

    async def call(self, method: str, params: Sequence[Any]) -> Any:
        label = _LABELS.get(method)
        if label is None:
            return await super().call(method, params)
        async with self._steps.around(label):
            if self._held is not None and method == SEND:
                return _hold(self._held, params[0])
            return await super().call(method, params)


def _hold(held: Path, raw: str) -> str:
    """The transaction's hash, as the node answers it."""
    with held.open("a") as file:
        file.write(raw + "\n")
    return "0x" + keccak(bytes.fromhex(raw[2:])).hex()


class LabelledSender(Sender):
    """The sender with a labelled journal."""

    @classmethod
    async def open_labelled(cls, chain: EvmChain, job: FacilitatorJob, steps: Steps) -> Self:
        """Like `open`."""
        journal = await LabelledJournal.open(Path(job.folder) / JOURNAL)
        journal.steps = steps
        signer = LocalTransactionSigner(bytes.fromhex(job.gas_key))
        limits = SendingLimits(rebroadcast_s=job.rebroadcast_s, replace_after_s=job.replace_after_s)
        sender = cls(chain, signer, journal, SystemClock(), make_logger(as_json=True), limits=limits)
        await sender._start()
        return sender


def labelled_answers(steps: Steps) -> Callable[..., Awaitable[web.StreamResponse]]:
    """The answer to `/settle` is a step; after it, it has left this process."""

    @web.middleware
    async def answer(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        response = await handler(request)
        if request.path == "/settle":
            async with steps.around("answer"):
                await response.prepare(request)
                await response.write_eof()
                await asyncio.sleep(0.001)  # the event loop may write it only when everybody waits
        return response

    return answer


@asynccontextmanager
async def labelled_facilitator(job: FacilitatorJob, steps: Steps) -> AsyncIterator[EvmFacilitator]:
    """From its real pieces, on the journal in the job's folder."""
    rpc = LabelledRpc(job.rpc_url, steps, Path(job.folder) / HELD if job.is_held else None)
    chain = EvmChain(rpc, BASE_SEPOLIA)
    sender: Sender | BatchingSender = await LabelledSender.open_labelled(chain, job, steps)
    if isinstance(sender, Sender) and job.batch_max > 1:
        log = make_logger(as_json=True)
        sender = await BatchingSender.open(chain, sender, log, batch_max=job.batch_max, batch_wait_s=BATCH_WAIT_S)
    facilitator = EvmFacilitator([Served(chain, sender, (USDC,))], SystemClock(), settle_wait_s=SETTLE_WAIT_S)
    try:
        yield facilitator
    finally:
        await facilitator.close()


async def _facilitate(job: FacilitatorJob, connection: socket.socket, tell: Tell) -> None:
    steps, stop = Steps(job.kill, tell), asyncio.Event()
    settings = FacilitatorSettings(Path(job.folder), port=job.port, drain_timeout_s=DRAIN_S)
    async with labelled_facilitator(job, steps) as facilitator:
        app = build_app(facilitator, new_request_id=lambda: "", log=make_logger(as_json=True))
        app.middlewares.insert(0, labelled_answers(steps))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(serve(app, settings, on_listening=lambda url: tell(f"@{url}"), stop=stop))
            await asyncio.get_running_loop().sock_recv(connection, 1)
            stop.set()


if __name__ == "__main__":
    serve_forks(sys.argv[1], FacilitatorJob, _facilitate)
