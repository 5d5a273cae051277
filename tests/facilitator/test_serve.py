"""Serving until told to stop: what is being answered is still answered."""

import asyncio
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from obol.errors import SettingsError
from obol.facilitator.serve import serve
from obol.facilitator.settings import FacilitatorSettings

FOLDER = Path("/data")


async def test_a_request_in_flight_is_answered_before_the_end() -> None:
    arrived, go, stop = asyncio.Event(), asyncio.Event(), asyncio.Event()
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def slow(_: web.Request) -> web.Response:
        arrived.set()
        await go.wait()
        return web.Response(text="done")

    app = web.Application()
    app.router.add_get("/", slow)

    async def ask() -> str:
        async with aiohttp.request("GET", await address) as response:
            return await response.text()

    stopping = asyncio.Event()
    settings = FacilitatorSettings(FOLDER, port=0)
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(
            serve(app, settings, on_listening=address.set_result, stop=stop, on_stopping=stopping.set)
        )
        asked = tasks.create_task(ask())
        await arrived.wait()
        stop.set()
        await stopping.wait()
        assert not serving.done()
        go.set()
    assert asked.result() == "done"
    with pytest.raises(aiohttp.ClientConnectorError):
        async with aiohttp.request("GET", address.result()):
            pass


async def test_an_address_that_cannot_be_listened_on_is_refused_by_the_flags_name() -> None:
    settings = FacilitatorSettings(FOLDER, host="192.0.2.1", port=8404)
    with pytest.raises(SettingsError, match=r"^--listen: cannot listen on 192\.0\.2\.1:8404: [A-Z][^:']*$"):
        await serve(web.Application(), settings, on_listening=lambda _: None, stop=asyncio.Event())


async def test_an_ipv6_address_is_announced_in_brackets() -> None:
    urls: list[str] = []
    stop = asyncio.Event()
    stop.set()
    settings = FacilitatorSettings(FOLDER, host="::1", port=0)
    try:
        await serve(web.Application(), settings, on_listening=urls.append, stop=stop)
    except SettingsError:
        pytest.skip("this machine has no IPv6")
    assert urls[0].startswith("http://[::1]:")
