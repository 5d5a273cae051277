"""Watching the upstream, so that a buyer is told 503 before a quote, and the ledger for sales of gateways that died."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from obol.errors import LedgerUnavailableError, UpstreamError, UpstreamTimeoutError
from obol.gateway.live_offer import LiveOffer
from obol.gateway.settling import Settler

UP_INTERVAL_S = 10.0
"""Between questions while the upstream is up: each sale tells as much as a question."""
DOWN_INTERVAL_S = 1.0
"""Between questions while it is down, which a sale may find out at any time: other sales wait for the answer."""
ADOPT_INTERVAL_S = 30.0
"""Between looks for sales that another gateway on the same ledger left unfinished when it died."""


async def adopt_from_the_dead(
    settler: Settler,
    network: str,
    log: structlog.typing.FilteringBoundLogger,
    *,
    interval_s: float = ADOPT_INTERVAL_S,
) -> None:
    """Look for ever; a ledger that cannot be asked now is asked again later."""
    while True:
        await asyncio.sleep(interval_s)
        try:
            await settler.recover(network)
        except LedgerUnavailableError:
            continue  # whoever sells meanwhile is told, and logs it
        except Exception as bug:  # a background loop's edge: the dead are to be looked for all the same
            log.error("adopting_failed", exc_info=bug)


async def watch_upstream(
    live: LiveOffer,
    ask: Callable[[], Awaitable[object]],
    *,
    up_interval_s: float = UP_INTERVAL_S,
    down_interval_s: float = DOWN_INTERVAL_S,
) -> None:
    """Ask for ever, and keep `live.is_upstream_up` true to the answers. `ask` raises `UpstreamError` when down."""
    since_asked_s = 0.0
    while True:
        await asyncio.sleep(down_interval_s)
        since_asked_s += down_interval_s
        if live.is_upstream_up is not False and since_asked_s < up_interval_s:
            continue
        since_asked_s = 0.0
        try:
            await ask()
        except UpstreamTimeoutError:
            continue  # busy is not down
        except UpstreamError:
            live.is_upstream_up = False
        else:
            live.is_upstream_up = True
