"""What arrives together is done together, and one after another."""

import asyncio
from collections.abc import Sequence

import pytest

from obol.adapters.lane import MAX_BATCH, Lane


class Work:
    """Doubles numbers, a batch at a time, when it is let."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.under_way = 0

    async def __call__(self, items: Sequence[int]) -> list[int | BaseException]:
        self.batches.append(list(items))
        self.under_way += 1
        assert self.under_way == 1
        await self.may_go_on.wait()
        self.under_way -= 1
        if 13 in items:
            raise LookupError("unlucky")
        return [ValueError(str(item)) if item < 0 else 2 * item for item in items]


async def test_what_is_submitted_in_one_turn_is_one_batch_in_its_order() -> None:
    lane = Lane(work := Work())

    assert await asyncio.gather(*(lane.run(number) for number in (3, 1, 2))) == [6, 2, 4]
    assert work.batches == [[3, 1, 2]]


async def test_what_comes_while_a_batch_is_under_way_is_the_next_one() -> None:
    lane = Lane(work := Work())
    work.may_go_on.clear()
    async with asyncio.TaskGroup() as group:
        first = group.create_task(lane.run(0))
        while not work.batches:  # noqa: ASYNC110 - a turn or two
            await asyncio.sleep(0)
        others = [group.create_task(lane.run(number)) for number in (1, 2)]
        await asyncio.sleep(0)
        work.may_go_on.set()

    assert [first.result(), *(other.result() for other in others)] == [0, 2, 4]
    assert work.batches == [[0], [1, 2]]


async def test_a_batch_has_an_end() -> None:
    lane = Lane(work := Work())

    await asyncio.gather(*(lane.run(14) for _ in range(MAX_BATCH + 1)))

    assert [len(batch) for batch in work.batches] == [MAX_BATCH, 1]


async def test_an_exception_of_one_item_is_raised_to_who_asked_for_it() -> None:
    lane = Lane(Work())

    outcomes = await asyncio.gather(*(lane.run(number) for number in (1, -1, 2)), return_exceptions=True)

    assert (outcomes[0], outcomes[2]) == (2, 4)
    assert isinstance(outcomes[1], ValueError)


async def test_an_exception_of_the_batch_is_raised_to_all_of_it_and_the_lane_goes_on() -> None:
    lane = Lane(Work())

    outcomes = await asyncio.gather(*(lane.run(number) for number in (1, 13)), return_exceptions=True)

    assert [type(outcome) for outcome in outcomes] == [LookupError, LookupError]
    assert await lane.run(1) == 2


async def test_who_is_cancelled_disturbs_nobody() -> None:
    lane = Lane(Work())
    waiting = [asyncio.create_task(lane.run(number)) for number in (1, 2)]
    await asyncio.sleep(0)
    waiting[0].cancel()

    assert await waiting[1] == 4
    with pytest.raises(asyncio.CancelledError):
        await waiting[0]
