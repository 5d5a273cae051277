"""The README's commands, run as they stand there; only ports, folders and the place to settle are exchanged."""

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from obol import LocalSigner
from obol.adapters.chain_devnet import DevnetChain
from obol.adapters.clock import SystemClock
from obol.adapters.paths import devnet_file
from obol.core.networks import BASE_SEPOLIA, DEFAULT_CATALOGUE
from tests.docs.pages import ROOT, blocks
from tests.fakes.model_server import FakeModelServer

README = (ROOT / "README.md").read_text(encoding="utf-8")
CONSOLE = [block.text for block in blocks(README) if block.language == "console"]
(SNIPPET,) = [block.text for block in blocks(README) if block.language == "python"]
COMMANDS = [
    line.removeprefix("$ ").partition("  #")[0].strip()
    for text in CONSOLE
    for line in re.sub(r"\\\n\s*", "", text).splitlines()
    if line.startswith("$ ")
]
SELLER = "0x7Afbc8Fb4D64700471C90f49914c54b33e42Df4d"
USDC = DEFAULT_CATALOGUE.asset(BASE_SEPOLIA, "usdc")
_ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith(("OBOL_", "X402_"))}


def command(beginning: str) -> str:
    (found,) = [line for line in COMMANDS if line.startswith(beginning)]
    return found


async def start(text: str, folder: Path) -> Process:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return await asyncio.create_subprocess_exec(
        *("bash", "-euc", f"exec {text}"), cwd=folder, stdout=PIPE, stderr=STDOUT, env=_ENVIRON | {"PATH": path}
    )


async def run(text: str, folder: Path) -> str:
    process = await start(text, folder)
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


@asynccontextmanager
async def selling(folder: Path) -> AsyncIterator[str]:
    """The README's seller, with play money in the place of a facilitator elsewhere; its URL."""
    async with FakeModelServer() as upstream:
        text = command("obol sell inference").replace("http://localhost:8000", upstream.url).replace("0x…", SELLER)
        seller = await start(f"{text} --devnet --data-dir {folder} --listen 127.0.0.1:0 --json", folder)
        assert seller.stdout is not None
        try:
            listening = re.search(r'"address": "([^"]+)"', (await seller.stdout.readline()).decode())
            assert listening is not None
            yield listening[1]
        finally:
            seller.send_signal(signal.SIGTERM)
            await seller.communicate()
        assert seller.returncode == 0


async def fund(folder: Path) -> None:
    chain = await DevnetChain.open(devnet_file(folder), SystemClock())
    try:
        await chain.fund(USDC, LocalSigner.from_key_file(folder / "wallet.key").address, 1_000_000)
    finally:
        await chain.close()


def test_make_has_what_the_readme_runs() -> None:
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    wanted = [line.split()[1] for line in COMMANDS if line.startswith("make ")]
    assert wanted == ["demo", "test"]
    assert set(wanted) <= set(targets)


@pytest.mark.timeout(60)
async def test_the_readme_sells_and_buys(tmp_path: Path) -> None:
    async with selling(tmp_path) as url:
        await run(command("obol wallet new"), tmp_path)
        await fund(tmp_path)
        paid = await run(command("obol pay").replace("http://localhost:8402", url), tmp_path)
        assert "paid 0.001 USDC on base-sepolia" in paid
        (tmp_path / "buy.py").write_text(SNIPPET.replace("http://localhost:8402", url))
        bought = await run(f"{sys.executable} buy.py", tmp_path)
        assert "Hello wörld" in bought
        assert f"paid 0.001 USDC; receipt {url}/receipts/" in bought
