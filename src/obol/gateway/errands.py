"""Errands: work in the background that somebody must stay at until it is done, whatever goes wrong meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import structlog

from obol.errors import LedgerUnavailableError, SaleTakenError

T = TypeVar("T")
Step = Callable[[], Awaitable[bool]]
"""One try. True: nothing is left to do; False: it must be tried again later. May raise whatever it likes."""

_TOLD = (LedgerUnavailableError, SaleTakenError)


class Errands:
    """The background tasks of one gateway. `schedule_s`: the waits between tries; the last one repeats."""

    def __init__(self, log: structlog.typing.FilteringBoundLogger, schedule_s: Sequence[float]) -> None:
        self._log = log
        self._schedule_s = schedule_s
        self._tasks: set[asyncio.Task[Any]] = set()
        self._endless: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, T], *, is_endless: bool = False) -> asyncio.Task[T]:
        """Run `work` on its own. `is_endless`: it may take for ever, and the end of the process does not wait for it.

        What it raises is logged, but for what is logged where it is met.
        """
        tasks = self._endless if is_endless else self._tasks
        task = asyncio.get_running_loop().create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(self._report)
        return task

    async def until_done(
        self,
        step: Step,
        sale: str,
        *,
        waits_first: bool = False,
        tried: asyncio.Event | None = None,
        gives_up: Callable[[Exception], bool] = lambda _: False,
    ) -> bool:
        """Take `step` on the schedule until it is done; False when another attempt, or gateway, has the sale now.

        The edge of every background loop: an error that nobody foresaw is logged, and does not end the work, unless
        `gives_up` says so; then it is raised. `tried` is set after the first try.
        """
        tries = 0
        while True:
            if waits_first:
                await asyncio.sleep(self._schedule_s[min(tries, len(self._schedule_s) - 1)])
                tries += 1
            waits_first = True
            is_done = await self._try(step, sale, gives_up)
            if tried is not None:
                tried.set()
            if is_done is not None:
                return is_done

    async def _try(self, step: Step, sale: str, gives_up: Callable[[Exception], bool]) -> bool | None:
        """Whether it was done, as `until_done` says; None: try again."""
        try:
            return await step() or None
        except SaleTakenError:  # whoever has it sees it to its end, and that one's record counts
            self._log.warning("sale_taken", sale=sale)
            return False
        except LedgerUnavailableError:
            self._log.error("sale_not_recorded", sale=sale)
        except Exception as bug:
            if gives_up(bug):
                raise
            self._fail(bug, sale=sale)
        return None

    async def drain(self, timeout_s: float) -> None:
        """Wait for what ends by itself, then stop the rest."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
        for task in (*self._tasks, *self._endless):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._endless, return_exceptions=True)

    def _report(self, task: asyncio.Task[Any]) -> None:
        """A bug must not vanish with its task."""
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, _TOLD):  # where it was met
            self._fail(error)

    def _fail(self, bug: BaseException, **about: str) -> None:
        self._log.error("settler_failed", error=type(bug).__name__, exc_info=bug, **about)
