"""The allowances port on an EVM chain, by JSON-RPC.

Connections live as long as one reading: a buyer asks from any thread and any event loop, and seldom. Sources: ERC-20,
EIP-2612.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from obol.adapters.chain_evm import EvmChain, RevertedError
from obol.adapters.evm_abi import AbiError, call_data, decode_uint
from obol.adapters.rpc_http import TIMEOUT_S, JsonRpc
from obol.core.networks import Asset
from obol.x402.permit2 import PERMIT2_ADDRESS


class EvmAllowances:
    """Asks the nodes at `urls`, all of one chain; assets of another chain are "not known". `urls` are never shown."""

    def __init__(self, urls: Sequence[str], *, timeout_s: float = TIMEOUT_S, field: str = "--rpc") -> None:
        """Raises `SettingsError` naming `field` for no URL, or one that may not be used."""
        JsonRpc(urls, field=field)  # opens nothing; says at once what is wrong with a URL
        self._urls = tuple(urls)
        self._timeout_s = timeout_s

    async def permit2_allowance(self, asset: Asset, payer: str) -> int:
        async with self._chain(asset) as chain:
            return await chain.allowance(asset.address, payer, PERMIT2_ADDRESS)

    async def permit_nonce(self, asset: Asset, payer: str) -> int | None:
        async with self._chain(asset) as chain:
            try:
                return decode_uint(await chain.call(asset.address, call_data("nonces(address)", payer)))
            except (RevertedError, AbiError):
                return None  # it has no such function

    @asynccontextmanager
    async def _chain(self, asset: Asset) -> AsyncIterator[EvmChain]:
        chain = EvmChain(JsonRpc(self._urls, timeout_s=self._timeout_s), asset.network)
        try:
            yield chain
        finally:
            await chain.close()
