"""Watching an upstream that goes and comes."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog

from obol.adapters.clock import SystemClock
from obol.adapters.facilitator_http import HttpFacilitator
from obol.adapters.ledger_sqlite import SqliteLedger
from obol.adapters.metrics import Metrics
from obol.adapters.paths import ledger_file
from obol.core.networks import DEFAULT_CATALOGUE
from obol.core.payment import State
from obol.errors import UpstreamTimeoutError, UpstreamUnavailableError
from obol.gateway.live_offer import LiveOffer
from obol.gateway.ports import Ports
from obol.gateway.settling import Settler
from obol.gateway.watch import adopt_from_the_dead, watch_upstream
from tests.adapters.sales import a_new_sale
from tests.fakes.model_server import FakeModelServer
from tests.gateway.failing_ledger import FailingLedger, Fault
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


async def test_an_upstream_that_is_too_busy_to_answer_is_not_down() -> None:
    live = make_live()
    live.is_upstream_up = True
    asked = 0

    async def ask() -> None:
        nonlocal asked
        asked += 1
        raise UpstreamTimeoutError("busy")

    async with watching(live, ask, up_interval_s=0.01, down_interval_s=0.01):
        await eventually(lambda: asked > 2)
    assert live.is_upstream_up is True


async def test_a_question_that_nobody_answers_closes_and_the_next_one_opens() -> None:
    live = make_live()
    live.is_upstream_up = True
    failing = [UpstreamUnavailableError("down")]

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


async def state_in(ledger: SqliteLedger, sale_id: str) -> str:
    sale = await ledger.sale(sale_id)
    return "absent" if sale is None else sale.state.value


async def test_a_running_gateway_finishes_what_a_dead_one_on_its_ledger_left(tmp_path: Path) -> None:
    clock = SystemClock()
    ours = await SqliteLedger.open(ledger_file(tmp_path), clock)
    theirs = await SqliteLedger.open(ledger_file(tmp_path), clock)
    facilitator = HttpFacilitator("http://127.0.0.1:9")
    log = structlog.get_logger()
    ports = Ports(ours, facilitator, clock, secrets.token_bytes, Metrics(), log, DEFAULT_CATALOGUE)
    adopting = asyncio.ensure_future(adopt_from_the_dead(Settler(ports), "eip155:84532", log, interval_s=0.01))
    try:
        left = a_new_sale()
        await theirs.claim(left)
        await asyncio.sleep(0.05)
        assert await state_in(ours, left.id) == State.CLAIMED, "the living keep their sales"
        await theirs.close()
        async with asyncio.timeout(5):
            while await state_in(ours, left.id) != State.RELEASED:  # noqa: ASYNC110 - a row has no event
                await asyncio.sleep(0.005)
    finally:
        adopting.cancel()
        await asyncio.gather(adopting, return_exceptions=True)
        await ours.close()
        await theirs.close()


async def test_what_was_adopted_while_the_ledger_failed_is_finished_too(tmp_path: Path) -> None:
    """They are this gateway's from then on: nobody else looks for them while it lives."""
    clock, failing = SystemClock(), FailingLedger()
    ours = await SqliteLedger.open(ledger_file(tmp_path), clock)
    theirs = await SqliteLedger.open(ledger_file(tmp_path), clock)
    left = [a_new_sale() for _ in range(3)]
    for sale in left:
        await theirs.claim(sale)
    await theirs.close()
    facilitator = HttpFacilitator("http://127.0.0.1:9")
    log = structlog.get_logger()
    ports = Ports(failing.wrap(ours), facilitator, clock, secrets.token_bytes, Metrics(), log, DEFAULT_CATALOGUE)
    failing.faults = [Fault("record", times=2)]
    settler = Settler(ports, (0.01,))
    try:
        assert await settler.recover("eip155:84532") == 3
        async with asyncio.timeout(5):
            for sale in left:
                while await state_in(ours, sale.id) != State.RELEASED:  # noqa: ASYNC110 - a row has no event
                    await asyncio.sleep(0.005)
    finally:
        await settler.drain(1.0)
        await ours.close()
