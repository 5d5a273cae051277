"""Errands: somebody stays at work until it is done, whatever goes wrong."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
import structlog

from obol.errors import IllegalTransitionError, LedgerUnavailableError, SaleTakenError
from obol.gateway.errands import Errands, Step


class Tries:
    """A step that does what `says` says, in order; the last one again and again."""

    def __init__(self, *says: bool | Exception) -> None:
        self._says = says
        self.count = 0

    async def __call__(self) -> bool:
        said = self._says[min(self.count, len(self._says) - 1)]
        self.count += 1
        if isinstance(said, Exception):
            raise said
        return said


def make_errands(schedule_s: Sequence[float] = (0.001,)) -> tuple[Errands, list[dict[str, Any]]]:
    logged: list[dict[str, Any]] = []

    def note(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        logged.append(dict(event))
        raise structlog.DropEvent

    return Errands(structlog.wrap_logger(None, processors=[note]), schedule_s), logged


async def test_nothing_but_its_end_ends_it() -> None:
    errands, logged = make_errands()
    bug = RuntimeError("nobody foresaw this")
    step = Tries(LedgerUnavailableError("down"), bug, False, IllegalTransitionError("no"), True)

    assert await errands.until_done(step, "1")

    assert step.count == 5
    assert [line["event"] for line in logged] == ["sale_not_recorded", "settler_failed", "settler_failed"]
    assert logged[1] == {"event": "settler_failed", "sale": "1", "error": "RuntimeError", "exc_info": bug}


async def test_what_another_holds_is_left_to_that_one() -> None:
    errands, logged = make_errands()
    step = Tries(SaleTakenError("taken"))

    assert not await errands.until_done(step, "1")

    assert (step.count, [line["event"] for line in logged]) == (1, ["sale_taken"])


async def test_an_error_that_is_asked_for_is_raised() -> None:
    errands, _ = make_errands()

    with pytest.raises(IllegalTransitionError):
        await errands.until_done(
            Tries(RuntimeError("again"), IllegalTransitionError("no")),
            "1",
            gives_up=lambda bug: isinstance(bug, IllegalTransitionError),
        )


async def test_the_last_wait_repeats() -> None:
    errands, _ = make_errands((0.001, 0.002))
    step: Step = Tries(*[False] * 5, True)

    async with asyncio.timeout(1):
        assert await errands.until_done(step, "1", waits_first=True)


async def test_who_waits_for_the_first_try_is_told_of_it_however_it_ends() -> None:
    errands, _ = make_errands((3600,))
    for step in (Tries(False), Tries(RuntimeError("again")), Tries(LedgerUnavailableError("down"))):
        tried = asyncio.Event()
        errands.start(errands.until_done(step, "1", tried=tried))
        async with asyncio.timeout(1):
            await tried.wait()
    await errands.drain(0.01)


async def test_draining_waits_for_what_ends_and_stops_what_does_not() -> None:
    errands, _ = make_errands((0.001,))
    ends, never = Tries(False, False, True), Tries(False)
    ending = errands.start(errands.until_done(ends, "1"))
    endless = errands.start(errands.until_done(never, "2"), is_endless=True)

    await errands.drain(5.0)

    assert (ending.result(), endless.cancelled()) == (True, True)


async def test_a_task_that_ends_in_a_bug_is_logged() -> None:
    errands, logged = make_errands()
    for error in (RuntimeError("a bug"), LedgerUnavailableError("told where it was met")):
        await asyncio.wait((errands.start(Tries(error)()),))
    assert [line["error"] for line in logged] == ["RuntimeError"]
