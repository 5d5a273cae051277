"""What the pages tell people to run, run: shell blocks, Python blocks, and the JSON that they show."""

import ast
import asyncio
import json
import os
import shutil
import sqlite3
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from obol import Gateway, GatewayConfig, LocalSigner
from obol.adapters.chain_devnet import DevnetChain
from obol.adapters.clock import SystemClock
from obol.adapters.logs import make_logger
from obol.adapters.paths import devnet_file, ledger_file
from obol.core.networks import BASE_SEPOLIA, DEFAULT_CATALOGUE
from obol.x402.headers import PAYMENT_REQUIRED, decode_header
from tests.docs.pages import ROOT, block, blocks, pages, read
from tests.fakes.model_server import FakeModelServer

SELLER = "0x7Afbc8Fb4D64700471C90f49914c54b33e42Df4d"
USDC = DEFAULT_CATALOGUE.asset(BASE_SEPOLIA, "usdc")
PATH = "/v1/chat/completions"
ASK = {"model": "small", "messages": [{"role": "user", "content": "Hello"}]}
PYTHON = [
    pytest.param(found.text, id=f"{page.relative_to(ROOT)}-{number}")
    for page in [*pages(), ROOT / "README.md"]
    for number, found in enumerate(blocks(page.read_text(encoding="utf-8")))
    if found.language == "python"
]
_ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith(("OBOL_", "X402_"))}


async def run(*command: str, folder: Path) -> str:
    """The output of a program that succeeds, with `obol` and `python` of this environment on its path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, stdout=PIPE, stderr=STDOUT, env=_ENVIRON | {"PATH": path}
    )
    try:
        output, _ = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode == 0, output.decode()
    return output.decode()


@pytest.fixture
async def upstream() -> AsyncIterator[FakeModelServer]:
    async with FakeModelServer() as server:
        yield server


@pytest.fixture
async def shop(upstream: FakeModelServer, tmp_path: Path) -> AsyncIterator[Gateway]:
    """What the pages sell, with a funded buyer's key in the folder, and the ledger in `data` in it."""
    data = tmp_path / "data"
    buyer = LocalSigner.generate()
    buyer.write_key_file(tmp_path / "buyer.key")
    config = GatewayConfig(
        name="small",
        upstream_url=upstream.url,
        pay_to=SELLER,
        models=("small=tiny-random",),
        devnet=True,
        data_dir=data,
        listen="127.0.0.1:0",
        max_inflight=2,
        gpu_count=1,
    )
    async with Gateway(config, log=make_logger(as_json=False, level="error")) as gateway:
        chain = await DevnetChain.open(devnet_file(data), SystemClock())
        await chain.fund(USDC, buyer.address, 1_000_000)
        await chain.close()
        yield gateway


@pytest.mark.parametrize("text", PYTHON)
def test_python_on_the_pages_is_python(text: str) -> None:
    ast.parse(text)


@pytest.mark.parametrize(("page", "number"), [("reference/networks.md", 0), ("reference/settings.md", 0)])
async def test_settings_on_the_pages_are_accepted(page: str, number: int, tmp_path: Path) -> None:
    code = [found.text for found in blocks(read(page)) if found.language == "python"][number]
    await run(sys.executable, "-c", code, folder=tmp_path)


@pytest.mark.parametrize(
    ("kind", "spent"), [("sync", "spent 0.001"), ("async", "spent 0.002"), ("httpx2", "paid 0.001")]
)
async def test_a_buyer_in_python_buys(kind: str, spent: str, shop: Gateway, tmp_path: Path) -> None:
    code = block("how-to/buy-from-python.md", f"test: {kind}").replace("http://127.0.0.1:8402", shop.url)
    output = await run(sys.executable, "-c", code, folder=tmp_path)
    assert "Hello wörld" in output
    assert spent in output


@pytest.mark.parametrize("way", ["backup-python", "backup-sqlite3"])
async def test_a_backup_of_a_running_gateway_can_be_restored(way: str, shop: Gateway, tmp_path: Path) -> None:
    if way == "backup-sqlite3" and shutil.which("sqlite3") is None:
        way = "backup-python"  # the page offers either
    await buy(shop, tmp_path)
    await run("bash", "-euc", on_devnet(block("how-to/back-up-and-restart.md", f"test: {way}")), folder=tmp_path)
    backup = tmp_path / "ledger-backup.sqlite3"
    assert backup.stat().st_mode & 0o077 == 0
    receipts = count_sales(backup)
    await buy(shop, tmp_path)
    await shop.stop_async()
    await run("bash", "-euc", on_devnet(block("how-to/back-up-and-restart.md", "test: restore")), folder=tmp_path)
    assert receipts == 1
    async with Gateway(shop.config, log=make_logger(as_json=False, level="error")) as restored:
        await buy(restored, tmp_path)
    assert count_sales(ledger_file(tmp_path / "data", devnet=True)) == 2


def on_devnet(text: str) -> str:
    """The page is about real money, whose ledger is another file than that of play money."""
    return text.replace("data/ledger.sqlite3", "data/ledger-devnet.sqlite3")


async def buy(gateway: Gateway, folder: Path) -> str:
    code = block("how-to/buy-from-python.md", "test: httpx2").replace("http://127.0.0.1:8402", gateway.url)
    return await run(sys.executable, "-c", code, folder=folder)


def count_sales(path: Path) -> int:
    database = sqlite3.connect(path)
    try:
        return int(database.execute("SELECT count(*) FROM sale").fetchone()[0])
    finally:
        database.close()


def shown(heading: str) -> list[Any]:
    """The JSON documents below a heading of the page on HTTP."""
    below = read("reference/http.md").split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return [json.loads(found.text) for found in blocks(below) if found.language == "json"]


async def get(url: str) -> Any:
    async with aiohttp.ClientSession() as http, http.get(url) as answer:
        return await answer.json()


async def status_when_settled(gateway: Gateway) -> Any:
    """The last step of a sale is recorded beside its answer."""
    async with asyncio.timeout(10):
        while True:
            status = await get(f"{gateway.url}/status")
            if "settled" in status["payments"]:
                return status
            await asyncio.sleep(0.01)


async def test_the_quote_on_the_page_is_the_one_that_is_sent(shop: Gateway) -> None:
    async with aiohttp.ClientSession() as http, http.post(shop.url + PATH, json=ASK) as answer:
        assert answer.status == 402
        sent = [decode_header(answer.headers[PAYMENT_REQUIRED], dict[str, Any]), await answer.json()]
    assert shown("402: the quote") == json.loads(json.dumps(sent).replace(shop.url, "http://127.0.0.1:8402"))


async def test_the_status_on_the_page_is_that_after_one_sale(shop: Gateway, tmp_path: Path) -> None:
    await buy(shop, tmp_path)
    assert shown("Status") == [await status_when_settled(shop)]


async def test_the_receipt_on_the_page_has_the_fields_of_one(shop: Gateway, tmp_path: Path) -> None:
    output = await buy(shop, tmp_path)
    await status_when_settled(shop)
    receipt = await get(output.split()[-1])
    (expected,) = shown("Receipts")
    assert [*expected] == [*receipt]
    changing = {"id", "payer", "nonce", "transaction", "usage", "createdAt", "updatedAt"}
    assert {name: value for name, value in expected.items() if name not in changing} == {
        name: value for name, value in receipt.items() if name not in changing
    }
    assert [*expected["usage"]] == [*receipt["usage"]]
