"""The steps of a purchase, as a generator gives them, and how a client without an event loop waits for one."""

import asyncio
from collections.abc import Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import httpx2

Step = httpx2.Request | httpx2.Response | Coroutine[Any, Any, Any]
"""A request to send, a response whose body is to be read, or something else to wait for."""
Flow = Generator[Step, Any, None]
"""Gives steps; is sent the response, or what was waited for."""

T = TypeVar("T")


def advance(flow: Flow, answer: object) -> Step | None:
    """The next step, given the last one's answer; None at the end."""
    try:
        return flow.send(answer)
    except StopIteration:
        return None


def run(waiting: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns, for a caller that does not wait for one."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(waiting)
    with ThreadPoolExecutor(max_workers=1) as apart:  # a sync client inside an event loop, as in a notebook
        return apart.submit(asyncio.run, waiting).result()
