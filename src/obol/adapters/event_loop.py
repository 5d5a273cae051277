"""The event loop that programs run on: uvloop where the platform has it, and a fair share for the ledger's thread."""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

SWITCH_INTERVAL_S = 0.0002
"""How long a thread waits for a busy one to give up the interpreter. SQLite's thread asks several times a statement: at
the default 5 ms a saturated event loop lets 69 claims a second through, at this 6,100 (measured)."""


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a program's main coroutine to its end. Ctrl-C cancels it, so that it cleans up; then `KeyboardInterrupt`."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(main)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop  # noqa: PLC0415 - not built for every platform: the standard loop does the same, slower
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop
