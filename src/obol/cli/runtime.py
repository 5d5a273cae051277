"""How a command runs its coroutine."""

from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_async(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run to the end and give the result. Ctrl-C cancels the coroutine, which cleans up; then `KeyboardInterrupt`."""
    from obol.adapters.event_loop import run

    return run(coroutine)
