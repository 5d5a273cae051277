"""Waiting for a buyer, and stopping when the buyer hangs up."""

import asyncio

import pytest
from aiohttp.test_utils import make_mocked_request

from obol.gateway.call import Call
from obol.gateway.patience import BuyerGone, buyer_patience


def a_call() -> Call:
    return Call(make_mocked_request("POST", "/v1/chat/completions"), "the-id", 0.0)


async def test_a_wait_ends_when_the_buyer_hangs_up() -> None:
    call = a_call()
    asyncio.get_running_loop().call_soon(call.hang_up)
    with pytest.raises(BuyerGone):
        async with buyer_patience(call):
            await asyncio.Event().wait()


async def test_a_buyer_who_had_left_before_is_not_waited_for() -> None:
    call = a_call()
    call.hang_up()
    with pytest.raises(BuyerGone):
        async with buyer_patience(call):
            await asyncio.Event().wait()


async def test_a_wait_that_goes_on_is_not_ended() -> None:
    call = a_call()
    done = asyncio.Event()
    asyncio.get_running_loop().call_soon(call.hang_up)
    asyncio.get_running_loop().call_later(0.01, done.set)
    async with buyer_patience(call, goes_on=True):
        await done.wait()
    assert call.is_gone


async def test_a_hang_up_after_the_wait_interrupts_nothing() -> None:
    call = a_call()
    async with buyer_patience(call):
        await asyncio.sleep(0)
    call.hang_up()
    await asyncio.sleep(0)


async def test_an_error_inside_is_the_callers() -> None:
    with pytest.raises(ZeroDivisionError):
        async with buyer_patience(a_call()):
            _ = 1 // 0
