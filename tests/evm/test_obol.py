"""OBOL by Permit2, from quote to receipt: our gateway, our facilitator over HTTP, anvil."""

import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from obol import Gateway, GatewayConfig
from obol.adapters.chain_evm import EvmChain
from obol.adapters.clock import SystemClock
from obol.adapters.evm_sender import Sender
from obol.adapters.evm_signing import LocalTransactionSigner
from obol.adapters.facilitator_evm import EvmFacilitator, Served
from obol.adapters.logs import make_logger
from obol.adapters.rpc_http import JsonRpc
from obol.adapters.signer_local import LocalSigner
from obol.core.networks import BASE_SEPOLIA
from obol.x402.client import payment_headers, read_challenge, sign_exact, sponsor_gas
from obol.x402.gas_sponsoring import GAS_SPONSORING
from obol.x402.models import PaymentRequired
from tests.adapters.payments import SELLER
from tests.evm.anvil import USDC, Anvil
from tests.evm.contracts import OBOL, allow_permit2, place_obol, place_permit2
from tests.evm.facilitating import GAS_KEY, QUICK
from tests.facilitator.running import running
from tests.fakes.model_server import FakeModelServer
from tests.gateway.answer import CHAT, MODEL, chat

BUYER = LocalSigner(bytes([1] * 32))
PRICE_ATOMIC = 15 * 10**17


@pytest.fixture
async def url(anvil: Anvil, tmp_path: Path) -> AsyncIterator[str]:
    """A gateway that sells for 1.5 OBOL."""
    await place_permit2(anvil)
    await place_obol(anvil)
    await anvil.mint(BUYER.address, 10 * PRICE_ATOMIC, OBOL.address)
    await anvil.fund_native(LocalTransactionSigner(GAS_KEY).address)
    async with AsyncExitStack() as stack:
        chain = EvmChain(JsonRpc([anvil.url]), BASE_SEPOLIA)
        log, signer, clock = make_logger(as_json=True), LocalTransactionSigner(GAS_KEY), SystemClock()
        sender = await Sender.open(chain, signer, tmp_path / "journal.sqlite3", clock, log, limits=QUICK)
        facilitator = EvmFacilitator([Served(chain, sender, (USDC, OBOL))], clock)
        stack.push_async_callback(facilitator.close)
        facilitator_url = await stack.enter_async_context(running(facilitator))
        upstream = await stack.enter_async_context(FakeModelServer(models=(MODEL,)))
        config = GatewayConfig(
            upstream_url=upstream.url,
            pay_to=SELLER,
            price="1.5",
            payment_asset="obol",
            listen="127.0.0.1:0",
            data_dir=tmp_path,
            facilitator_url=facilitator_url,
            rpc_urls=(anvil.url,),
        )
        gateway = await stack.enter_async_context(Gateway(config, log=log))
        yield gateway.url


async def quote(http: aiohttp.ClientSession, url: str) -> PaymentRequired:
    async with http.post(url + CHAT, json=chat()) as answer:
        return read_challenge(answer.status, answer.headers, await answer.read())


async def buy(http: aiohttp.ClientSession, url: str, headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
    """Status, and the receipt."""
    async with http.post(url + CHAT, json=chat(), headers=headers) as answer:
        await answer.read()
        path = answer.headers.get("X-Obol-Receipt")
        status = answer.status
    if path is None:
        return status, {}
    async with http.get(url + path) as answer:
        return status, await answer.json()


async def test_an_answer_is_sold_for_obol(url: str, anvil: Anvil) -> None:
    await allow_permit2(anvil, BUYER.address)
    async with aiohttp.ClientSession() as http:
        (wanted,) = (await quote(http, url)).accepts
        assert (wanted.amount, wanted.asset) == (str(PRICE_ATOMIC), OBOL.address)
        paid = sign_exact(BUYER, wanted, OBOL, now_s=SystemClock().now_s(), nonce=secrets.token_bytes(32), version=2)
        headers = payment_headers(paid, 2)
        status, receipt = await buy(http, url, headers)
        assert (status, receipt["state"], receipt["settledAtomic"]) == (200, "settled", str(PRICE_ATOMIC))
        (moved,) = await anvil.transfers(SELLER, OBOL.address)
        assert (receipt["transaction"], receipt["logIndex"]) == (moved.transaction, moved.log_index)
        assert (await buy(http, url, headers))[0] == 409
    assert len(await anvil.transfers(SELLER, OBOL.address)) == 1


async def test_without_an_allowance_the_buyer_is_refused(url: str, anvil: Anvil) -> None:
    async with aiohttp.ClientSession() as http:
        (wanted,) = (await quote(http, url)).accepts
        paid = sign_exact(BUYER, wanted, OBOL, now_s=SystemClock().now_s(), nonce=secrets.token_bytes(32), version=2)
        async with http.post(url + CHAT, json=chat(), headers=payment_headers(paid, 2)) as answer:
            assert answer.status == 402
            assert "permit2_allowance_required" in await answer.text()
    assert await anvil.transfers(SELLER, OBOL.address) == []


async def test_a_permit_takes_the_place_of_the_allowance(url: str, anvil: Anvil) -> None:
    async with aiohttp.ClientSession() as http:
        required = await quote(http, url)
        assert isinstance(required.extensions, dict)
        assert GAS_SPONSORING in required.extensions
        (wanted,) = required.accepts
        paid = sign_exact(BUYER, wanted, OBOL, now_s=SystemClock().now_s(), nonce=secrets.token_bytes(32), version=2)
        paid = sponsor_gas(paid, required, BUYER, OBOL, token_nonce=0)
        status, receipt = await buy(http, url, payment_headers(paid, 2))
    assert (status, receipt["state"]) == (200, "settled")
    assert await anvil.balance(SELLER, OBOL.address) == PRICE_ATOMIC
