"""Our facilitator as a program on a port of its own."""

import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import structlog
from aiohttp import web

from obol.facilitator.app import build_app
from obol.x402.facilitator import Facilitator


def request_ids() -> Iterator[str]:
    return (f"request-{number}" for number in itertools.count(1))


@asynccontextmanager
async def listening(app: web.Application) -> AsyncIterator[str]:
    """The app's address while entered."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def running(facilitator: Facilitator, logged: list[dict[str, object]] | None = None) -> AsyncIterator[str]:
    """The address of our app over `facilitator`; what it logs is appended to `logged`."""
    app = build_app(facilitator, new_request_id=request_ids().__next__, log=_logger([] if logged is None else logged))
    async with listening(app) as url:
        yield url


def _logger(logged: list[dict[str, object]]) -> structlog.typing.FilteringBoundLogger:
    def keep(_: object, __: str, event: structlog.typing.EventDict) -> str:
        logged.append(dict(event))
        raise structlog.DropEvent

    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.format_exc_info,
        keep,
    ]
    logger: structlog.typing.FilteringBoundLogger = structlog.wrap_logger(
        structlog.PrintLogger(), processors, wrapper_class=structlog.make_filtering_bound_logger("info")
    )
    return logger
