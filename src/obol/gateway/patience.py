"""Waiting on behalf of a buyer, and stopping when the buyer hangs up."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from obol.gateway.call import Call
from obol.gateway.replies import Reason, Refusal

GONE = Refusal(Reason.BUYER_GONE, "the buyer hung up before the answer began; nothing was charged")


class BuyerGone(Exception):  # noqa: N818 - a turn of events, not an error
    """The buyer hung up while something was being waited for."""


@asynccontextmanager
async def buyer_patience(call: Call, *, goes_on: bool = False) -> AsyncIterator[None]:
    """End a wait when the buyer hangs up, by raising `BuyerGone` out of the block.

    `goes_on`: wait all the same, because a cold upstream that loads its model must not be made to start over.
    """
    try:
        async with asyncio.timeout(None) as scope:
            call.when_gone(None if goes_on else lambda: scope.reschedule(0.0))
            yield
    except TimeoutError:
        raise BuyerGone from None
    finally:
        call.when_gone(None)
