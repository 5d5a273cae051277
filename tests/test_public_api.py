"""What a program imports from obol: whole, sorted, cheap, typed, and working in both forms."""

import asyncio
import importlib.resources
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
import structlog
from aiohttp import web
from aiohttp.test_utils import TestServer

import obol
from obol import Gateway, GatewayConfig
from obol.errors import SettingsError
from tests.fakes.model_server import FakeModelServer
from tests.gateway.shop import SELLER

HEAVY = (
    "aiohttp",
    "httpx2",
    "click",
    "rich",
    "msgspec",
    "coincurve",
    "structlog",
    "sqlite3",
    "asyncio",
    "obol.gateway",
)


def quiet() -> structlog.typing.FilteringBoundLogger:
    logger: structlog.typing.FilteringBoundLogger = structlog.wrap_logger(
        None, processors=[drop], wrapper_class=structlog.make_filtering_bound_logger("info")
    )
    return logger


def drop(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    raise structlog.DropEvent


def config(upstream: str, folder: Path) -> GatewayConfig:
    return GatewayConfig(upstream_url=upstream, pay_to=SELLER, devnet=True, listen="127.0.0.1:0", data_dir=folder)


def test_the_public_names_are_one_sorted_list() -> None:
    assert obol.__all__ == sorted(obol.__all__)
    assert set(obol.__all__) == set(obol._WHERE)


@pytest.mark.parametrize("name", obol.__all__)
def test_every_public_name_can_be_imported_and_is_documented(name: str) -> None:
    found = getattr(obol, name)
    assert found.__doc__
    assert found.__name__ == name


def test_what_is_not_public_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        obol.Nothing  # noqa: B018


def test_importing_obol_imports_nothing_heavy() -> None:
    code = f"import sys, obol; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=20)
    assert done.stdout.strip() == "[]"


def test_the_package_says_that_it_is_typed() -> None:
    assert importlib.resources.files("obol").joinpath("py.typed").is_file()


async def test_a_gateway_in_an_event_loop(tmp_path: Path) -> None:
    async with FakeModelServer() as upstream:
        gateway = Gateway(config(upstream.url, tmp_path), log=quiet())
        with pytest.raises(RuntimeError, match="not started"):
            _ = gateway.url
        await gateway.start_async()
        url = gateway.url
        assert await asyncio.to_thread(is_alive, url)
        assert gateway.offer.name == "inference"
        await gateway.stop_async()
        await gateway.stop_async()
        assert not await asyncio.to_thread(is_alive, url)
        with pytest.raises(RuntimeError, match="not started"):
            _ = gateway.url


async def test_a_gateway_can_be_started_again(tmp_path: Path) -> None:
    async with FakeModelServer() as upstream:
        gateway = Gateway(config(upstream.url, tmp_path), log=quiet())
        for _ in range(2):
            async with gateway:
                assert await asyncio.to_thread(is_alive, gateway.url)


async def test_a_gateway_without_an_event_loop(tmp_path: Path) -> None:
    async with FakeModelServer() as upstream:
        gateway = Gateway(config(upstream.url, tmp_path), log=quiet())
        gateway.stop()  # not running: nothing happens
        thread = threading.Thread(target=gateway.start)
        thread.start()
        url = await asyncio.to_thread(url_of, gateway)
        assert await asyncio.to_thread(is_alive, url)
        await asyncio.to_thread(gateway.stop)
        await asyncio.to_thread(thread.join, 10)
        assert not thread.is_alive()
        assert not await asyncio.to_thread(is_alive, url)


async def test_a_stop_while_it_is_starting_is_not_lost(tmp_path: Path) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    async def models(_: web.Request) -> web.Response:
        asked.set()
        await answer.wait()
        return web.json_response({"object": "list", "data": [{"id": "tiny"}]})

    app = web.Application()
    app.router.add_get("/v1/models", models)
    async with TestServer(app) as upstream:
        gateway = Gateway(config(str(upstream.make_url("")).rstrip("/"), tmp_path), log=quiet())
        thread = threading.Thread(target=gateway.start)
        thread.start()
        await asked.wait()
        gateway.stop()
        answer.set()
        await asyncio.to_thread(thread.join, 10)
        assert not thread.is_alive()


async def test_a_gateway_that_cannot_start_says_why_and_leaves_nothing_open(tmp_path: Path) -> None:
    async with FakeModelServer() as upstream:
        taken = config(upstream.url, tmp_path)
        async with Gateway(taken, log=quiet()) as first:
            port = first.url.rpartition(":")[2]
            second = Gateway(
                GatewayConfig(upstream.url, pay_to=SELLER, devnet=True, listen=f"127.0.0.1:{port}", data_dir=tmp_path),
                log=quiet(),
            )
            with pytest.raises(SettingsError, match="--listen"):
                await second.start_async()
            assert await asyncio.to_thread(is_alive, first.url)


def test_a_wrong_config_is_refused_before_the_start() -> None:
    with pytest.raises(SettingsError, match="--price"):
        Gateway(GatewayConfig("http://127.0.0.1:1", pay_to=SELLER, price="0,01"))


def test_a_config_does_not_show_its_credential() -> None:
    assert "s3cret" not in repr(GatewayConfig("http://x", upstream_authorization="Bearer s3cret"))


def is_alive(url: str) -> bool:
    try:
        with urllib.request.urlopen(url + "/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def url_of(gateway: Gateway) -> str:
    """Where a gateway listens that another thread is starting."""
    end_s = time.monotonic() + 10
    while time.monotonic() < end_s:
        try:
            return gateway.url
        except RuntimeError:
            time.sleep(0.005)
    raise AssertionError("never started")
