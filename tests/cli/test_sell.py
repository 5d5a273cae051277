"""`obol sell inference` and `obol sell status`, as the programs that sellers start."""

import asyncio
import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from obol.cli.main import cli
from tests.cli.conftest import ENVIRONMENT, Run
from tests.cli.program import Running, obol, started
from tests.fakes.model_server import Behaviour, FakeModelServer
from tests.gateway.shop import CHAT, MODEL, SELLER, USDC, chat

PRICE = "0.002"
GIVEN = ("--pay-to", SELLER, "--price", PRICE, "--devnet", "--listen", "127.0.0.1:0")


@pytest.fixture
async def upstream() -> AsyncIterator[FakeModelServer]:
    async with FakeModelServer(models=(MODEL,)) as server:
        yield server


@asynccontextmanager
async def selling(
    upstream: FakeModelServer, folder: Path, *more: str, given: tuple[str, ...] = GIVEN, **environ: str
) -> AsyncIterator[Running]:
    """`obol sell inference`, listening."""
    where = ("--upstream", upstream.url, "--data-dir", str(folder))
    async with started("sell", "inference", "qwen36-fast", *where, *given, *more, environ=environ) as program:
        await program.read_summary()
        yield program


async def post(url: str, body: Any = None) -> tuple[int, bytes]:
    async with aiohttp.request("POST", url + CHAT, json=body or chat()) as answer:
        return answer.status, await answer.read()


def nobody() -> str:
    """An address where nothing listens."""
    return "http://127.0.0.1:1"


# -------------------------------------------------------------------------------------------------- what is refused

WRONG = [
    (("--price", "0,01"), "--price"),
    (("--price", "abc"), "--price"),
    (("--price", "-1"), "--price"),
    (("--price", "1e-9"), "--price"),
    (("--price", "0x10"), "--price"),
    (("--price", "0"), "--price"),
    (("--price", "0.0000001"), "--price"),
    (("--pay-to", "alice"), "--pay-to"),
    (("--pay-to", "0x" + "0" * 40), "--pay-to"),
    (("--pay-to", "0x036CbD53842c5426634e7929541eC2318f3dCF7E"), "--pay-to"),
    (("--chain", "nowhere"), "--chain"),
    (("--payment-asset", "gold"), "--payment-asset"),
    (("--payment-asset", "0x" + "12" * 20), "--payment-asset"),
    (("--listen", "8402"), "--listen"),
    (("--listen", "127.0.0.1:99999"), "--listen"),
    (("--admin-listen", "nowhere"), "--admin-listen"),
    (("--upstream", "localhost:8000"), "--upstream"),
    (("--upstream", "ftp://localhost"), "--upstream"),
    (("--upstream", "http://user:password@localhost"), "--upstream"),
    (("--public-url", "shop.example"), "--public-url"),
    (("--max-inflight", "0"), "--max-inflight"),
    (("--max-inflight", "many"), "--max-inflight"),
    (("--per-buyer-max-inflight", "-1"), "--per-buyer-max-inflight"),
    (("--max-queue-depth", "3"), "--max-queue-depth"),
    (("--max-inflight", "1", "--max-queue-depth", "-1"), "--max-queue-depth"),
    (("--queue-timeout", "0"), "--queue-timeout"),
    (("--queue-timeout", "nan"), "--queue-timeout"),
    (("--gpu-count", "0"), "--gpu-count"),
    (("--max-body-bytes", "0"), "--max-body-bytes"),
    (("--max-output-tokens", "0"), "--max-output-tokens"),
    (("--max-timeout", "90000"), "--max-timeout"),
    (("--facilitator", "http://127.0.0.1:1"), "--devnet"),
    (("--settlement", "never"), "--settlement"),
    (("--api", "telepathy"), "--api"),
    (("--upstream-auth-env", "NOT_SET_ANYWHERE"), "--upstream-auth-env"),
    (("--no-payment-gate", "--listen", ":0"), "--no-payment-gate"),
    (("--no-payment-gate", "--listen", "0.0.0.0:0"), "--no-payment-gate"),
    (("--no-payment-gate", "--verify-only"), "--verify-only"),
    (("--verify-only", "--settlement", "on-output"), "--settlement"),
    (("--rpc", ""), "--rpc"),
    (("--rpc", " , "), "--rpc"),
    (("--max-unsettled", "0.001"), "--max-unsettled"),
    (("--data-dir", "/data", "--ledger-env", "PATH"), "--data-dir"),
    (("--ledger-env", "postgresql://obol:password@127.0.0.1/obol"), "--ledger-env"),
    (("--upstream-auth-env", "sk-password"), "--upstream-auth-env"),
]


