"""Watching an upstream that goes and comes."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from obol.errors import UpstreamTimeoutError, UpstreamUnavailableError
from obol.gateway.live_offer import LiveOffer
from obol.gateway.watch import watch_upstream
from tests.fakes.model_server import FakeModelServer
from tests.gateway.live import make_live
from tests.gateway.occupied import until_ready
from tests.gateway.shop import Shop, eventually


@asynccontextmanager
async def watching(
    live: LiveOffer, ask: Callable[[], Awaitable[object]], *, up_interval_s: float, down_interval_s: float
) -> AsyncIterator[None]:
    watch = watch_upstream(live, ask, up_interval_s=up_interval_s, down_interval_s=down_interval_s)
    task = asyncio.ensure_future(watch)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("error", [UpstreamUnavailableError("down"), UpstreamTimeoutError("slow")])
async def test_a_question_without_an_answer_closes_and_the_next_one_opens(error: Exception) -> None:
    live = make_live()
    live.is_upstream_up = True
    failing = [error]

    async def ask() -> None:
        if failing:
            raise failing[0]

    async with watching(live, ask, up_interval_s=0.01, down_interval_s=0.01):
        await eventually(lambda: live.is_upstream_up is False)
        failing.clear()
        await eventually(lambda: live.is_upstream_up is True)


async def test_what_a_sale_found_out_is_asked_about_soon() -> None:
    live = make_live()
    live.is_upstream_up = True

    async def ask() -> None:
        return None

    async with watching(live, ask, up_interval_s=3600, down_interval_s=0.01):
        live.is_upstream_up = False
        await eventually(lambda: live.is_upstream_up is True)


async def test_an_upstream_that_is_up_is_left_alone() -> None:
    live = make_live()
    live.is_upstream_up = True
    asked = []

    async def ask() -> None:
        asked.append(1)

    async with watching(live, ask, up_interval_s=3600, down_interval_s=0.001):
        await asyncio.sleep(0.05)
    assert asked == []


async def test_a_gateway_closes_when_a_sale_finds_nobody_and_opens_again_by_itself(shop: Shop) -> None:
    await shop.upstream.stop()
    payment = shop.payment()
    first = await shop.post(payment)
    assert (first.status, first.reason) == (503, "upstream_unavailable")
    unpaid = await shop.post()
    assert (unpaid.status, unpaid.reason) == (503, "upstream_down")
    assert unpaid.headers["Retry-After"]
    assert not unpaid.asks_for_money
    assert (await shop.get("/ready")).status == 503
    await shop.upstream.start()
    await until_ready(shop)
    assert (await shop.post(payment)).status == 200, "the payment was not used"


async def test_a_gateway_does_not_start_before_an_upstream_that_is_not_there(shop: Shop) -> None:
    server = FakeModelServer()
    await server.start()
    url = server.url
    await server.stop()
    with pytest.raises(UpstreamUnavailableError, match="nothing listens"):
        await shop.restart(upstream_url=url)
