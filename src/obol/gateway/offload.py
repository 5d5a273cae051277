"""Reading large JSON without holding up everybody else's streams."""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

LARGE_BYTES = 128 * 1024
"""Below this a read takes less than the hand-over to a thread and back."""


async def off_the_loop(size_bytes: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of pure work on `size_bytes` of data: done at once when that is small, in a thread when large."""
    if size_bytes < LARGE_BYTES:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)
