"""The demo, run as a newcomer runs it, in a process of its own."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import pytest

from tests.components import missing

try:
    import xllamacpp  # noqa: F401
except ImportError:
    missing("llama.cpp's server (xllamacpp)", "make test")

pytestmark = pytest.mark.component("xllamacpp")


async def start(tmp_path: Path, *arguments: str) -> Process:
    environ = {**os.environ, "TMPDIR": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "data")}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "obol", "demo", *arguments), stdout=PIPE, stderr=PIPE, env=environ
    )


def leftovers(tmp_path: Path) -> list[Path]:
    return [*tmp_path.glob("obol-demo-*"), *tmp_path.glob("data")]


async def read_until(process: Process, text: str) -> str:
    assert process.stdout is not None
    seen = ""
    while text not in seen:
        line = await process.stdout.readline()
        assert line, f"the demo ended before it said {text!r}:\n{seen}"
        seen += line.decode()
    return seen


async def test_the_demo_shows_quote_stream_receipt_balances_and_429_and_stops_everything(tmp_path: Path) -> None:
    process = await start(tmp_path)
    out, err = await process.communicate()
    told = out.decode()
    assert process.returncode == 0, err.decode()
    assert "gibberish by design" in told
    assert "402 Payment Required: 0.001 USDC on base-sepolia (eip155:84532)" in told
    assert "state: settled, delivery complete" in told
    assert "buyer: 1 USDC  →  0.999 USDC" in told
    assert "seller: 0 USDC  →  0.001 USDC" in told
    assert "429 Too Many Requests, Retry-After: " in told
    assert "quote: none" in told
    assert "Everything is stopped." in told
    assert leftovers(tmp_path) == []


async def test_keep_leaves_it_running_until_ctrl_c(tmp_path: Path) -> None:
    process = await start(tmp_path, "--keep", "--price", "0.02")
    told = await read_until(process, "--prompt Hello")
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert "buyer: 1 USDC  →  0.98 USDC" in told
    assert "Everything is stopped." in out.decode()
    assert leftovers(tmp_path) == []


async def test_ctrl_c_in_the_middle_cleans_up(tmp_path: Path) -> None:
    process = await start(tmp_path)
    await read_until(process, "llama.cpp server")
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert process.returncode == 130
    assert "interrupted" in err.decode()
    assert leftovers(tmp_path) == []


async def test_an_unreachable_upstream_is_named_with_what_to_do(tmp_path: Path) -> None:
    process = await start(tmp_path, "--upstream", "http://127.0.0.1:9")
    _, err = await process.communicate()
    assert process.returncode == 3
    assert "nothing listens at http://127.0.0.1:9: start the model server" in err.decode()
