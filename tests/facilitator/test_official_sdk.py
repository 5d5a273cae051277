"""The official Python SDK, unmodified, against our facilitator: its facilitator client, its server and its buyer."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import uvicorn
from fastapi import FastAPI
from x402 import x402Client, x402ResourceServer
from x402.http import FacilitatorConfig, HTTPFacilitatorClient, PaymentOption
from x402.http.clients import x402HttpxClient
from x402.http.middleware.fastapi import PaymentMiddlewareASGI
from x402.http.types import RouteConfig
from x402.http.utils import decode_payment_response_header
from x402.mechanisms.evm.exact.register import register_exact_evm_client, register_exact_evm_server
from x402.schemas import PaymentPayload, PaymentRequired, PaymentRequirements
from x402.schemas.v1 import PaymentRequiredV1, PaymentRequirementsV1

from obol.adapters.chain_devnet import DevnetChain
from obol.adapters.clock import SystemClock
from obol.adapters.facilitator_devnet import DevnetFacilitator
from tests.adapters.payments import PRICE_ATOMIC, SELLER, USDC, account, requirements
from tests.facilitator.running import running

BUYER = account()
NETWORK = "eip155:84532"


@pytest.fixture
async def chain(tmp_path: Path) -> AsyncIterator[DevnetChain]:
    """On the machine's clock: the SDK signs by it."""
    opened = await DevnetChain.open(tmp_path / "devnet.sqlite3", SystemClock())
    await opened.fund(USDC, BUYER.address, 10 * PRICE_ATOMIC)
    yield opened
    await opened.close()


@pytest.fixture
async def url(chain: DevnetChain) -> AsyncIterator[str]:
    async with running(DevnetFacilitator(chain)) as address:
        yield address


@pytest.fixture
async def client(url: str) -> AsyncIterator[HTTPFacilitatorClient]:
    async with HTTPFacilitatorClient(FacilitatorConfig(url=url)) as facilitator:
        yield facilitator


def buyer() -> x402Client:
    return register_exact_evm_client(x402Client(), BUYER)  # type: ignore[arg-type]


def v2_requirements() -> PaymentRequirements:
    wanted = requirements()
    return PaymentRequirements(
        scheme=wanted.scheme,
        network=wanted.network,
        amount=wanted.amount,
        asset=wanted.asset,
        pay_to=wanted.pay_to,
        max_timeout_seconds=wanted.max_timeout_seconds,
        extra=wanted.extra or {},
    )


async def test_its_client_verifies_and_settles_v2(client: HTTPFacilitatorClient, chain: DevnetChain) -> None:
    wanted = v2_requirements()
    paid = await buyer().create_payment_payload(PaymentRequired(accepts=[wanted]))
    verified = await client.verify(paid, wanted)
    settled = await client.settle(paid, wanted)
    (moved,) = await chain.transfers(USDC, payee=SELLER)
    assert (verified.is_valid, verified.payer) == (True, BUYER.address)
    assert (settled.success, settled.transaction, settled.network) == (True, moved.transaction, NETWORK)


async def test_its_client_verifies_and_settles_v1(client: HTTPFacilitatorClient, chain: DevnetChain) -> None:
    wanted = PaymentRequirementsV1(
        scheme="exact",
        network="base-sepolia",
        max_amount_required=str(PRICE_ATOMIC),
        resource="http://seller.example/",
        pay_to=SELLER,
        max_timeout_seconds=300,
        asset=USDC.address,
        extra={"name": "USDC", "version": "2"},
    )
    paid = await buyer().create_payment_payload(PaymentRequiredV1(accepts=[wanted]))
    assert (await client.verify(paid, wanted)).is_valid
    settled = await client.settle(paid, wanted)
    assert (settled.success, settled.network) == (True, "base-sepolia")
    assert await chain.balance(USDC, SELLER) == PRICE_ATOMIC


async def test_its_client_reads_our_refusals(client: HTTPFacilitatorClient, chain: DevnetChain) -> None:
    wanted = v2_requirements()
    paid = await buyer().create_payment_payload(PaymentRequired(accepts=[wanted]))
    assert isinstance(paid, PaymentPayload)
    await chain.cancel(USDC, BUYER.address, paid.payload["authorization"]["nonce"])
    verified = await client.verify(paid, wanted)
    settled = await client.settle(paid, wanted)
    assert (verified.is_valid, verified.invalid_reason) == (False, "invalid_exact_evm_nonce_already_used")
    assert (settled.success, settled.error_reason) == (False, "invalid_exact_evm_nonce_already_used")


async def test_its_client_reads_what_we_support(client: HTTPFacilitatorClient) -> None:
    supported = await asyncio.to_thread(client.get_supported)  # it blocks
    assert {(kind.x402_version, kind.network) for kind in supported.kinds} == {(2, NETWORK), (1, "base-sepolia")}


def official_seller(facilitator_url: str) -> FastAPI:
    """The official middleware, paid by way of our facilitator."""
    client = HTTPFacilitatorClient(FacilitatorConfig(url=facilitator_url))
    server = register_exact_evm_server(x402ResourceServer(client))
    option = PaymentOption(scheme="exact", pay_to=SELLER, price="$0.001", network=NETWORK)

    @asynccontextmanager
    async def closing_its_client(_: FastAPI) -> AsyncIterator[None]:
        yield
        await client.aclose()

    app = FastAPI(lifespan=closing_its_client)
    app.add_middleware(PaymentMiddlewareASGI, routes={"GET /weather": RouteConfig(accepts=option)}, server=server)

    @app.get("/weather")
    async def weather() -> dict[str, str]:
        return {"weather": "sunny"}

    return app


@asynccontextmanager
async def in_a_thread(app: FastAPI) -> AsyncIterator[str]:
    """The app's address while entered; a loop of its own, because its start-up asks our facilitator and blocks."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", ws="none", loop="asyncio"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            await asyncio.to_thread(thread.join, 0.01)
            assert thread.is_alive()
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await asyncio.to_thread(thread.join)


async def test_its_server_sells_to_its_buyer_through_our_facilitator(url: str, chain: DevnetChain) -> None:
    async with in_a_thread(official_seller(url)) as seller:
        async with x402HttpxClient(buyer(), base_url=seller) as http:
            answer = await http.get("/weather")
        async with aiohttp.request("GET", seller + "/weather") as unpaid:
            assert unpaid.status == 402
    receipt = decode_payment_response_header(answer.headers["PAYMENT-RESPONSE"])
    (moved,) = await chain.transfers(USDC, payee=SELLER)
    assert (answer.status_code, answer.json()) == (200, {"weather": "sunny"})
    assert (receipt.success, receipt.transaction) == (True, moved.transaction)
    assert moved.amount_atomic == PRICE_ATOMIC