@pytest.mark.parametrize(
    ("flags", "named"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_a_wrong_flag_is_named_before_anything_is_asked(run: Run, flags: tuple[str, ...], named: str) -> None:
    result = run("sell", "inference", "x", "--upstream", nobody(), *GIVEN, *flags)
    assert result.exit_code == 2, result.output
    assert named in result.stderr
    assert "password" not in result.stderr.replace("a user or password", "")


def test_without_an_address_to_pay_nothing_is_sold(run: Run) -> None:
    result = run("sell", "inference", "x", "--upstream", nobody())
    assert (result.exit_code, "--pay-to" in result.stderr) == (2, True)


def test_obol_on_the_devnet_is_refused_with_the_reason(run: Run) -> None:
    result = run("sell", "inference", "x", "--upstream", nobody(), *GIVEN, "--payment-asset", "obol", "--devnet")
    assert result.exit_code == 2
    assert "permit2, which the devnet does not have: use usdc" in " ".join(result.stderr.split())


def test_an_unreachable_upstream_is_exit_3_and_says_what_to_do(run: Run, tmp_path: Path) -> None:
    result = run("sell", "inference", "x", "--upstream", nobody(), *GIVEN, "--data-dir", str(tmp_path))
    assert result.exit_code == 3
    assert "start the model server, or correct the address" in result.stderr


async def test_what_is_no_model_server_is_refused(tmp_path: Path) -> None:
    async def hello(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text="hello")

    runner = web.ServerRunner(web.Server(hello))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = "http://{}:{}".format(*runner.addresses[0][:2])
    ended = await obol("sell", "inference", "x", "--upstream", url, *GIVEN, "--data-dir", str(tmp_path))
    await runner.cleanup()
    assert (ended.code, "not an OpenAI-compatible model server" in ended.err) == (3, True), ended


async def test_a_model_that_the_upstream_does_not_serve_is_refused(upstream: FakeModelServer, tmp_path: Path) -> None:
    flags = ("--upstream", upstream.url, *GIVEN, "--data-dir", str(tmp_path), "--model", "dear")
    ended = await obol("sell", "inference", "x", *flags)
    assert ended.code == 2
    assert "--model" in ended.err
    assert f"it serves {MODEL}" in ended.err


async def test_an_address_in_use_is_named(upstream: FakeModelServer, tmp_path: Path) -> None:
    flags = ("--upstream", upstream.url, *GIVEN, "--data-dir", str(tmp_path), "--listen", f"127.0.0.1:{upstream.port}")
    ended = await obol("sell", "inference", "x", *flags)
    assert ended.code == 2
    assert "--listen" in ended.err
    assert "cannot listen" in ended.err
    assert "Traceback" not in ended.err


# ------------------------------------------------------------------------------------------------------------ selling


async def test_the_summary_says_what_is_sold_where_for_how_much_and_to_whom(
    upstream: FakeModelServer, tmp_path: Path
) -> None:
    flags = ("--max-inflight", "16", "--per-buyer-max-inflight", "4", "--gpu-count", "1")
    async with selling(upstream, tmp_path, *flags) as program:
        summary = program.summary
        assert summary["models"] == MODEL
        assert summary["upstream"] == upstream.url
        assert summary["price"] == f"{PRICE} USDC per request"
        assert summary["network"] == "base-sepolia (eip155:84532)"
        assert summary["asset"] == f"USDC {USDC.address}"
        assert SELLER in summary.values()
        assert "play money" in json.dumps(summary)
        assert summary["ledger"] == str(tmp_path / "ledger-devnet.sqlite3")
        assert summary["capacity"] == "16 in flight, 4 per buyer, 1 GPU (seller-declared; nothing is scaled)"
        assert (await post(program.url))[0] == 402
        program.terminate()
        ended = await program.ended()
    assert ended.code == 0, ended.err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_a_stream_in_flight_and_then_exits_0(
    upstream: FakeModelServer, tmp_path: Path, number: signal.Signals
) -> None:
    hold = asyncio.Event()
    upstream.behaviour = Behaviour(hold_between_tokens=hold)
    flags = ("--no-payment-gate",)
    async with (
        selling(upstream, tmp_path, *flags) as program,
        aiohttp.request("POST", program.url + CHAT, json=chat(stream=True)) as answer,
    ):
        await answer.content.readany()
        program.terminate(number)
        code = 404
        async with asyncio.timeout(10):
            while code == 404:  # what is not sold is refused before and, for another reason, after the signal
                code, _ = await post(program.url, chat() | {"model": "not sold"})
        assert code == 503
        hold.set()
        assert (await answer.read()).endswith(b"data: [DONE]\n\n")
        ended = await program.ended()
    assert ended.code == 0, ended.err
    assert "stopping" in ended.err


async def test_the_sellers_credential_comes_from_the_environment(upstream: FakeModelServer, tmp_path: Path) -> None:
    flags = ("--no-payment-gate", "--upstream-auth-env", "MODEL_KEY")
    async with selling(upstream, tmp_path, *flags, MODEL_KEY="s3cret") as program:
        assert "s3cret" not in json.dumps(program.summary)
        assert (await post(program.url))[0] == 200
        program.terminate()
        ended = await program.ended()
    assert upstream.calls[0].header("Authorization") == "Bearer s3cret"
    assert upstream.requests[0].header("Authorization") == "Bearer s3cret", "the first questions carry it too"
    assert "s3cret" not in ended.out + ended.err


async def test_the_ledger_is_where_the_flag_says_or_where_xdg_does(upstream: FakeModelServer, tmp_path: Path) -> None:
    async with selling(upstream, tmp_path / "given"):
        assert (tmp_path / "given" / "ledger-devnet.sqlite3").exists()
    where = ("--upstream", upstream.url)
    async with started("sell", "inference", "x", *where, *GIVEN, environ={"XDG_DATA_HOME": str(tmp_path)}) as program:
        await program.read_summary()
        assert (tmp_path / "obol" / "ledger-devnet.sqlite3").exists()


async def test_a_facilitator_that_is_not_there_is_a_warning(upstream: FakeModelServer, tmp_path: Path) -> None:
    given = ("--pay-to", SELLER, "--listen", "127.0.0.1:0", "--facilitator", nobody())
    async with selling(upstream, tmp_path, given=given) as program:
        assert (await post(program.url))[0] == 402
        program.terminate()
        ended = await program.ended()
    assert f"warning: the facilitator {nobody()} cannot be asked now" in ended.err


async def test_an_admin_address_is_in_the_summary(upstream: FakeModelServer, tmp_path: Path) -> None:
    async with selling(upstream, tmp_path, "--admin-listen", "127.0.0.1:0") as program:
        admin = program.summary["admin"]
        report = (await obol("sell", "status", "--url", admin)).json
        assert report["offer"]["name"] == "qwen36-fast"
        assert report["ledger"] == str(tmp_path / "ledger-devnet.sqlite3")
        public = await obol("sell", "status", "--url", program.url)
    assert public.code == 5
    assert "--admin-listen" in public.err


# ------------------------------------------------------------------------------------------------------------- status


async def test_status_on_a_terminal_is_the_capacity_of_the_envelope_in_words(
    upstream: FakeModelServer, tmp_path: Path
) -> None:
    flags = ("--max-inflight", "16", "--gpu-count", "2")
    async with selling(upstream, tmp_path, *flags) as program:
        rows = await asyncio.to_thread(on_a_terminal, "sell", "status", "--url", program.url)
    assert {
        f"price {PRICE} USDC per request on base-sepolia",
        "capacity mode external-static",
        "scaling controlled false",
        "GPU count 2",
        "max in flight 16",
        "max per buyer no limit",
        "in flight 0",
        "state Available",
        "queued 0",
        "revenue so far none yet",
    } <= rows


async def test_status_without_a_gate_names_no_price(upstream: FakeModelServer, tmp_path: Path) -> None:
    async with selling(upstream, tmp_path, "--no-payment-gate") as program:
        rows = await asyncio.to_thread(on_a_terminal, "sell", "status", "--url", program.url)
    assert {"price none: payment gate is off", "paid to nobody"} <= rows


async def test_status_without_capacity_says_that_there_is_no_limit(upstream: FakeModelServer, tmp_path: Path) -> None:
    async with selling(upstream, tmp_path) as program:
        rows = await asyncio.to_thread(on_a_terminal, "sell", "status", "--url", program.url)
    assert {"capacity mode none declared: no limit", "scaling controlled false", "in flight 0"} <= rows


def on_a_terminal(*arguments: str) -> set[str]:
    """The lines that `obol` shows a person, without frames and padding."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "obol", *arguments]
    with subprocess.Popen(command, env=ENVIRONMENT | {"TERM": "dumb", "COLUMNS": "120"}, stdout=theirs) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # how Linux says that nobody writes any more
            while chunk := os.read(ours, 65536):
                shown += chunk
        os.close(ours)
        assert process.wait(10) == 0
    return {" ".join(line.strip("│ ").split()) for line in shown.decode().splitlines()}


def test_status_of_nobody_is_exit_3_and_says_what_to_do(run: Run) -> None:
    result = run("sell", "status", "--url", nobody())
    assert result.exit_code == 3
    assert "obol sell inference" in result.stderr


@pytest.mark.parametrize("body", [b"hello", b"[]", b"{}", b'{"offer":1}'])
async def test_status_of_something_else_is_exit_5(body: bytes) -> None:
    async def other(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=body, content_type="application/json")

    runner = web.ServerRunner(web.Server(other))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    ended = await obol("sell", "status", "--url", "http://{}:{}".format(*runner.addresses[0][:2]))
    await runner.cleanup()
    assert ended.code == 5, ended


def test_sell_is_a_command_of_obol() -> None:
    assert "sell" in cli.list_commands(None)  # type: ignore[arg-type]
