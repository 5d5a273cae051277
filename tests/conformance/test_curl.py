"""A client that knows nothing of x402 and buffers nothing: curl, with a payment signed beforehand."""

import asyncio
import json
import shutil
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from obol.adapters.clock import SystemClock
from obol.x402.client import payment_headers
from tests.adapters.payments import account, pay, requirements
from tests.components import missing
from tests.conformance.purchase import PATH, Order, read_words
from tests.conformance.shop import Shop, open_shop
from tests.fakes.model_answers import WORDS
from tests.fakes.model_server import Behaviour, FakeModelServer

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(60)]
BUYER = account()
VERSIONS = pytest.mark.parametrize("version", [1, 2])
PROTOCOLS = pytest.mark.parametrize("protocol", ["--http1.1", "--http1.0"])


@pytest.fixture
def curl() -> str:
    found = shutil.which("curl")
    if found is None:
        missing("curl", "apt-get install curl")
    return str(found)


@pytest_asyncio.fixture(loop_scope="session")
async def shop(model_server: FakeModelServer, tmp_path: Path) -> AsyncIterator[Shop]:
    async with open_shop(model_server.url, tmp_path) as opened:
        await opened.fund(BUYER.address)
        yield opened


def command(curl: str, shop: Shop, *options: str, stream: bool, version: int | None) -> list[str]:
    valid_before_s = int(SystemClock().now_s()) + 300
    network = "base-sepolia" if version == 1 else "eip155:84532"
    payload = pay(requirements(network=network), BUYER, validBefore=valid_before_s)
    payment = payment_headers(payload, version) if version else {}
    headers = {"Content-Type": "application/json", **payment}
    sent = [part for name, value in headers.items() for part in ("-H", f"{name}: {value}")]
    body = json.dumps(Order(shop.url, BUYER, stream=stream).body)
    return [curl, "-q", "-sS", "-N", "--noproxy", "*", *options, *sent, "-d", body, shop.url + PATH]


async def run(arguments: list[str]) -> str:
    process = await asyncio.create_subprocess_exec(*arguments, stdout=PIPE)
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode()


@VERSIONS
@PROTOCOLS
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_curl_buys_with_one_header(curl: str, shop: Shop, protocol: str, version: int, stream: bool) -> None:
    answer = await run(command(curl, shop, protocol, stream=stream, version=version))
    assert read_words(200, answer) == "".join(WORDS[:5])
    assert len(await shop.payments_of(BUYER.address)) == 1


async def test_curl_without_a_payment_reads_the_price(curl: str, shop: Shop) -> None:
    answer = json.loads(await run(command(curl, shop, stream=False, version=None)))
    assert answer["accepts"][0]["maxAmountRequired"] == "1000"
    assert await shop.payments_of(BUYER.address) == []


@PROTOCOLS
async def test_curl_shows_the_first_event_while_the_upstream_still_generates(
    curl: str, shop: Shop, model_server: FakeModelServer, protocol: str
) -> None:
    go_on = asyncio.Event()
    model_server.behaviour = Behaviour(tokens=5, hold_between_tokens=go_on)
    arguments = command(curl, shop, protocol, stream=True, version=2)
    process = await asyncio.create_subprocess_exec(*arguments, stdout=PIPE)
    assert process.stdout is not None
    async with asyncio.timeout(15):  # a buffered stream would never get here
        first = await process.stdout.readuntil(WORDS[0].strip().encode())
    assert (model_server.calls[-1].sent_tokens, model_server.in_flight) == (1, 1)
    go_on.set()
    rest, _ = await process.communicate()
    assert read_words(200, (first + rest).decode()) == "".join(WORDS[:5])
