"""A gateway on a port, with the play-money chain that it settles on in the tests' hands."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from obol.adapters.chain_devnet import DevnetChain, Transfer
from obol.adapters.clock import SystemClock
from obol.adapters.facilitator_devnet import DevnetFacilitator
from obol.adapters.paths import devnet_file
from obol.gateway.gateway import Gateway
from obol.gateway.settings import GatewayConfig
from tests.adapters.payments import SELLER, USDC
from tests.fakes.facilitator import FakeFacilitator

MODEL = "tiny-random"
PRICE = "0.001"
PRICE_ATOMIC = 1000
PURSE_ATOMIC = 5_000_000
_UNFINISHED = frozenset({"claimed", "serving", "served", "settling", "settle_unknown", "redeeming"})


@dataclass(frozen=True)
class Storefront:
    """A gateway as anybody on the network sees it; `url` sells `MODEL`."""

    url: str
    http: aiohttp.ClientSession

    async def get(self, path: str) -> Any:
        """A JSON document of the gateway."""
        async with self.http.get(self.url + path) as answer:
            assert answer.status == 200
            return await answer.json()

    async def receipt(self, path: str) -> Any:
        """The receipt of a sale, when it is final."""
        async with asyncio.timeout(10):
            while True:
                receipt = await self.get(path)
                if receipt["state"] not in _UNFINISHED and receipt["delivery"] != "started":
                    return receipt
                await asyncio.sleep(0.01)


@dataclass(frozen=True)
class Shop(Storefront):
    """`facilitator` is what the gateway asks, true to `chain` unless told otherwise."""

    chain: DevnetChain
    facilitator: FakeFacilitator

    async def fund(self, address: str) -> None:
        """Give a buyer `PURSE_ATOMIC`."""
        await self.chain.fund(USDC, address, PURSE_ATOMIC)

    async def payments_of(self, address: str) -> list[Transfer]:
        """What a buyer has paid the seller. Fails where that is not what is missing in the buyer's purse."""
        moved = [move for move in await self.chain.transfers(USDC, payee=SELLER) if move.payer == address.lower()]
        spent_atomic = PURSE_ATOMIC - await self.chain.balance(USDC, address)
        assert spent_atomic == sum(move.amount_atomic for move in moved)
        return moved


@asynccontextmanager
async def open_shop(upstream_url: str, folder: Path, **settings: Any) -> AsyncIterator[Shop]:
    """A shop while entered; `settings` are those of `GatewayConfig`."""
    chain = await DevnetChain.open(devnet_file(folder), SystemClock())
    try:
        async with FakeFacilitator(DevnetFacilitator(chain)) as facilitator, aiohttp.ClientSession() as http:
            wanted: dict[str, Any] = {
                "upstream_url": upstream_url,
                "pay_to": SELLER,
                "price": PRICE,
                "listen": "127.0.0.1:0",
                "facilitator_url": facilitator.url,
                "data_dir": folder,
            }
            async with Gateway(GatewayConfig(**(wanted | settings))) as gateway:
                yield Shop(gateway.url, http, chain, facilitator)
    finally:
        await chain.close()
