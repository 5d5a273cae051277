import threading

import pytest

from obol.gateway.offload import LARGE_BYTES, off_the_loop


@pytest.mark.parametrize(("size_bytes", "is_here"), [(0, True), (LARGE_BYTES - 1, True), (LARGE_BYTES, False)])
async def test_only_large_work_leaves_the_event_loop(size_bytes: int, is_here: bool) -> None:
    thread = await off_the_loop(size_bytes, threading.get_ident)
    assert (thread == threading.get_ident()) is is_here


async def test_what_the_work_raises_is_raised_here() -> None:
    with pytest.raises(ZeroDivisionError):
        await off_the_loop(LARGE_BYTES, lambda: 1 // 0)
