"""Noticing a buyer who reads nothing, whose answer would otherwise keep memory, a task and perhaps a slot for ever."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from obol.gateway.call import Call

CHECKS = 4
"""How many times within the patience it is looked at what was taken."""


@contextmanager
def watching_reader(call: Call, patience_s: float, give_up: Callable[[], None]) -> Iterator[None]:
    """Have `give_up` called when, for `patience_s`, bytes wait for the buyer and not one is taken.

    Costs nothing per chunk: what counts is what has left for the kernel's buffer, however slowly.
    """
    watch = _Watch(call, patience_s / CHECKS, give_up)
    try:
        yield
    finally:
        watch.stop()


class _Watch:
    def __init__(self, call: Call, interval_s: float, give_up: Callable[[], None]) -> None:
        self._call = call
        self._interval_s = interval_s
        self._give_up = give_up
        self._taken_bytes = -1
        self._idle_checks = 0
        self._timer = self._next()

    def stop(self) -> None:
        self._timer.cancel()

    def _next(self) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(self._interval_s, self._check)

    def _check(self) -> None:
        transport = self._call.request.transport
        waiting_bytes = 0 if transport is None else transport.get_write_buffer_size()
        taken_bytes = self._call.request.writer.output_size - waiting_bytes
        is_idle = waiting_bytes > 0 and taken_bytes == self._taken_bytes
        self._idle_checks = self._idle_checks + 1 if is_idle else 0
        self._taken_bytes = taken_bytes
        if self._idle_checks >= CHECKS:
            self._give_up()
        else:
            self._timer = self._next()
