"""OBOL by Permit2, from quote to receipt: our gateway, our facilitator over HTTP, anvil."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
import pytest

from obol import Gateway, GatewayConfig
from obol.adapters.allowances_evm import EvmAllowances
from obol.adapters.chain_evm import EvmChain
from obol.adapters.clock import SystemClock
from obol.adapters.evm_sender import Sender
from obol.adapters.evm_signing import LocalTransactionSigner
from obol.adapters.facilitator_evm import EvmFacilitator, Served
from obol.adapters.logs import make_logger
from obol.adapters.rpc_http import JsonRpc
from obol.adapters.signer_local import LocalSigner
from obol.buyer.payment_auth import PaymentAuth
from obol.cli.exit_codes import ExitCode
from obol.core.networks import BASE_SEPOLIA
from obol.x402.client import payment_headers, read_challenge, sign_exact, sponsor_gas
from obol.x402.gas_sponsoring import GAS_SPONSORING
from obol.x402.models import PaymentRequired
from obol.x402.permit2 import PERMIT2_ADDRESS
from tests.adapters.payments import SELLER
from tests.cli.program import Ended, obol
from tests.evm.anvil import USDC, Anvil
from tests.evm.contracts import OBOL, UNLIMITED, allow_permit2, call, place_obol, place_permit2
from tests.evm.facilitating import GAS_KEY, QUICK
from tests.facilitator.running import running
from tests.fakes.model_server import FakeModelServer
from tests.fakes.rpc import Errors, Fails, FakeRpc
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


# --- our own buyer


@pytest.fixture
def key(tmp_path: Path) -> tuple[str, ...]:
    BUYER.write_key_file(tmp_path / "key")
    return ("--key-file", str(tmp_path / "key"), "--max-price", "2")


async def pay(url: str, *options: str, **environ: str) -> Ended:
    return await obol("pay", url + CHAT, "--model", MODEL, "--prompt", "hi", *options, environ=environ)


async def read(anvil: Anvil, signature: str, *arguments: str) -> int:
    data = "0x" + call(signature, *arguments).hex()
    return int(await anvil.rpc("eth_call", {"to": OBOL.address, "data": data}, "latest"), 16)


async def allowed(anvil: Anvil) -> int:
    return await read(anvil, "allowance(address,address)", BUYER.address, PERMIT2_ADDRESS)


async def permits_used(anvil: Anvil) -> int:
    return await read(anvil, "nonces(address)", BUYER.address)


async def test_a_wallet_without_gas_or_allowance_buys_again_and_again(
    url: str, anvil: Anvil, key: tuple[str, ...]
) -> None:
    first = await pay(url, *key, "--rpc", anvil.url)
    assert first.code == ExitCode.OK, first
    assert "choices" in json.loads(first.out)
    assert "paid 1.5 OBOL" in first.err
    assert (await permits_used(anvil), await allowed(anvil)) == (1, 0)

    second = await pay(url, *key, OBOL_RPC=anvil.url)
    assert second.code == ExitCode.OK, second
    assert (await permits_used(anvil), await allowed(anvil)) == (2, 0)
    assert [move.amount_atomic for move in await anvil.transfers(SELLER, OBOL.address)] == [PRICE_ATOMIC] * 2
    assert int(await anvil.rpc("eth_getBalance", BUYER.address, "latest"), 16) == 0


@pytest.mark.parametrize("amount_atomic", [PRICE_ATOMIC, UNLIMITED])
async def test_an_allowance_that_is_enough_is_used_and_no_permit(
    url: str, anvil: Anvil, key: tuple[str, ...], amount_atomic: int
) -> None:
    await allow_permit2(anvil, BUYER.address, amount_atomic)
    assert (await pay(url, *key, "--rpc", anvil.url)).code == ExitCode.OK
    left_atomic = UNLIMITED if amount_atomic == UNLIMITED else 0
    assert (await permits_used(anvil), await allowed(anvil)) == (0, left_atomic)


async def test_an_allowance_that_is_too_small_is_none(url: str, anvil: Anvil, key: tuple[str, ...]) -> None:
    await allow_permit2(anvil, BUYER.address, PRICE_ATOMIC - 1)
    assert (await pay(url, *key, "--rpc", anvil.url)).code == ExitCode.OK
    assert await permits_used(anvil) == 1


async def test_without_an_rpc_the_refusal_says_what_to_do(url: str, anvil: Anvil, key: tuple[str, ...]) -> None:
    ended = await pay(url, *key)
    assert ended.code == ExitCode.PAYMENT
    assert f"approve({PERMIT2_ADDRESS}, amount) of {OBOL.address}" in ended.err
    assert "--rpc URL" in ended.err
    assert await anvil.transfers(SELLER, OBOL.address) == []


@pytest.mark.parametrize("failure", [Fails(), Errors(-32601, "the method does not exist")])
async def test_when_the_rpc_cannot_be_asked_nothing_is_signed(
    url: str, anvil: Anvil, key: tuple[str, ...], failure: Fails | Errors
) -> None:
    async with FakeRpc(anvil.url) as rpc:
        rpc.behaviours["eth_call"] = failure
        ended = await pay(url, *key, "--rpc", rpc.url)
    assert (ended.code, ended.out) == (ExitCode.CONNECTION, "")
    assert "obol: error: --rpc: " in ended.err
    assert "Nothing was signed." in ended.err
    assert "s3cret" not in ended.err
    assert await anvil.transfers(SELLER, OBOL.address) == []


async def test_an_rpc_of_another_chain_is_not_believed(url: str, key: tuple[str, ...]) -> None:
    async with Anvil("--chain-id", "31337") as other:
        ended = await pay(url, *key, "--rpc", other.url)
    assert ended.code == ExitCode.CONNECTION
    assert "it is of chain 31337, not 84532" in ended.err


@pytest.mark.parametrize("stream", [False, True])
async def test_an_async_client_takes_a_permit_along(url: str, anvil: Anvil, stream: bool) -> None:
    auth = PaymentAuth(BUYER, max_price="2", allowances=EvmAllowances([anvil.url]))
    async with httpx2.AsyncClient(auth=auth) as client:
        answer = await client.post(url + CHAT, json=chat(stream=stream))
    assert (answer.status_code, auth.spent, [p.permit_nonce for p in auth.payments]) == (200, "1.5", [0])


async def test_a_sync_client_inside_an_event_loop_takes_one_too(url: str, anvil: Anvil) -> None:
    auth = PaymentAuth(BUYER, max_price="2", allowances=EvmAllowances([anvil.url]))

    async def inside() -> int:
        with httpx2.Client(auth=auth) as client:
            return client.post(url + CHAT, json=chat()).status_code

    assert await asyncio.to_thread(asyncio.run, inside()) == 200
    assert (auth.spent, await permits_used(anvil)) == ("1.5", 1)
