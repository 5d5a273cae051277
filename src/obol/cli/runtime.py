"""How a command runs its coroutine: on uvloop where the platform has it."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from obol.adapters.event_loop import loop_factory

T = TypeVar("T")


def run_async(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run to the end and give the result. Ctrl-C cancels the coroutine, which cleans up; then `KeyboardInterrupt`."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(coroutine)
