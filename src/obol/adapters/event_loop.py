"""The event loop that programs run on: uvloop where the platform has it."""

import asyncio
from collections.abc import Callable


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """For `asyncio.Runner(loop_factory=…)`."""
    try:
        import uvloop  # noqa: PLC0415 - not built for every platform: the standard loop does the same, slower
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop
