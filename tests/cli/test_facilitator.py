"""`obol facilitator` and `obol devnet`, as the processes that people start."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.adapters.payments import SELLER, account

BUYER = account().address


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return os.environ | {"XDG_DATA_HOME": str(tmp_path)}


def obol(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from obol.cli.main import main; main()", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def balance(environment: dict[str, str], address: str, *flags: str) -> str:
    answer: dict[str, Any] = json.loads(obol(environment, "devnet", "balance", address, *flags).stdout)
    return str(answer["balance"])


@pytest.fixture
def process(environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    command = ["facilitator", "run", "--devnet", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(
        [sys.executable, "-c", "from obol.cli.main import main; main()", *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as started:
        yield started
        started.kill()


def announced(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    facts: dict[str, Any] = json.loads(process.stdout.readline())
    return facts


def test_funded_money_is_there(environment: dict[str, str]) -> None:
    funded = obol(environment, "devnet", "fund", BUYER, "1.50")
    assert funded.returncode == 0
    assert json.loads(funded.stdout) == {
        "address": BUYER,
        "balance": "1.5",
        "asset": "USDC",
        "network": "eip155:84532",
        "balance_atomic": "1500000",
    }
    assert balance(environment, BUYER) == "1.5"
    assert balance(environment, SELLER) == "0"


def test_networks_and_assets_are_chosen_by_flags(environment: dict[str, str]) -> None:
    obol(environment, "devnet", "fund", BUYER, "2", "--chain", "avalanche-fuji", "--asset", "usdc")
    assert balance(environment, BUYER, "--chain", "eip155:43113") == "2"
    assert balance(environment, BUYER) == "0"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["devnet", "fund", BUYER, "0,01"], "AMOUNT"),
        (["devnet", "fund", BUYER, "1e-3"], "AMOUNT"),
        (["devnet", "fund", BUYER, "0"], "AMOUNT"),
        (["devnet", "fund", BUYER, "0.0000001"], "AMOUNT"),
        (["devnet", "fund", "alice", "1"], "ADDRESS"),
        (["devnet", "balance", BUYER, "--chain", "nowhere"], "--chain"),
        (["devnet", "balance", BUYER, "--asset", "gold"], "--asset"),
        (["devnet", "balance", BUYER, "--asset", "obol"], "--asset"),
        (["facilitator", "run"], "--devnet"),
        (["facilitator", "run", "--rpc", "", "--key-file", __file__], "--rpc"),
        (["facilitator", "run", "--devnet", "--listen", "8404"], "--listen"),
        (["facilitator", "run", "--devnet", "--listen", "127.0.0.1:99999"], "--listen"),
        (["facilitator", "run", "--devnet", "--listen", "192.0.2.1:8404"], "--listen"),
        (["facilitator", "run", "--devnet", "--chain", "nowhere"], "--chain"),
        (["facilitator", "run", "--devnet", "--data-dir", "/dev/null/x"], "--data-dir"),
    ],
)
def test_what_is_wrong_is_refused_by_its_name(environment: dict[str, str], arguments: list[str], named: str) -> None:
    refused = obol(environment, *arguments)
    assert refused.returncode == 2
    assert named in refused.stderr
    assert "Traceback" not in refused.stderr


async def test_it_says_what_it_is_serves_and_ends_well_on_sigterm(
    process: subprocess.Popen[str], environment: dict[str, str]
) -> None:
    facts = announced(process)
    assert "play money" in facts["ledger"]
    async with aiohttp.request("GET", facts["address"] + "/supported") as response:
        assert response.status == 200
    assert json.loads(obol(environment, "devnet", "fund", BUYER, "1").stdout)["balance"] == "1"
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert balance(environment, BUYER) == "1"


def test_a_password_in_the_place_of_its_variables_name_is_not_said_again(environment: dict[str, str]) -> None:
    keystore = ("--keystore", __file__, "--keystore-password-env", "s3cret")
    refused = obol(environment, "facilitator", "run", "--rpc", "http://127.0.0.1:1", *keystore)
    assert (refused.returncode, "s3cret" in refused.stderr) == (2, False)
    assert "--keystore-password-env" in refused.stderr


async def test_it_says_that_it_is_stopping_and_a_second_signal_ends_it_at_once(process: subprocess.Popen[str]) -> None:
    host, port = announced(process)["address"].removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /verify HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n")
    await reader.readline()  # it is being answered, and its body never comes
    assert process.stderr is not None
    process.send_signal(signal.SIGINT)
    assert "stopping" in await asyncio.to_thread(process.stderr.readline)
    process.send_signal(signal.SIGINT)
    assert await asyncio.to_thread(process.wait, 10) == 130
    writer.close()


async def test_an_address_in_use_is_refused(process: subprocess.Popen[str], environment: dict[str, str]) -> None:
    address = announced(process)["address"].removeprefix("http://")
    second = obol(environment, "facilitator", "run", "--devnet", "--listen", address)
    assert second.returncode == 2
    assert "--listen" in second.stderr
