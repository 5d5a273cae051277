"""Labelled steps around a gateway's ports, and a death at one of them.

What a gateway does to the outside it does through three ports, so "between every two steps" is before and after every
call of one. The wrappers count; nothing in the gateway knows of them.
"""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import msgspec

from obol.core.ledger import Ledger
from obol.core.payment import Event
from obol.inference.upstream import Headers, Upstream, UpstreamRequest, UpstreamResponse
from obol.x402.facilitator import Facilitator, Settlement, VerifyOutcome
from obol.x402.models import PaymentPayload, PaymentRequirements, SupportedResponse
from tests.gateway.failing_ledger import FailingLedger

T = TypeVar("T")


class Kill(msgspec.Struct, frozen=True):
    """Die at the `nth` time of a step, `held_s` after it was reached: meanwhile everything else goes on."""

    label: str
    nth: int = 1
    held_s: float = 0.0

    def __str__(self) -> str:
        return f"{self.label} #{self.nth}" + (f" held {self.held_s} s" if self.held_s else "")


class Steps:
    """`told` is called with each label as it is reached; "(killed)" is the last one."""

    def __init__(self, kill: Kill | None, told: Callable[[str], None]) -> None:
        self._kill = kill
        self._told = told
        self._reached: Counter[str] = Counter()

    async def at(self, label: str) -> None:
        """A step that a kill can be aimed at, and that it holds up."""
        if self._is_deadly(label):
            assert self._kill is not None
            await asyncio.sleep(self._kill.held_s)
            self._die()

    @asynccontextmanager
    async def around(self, call: str) -> AsyncIterator[None]:
        """Before, in the middle of, and after one call of a port."""
        await self.at(f"{call} before")
        if self._is_deadly(f"{call} during"):
            assert self._kill is not None
            asyncio.get_running_loop().call_later(self._kill.held_s, self._die)
        yield
        await self.at(f"{call} after")

    def _is_deadly(self, label: str) -> bool:
        self._reached[label] += 1
        self._told(label)
        kill = self._kill
        return kill is not None and (kill.label, kill.nth) == (label, self._reached[label])

    def _die(self) -> None:
        self._told("(killed)")
        os.kill(os.getpid(), signal.SIGKILL)


class LabelledLedger(FailingLedger):
    """A ledger that never fails by itself."""

    def __init__(self, ledger: Ledger, steps: Steps) -> None:
        super().__init__()
        self.wrap(ledger)
        self._steps = steps

    async def _do(self, method: str, work: Callable[[Ledger], Awaitable[T]], events: Sequence[Event] = ()) -> T:
        what = f" [{'+'.join(events)}]" if method == "record" else ""
        async with self._steps.around(f"ledger.{method}{what}"):
            return await super()._do(method, work, events)


class LabelledFacilitator:
    """Implements `x402.facilitator.Facilitator`."""

    def __init__(self, facilitator: Facilitator, steps: Steps) -> None:
        self._facilitator = facilitator
        self._steps = steps

    async def verify(self, payload: PaymentPayload, requirements: PaymentRequirements) -> VerifyOutcome:
        async with self._steps.around("facilitator.verify"):
            return await self._facilitator.verify(payload, requirements)

    async def settle(self, payload: PaymentPayload, requirements: PaymentRequirements) -> Settlement:
        async with self._steps.around("facilitator.settle"):
            return await self._facilitator.settle(payload, requirements)

    async def supported(self) -> SupportedResponse:
        return await self._facilitator.supported()

    async def close(self) -> None:
        await self._facilitator.close()


class LabelledUpstream:
    """Implements `inference.upstream.Upstream`; each chunk of an answer is a step."""

    def __init__(self, upstream: Upstream, steps: Steps) -> None:
        self._upstream = upstream
        self._steps = steps

    async def open(self, request: UpstreamRequest) -> UpstreamResponse:
        async with self._steps.around("upstream.open"):
            return _LabelledAnswer(await self._upstream.open(request), self._steps)

    async def close(self) -> None:
        await self._upstream.close()


class _LabelledAnswer:
    def __init__(self, answer: UpstreamResponse, steps: Steps) -> None:
        self._answer = answer
        self._steps = steps

    @property
    def status(self) -> int:
        return self._answer.status

    @property
    def headers(self) -> Headers:
        return self._answer.headers

    async def read_chunk(self) -> bytes:
        chunk = await self._answer.read_chunk()
        await self._steps.at("upstream chunk" if chunk else "upstream end")
        return chunk

    def close(self) -> None:
        self._answer.close()
