"""Lane: what arrives together is done together; while one batch is under way, the next one gathers."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

J = TypeVar("J")
R = TypeVar("R")

MAX_BATCH = 256


@dataclass(slots=True, eq=False)
class _Job(Generic[J, R]):
    item: J
    done: asyncio.Future[R]


class Lane(Generic[J, R]):
    """Calls `work` with up to `MAX_BATCH` items at a time, in the order in which they came, one call after another.

    `work` returns for each item its result or the exception to raise; what it raises itself is raised for every item.
    """

    def __init__(self, work: Callable[[Sequence[J]], Awaitable[Sequence[R | BaseException]]]) -> None:
        self._work = work
        self._jobs: deque[_Job[J, R]] = deque()
        self._running: asyncio.Task[None] | None = None

    async def run(self, item: J) -> R:
        """The result for one item. Cancelling the wait does not undo what is asked."""
        loop = asyncio.get_running_loop()
        job = _Job[J, R](item, loop.create_future())
        self._jobs.append(job)
        if self._running is None:
            self._running = loop.create_task(self._drain())
        return await job.done

    async def finish(self) -> None:
        """Wait until everything that was submitted is done."""
        while self._running is not None:
            await asyncio.wait((self._running,))

    async def _drain(self) -> None:
        try:
            await asyncio.sleep(0)  # whoever is about to submit in this turn of the loop shares the first batch
            while self._jobs:
                batch = [self._jobs.popleft() for _ in range(min(len(self._jobs), MAX_BATCH))]
                _deliver(batch, await self._outcomes(batch))
        finally:
            self._running = None

    async def _outcomes(self, batch: Sequence[_Job[J, R]]) -> Sequence[R | BaseException]:
        try:
            return await self._work([job.item for job in batch])
        except Exception as error:  # noqa: BLE001 - handed to everyone who waits for the batch
            return [error] * len(batch)


def _deliver(batch: Sequence[_Job[J, R]], outcomes: Sequence[R | BaseException]) -> None:
    for job, outcome in zip(batch, outcomes, strict=True):
        if job.done.done():  # nobody waits any more
            continue
        if isinstance(outcome, BaseException):
            job.done.set_exception(outcome)
        else:
            job.done.set_result(outcome)
