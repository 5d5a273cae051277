"""What tests of capacity share: paid requests that hold slots, and what the gateway says of itself."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from obol.adapters.signer_local import LocalSigner
from tests.fakes.model_server import Behaviour
from tests.gateway.shop import Answer, Shop, chat


@asynccontextmanager
async def occupied(shop: Shop, slots: int = 1, *, signer: LocalSigner | None = None) -> AsyncIterator[asyncio.Event]:
    """Hold slots with paid requests, which the model server answers once the event is set, at the latest at the end."""
    release = asyncio.Event()
    shop.upstream.script += [Behaviour(hold_before_head=release)] * slots
    target = shop.upstream.in_flight + slots
    holders = [asyncio.ensure_future(shop.pay(chat(), signer=signer)) for _ in range(slots)]
    await shop.upstream.wait_until(lambda: shop.upstream.in_flight == target)
    try:
        yield release
    finally:
        release.set()
        answers: list[Answer] = await asyncio.gather(*holders)
    assert [answer.status for answer in answers] == [200] * slots


async def status(shop: Shop) -> Any:
    """The gateway's `/status`."""
    return (await shop.get("/status")).json


async def in_flight(shop: Shop) -> int:
    """Slots held now."""
    return int((await status(shop))["inFlight"])


async def until_in_flight(shop: Shop, slots: int, *, queued: int = 0) -> None:
    """Wait until so many slots are held, and so many sales are queued."""
    found: Any = None
    try:
        async with asyncio.timeout(10):
            while found != (slots, queued):
                now = await status(shop)
                found = now["inFlight"], now["queued"]
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise AssertionError(f"{found} are in flight and queued, not {slots} and {queued}") from None


async def until_ready(shop: Shop, *, ready: bool = True, timeout_s: float = 5.0) -> None:
    """Wait until `/ready` says so. Raises `TimeoutError`."""
    code = 0
    async with asyncio.timeout(timeout_s):
        while code != (200 if ready else 503):
            code = (await shop.get("/ready")).status
            await asyncio.sleep(0.01)


async def until_transfers(shop: Shop, count: int) -> None:
    """Wait until so many payments moved: that of a stream is settled beside it. More than that never is right."""
    found = 0
    async with asyncio.timeout(10):
        while found < count:
            found = len(await shop.transfers())
            await asyncio.sleep(0.005)
    assert found == count
