"""Watching the upstream, so that a buyer is told 503 before a quote and not after paying."""

import asyncio
from collections.abc import Awaitable, Callable

from obol.errors import UpstreamError
from obol.gateway.live_offer import LiveOffer

UP_INTERVAL_S = 10.0
"""Between questions while the upstream is up: each sale tells as much as a question."""
DOWN_INTERVAL_S = 1.0
"""Between questions while it is down, which a sale may find out at any time: other sales wait for the answer."""


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
        except UpstreamError:
            live.is_upstream_up = False
        else:
            live.is_upstream_up = True
