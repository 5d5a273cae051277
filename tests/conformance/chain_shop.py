"""A gateway on a port that settles on anvil and looks there itself, each with a seller's address of its own."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from obol.gateway.gateway import Gateway
from obol.gateway.settings import GatewayConfig
from obol.x402.eip712 import checksum_address
from tests.conformance.shop import PRICE, PURSE_ATOMIC, Storefront
from tests.evm.anvil import Anvil, Moved


@dataclass(frozen=True)
class ChainShop(Storefront):
    """`folder` is where its ledger is."""

    anvil: Anvil
    seller: str
    folder: Path

    async def fund(self, address: str) -> None:
        """Give a buyer `PURSE_ATOMIC`."""
        await self.anvil.mint(address, PURSE_ATOMIC)

    async def payments_of(self, address: str) -> list[Moved]:
        """What a buyer has paid the seller. Fails where that is not what is missing in the buyer's purse."""
        moved = [move for move in await self.anvil.transfers(self.seller) if move.payer == address.lower()]
        spent_atomic = PURSE_ATOMIC - await self.anvil.balance(address)
        assert spent_atomic == sum(move.amount_atomic for move in moved)
        return moved


@asynccontextmanager
async def open_chain_shop(
    upstream_url: str, anvil: Anvil, facilitator_url: str, folder: Path, **settings: Any
) -> AsyncIterator[ChainShop]:
    """A shop while entered; `settings` are those of `GatewayConfig`."""
    seller = checksum_address("0x" + secrets.token_hex(20))
    wanted: dict[str, Any] = {
        "upstream_url": upstream_url,
        "pay_to": seller,
        "price": PRICE,
        "listen": "127.0.0.1:0",
        "facilitator_url": facilitator_url,
        "rpc_urls": (anvil.url,),
        "data_dir": folder,
    }
    async with Gateway(GatewayConfig(**(wanted | settings))) as gateway, aiohttp.ClientSession() as http:
        assert gateway.warnings == []
        yield ChainShop(gateway.url, http, anvil, seller, folder)
