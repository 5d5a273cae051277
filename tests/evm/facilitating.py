"""Our facilitator on anvil, and anvil under the names that the facilitator's contract suite uses."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from eth_account.signers.local import LocalAccount

from obol.adapters.chain_evm import EvmChain
from obol.adapters.evm_sender import Sender, SendingLimits
from obol.adapters.evm_signing import LocalTransactionSigner
from obol.adapters.facilitator_evm import EvmFacilitator, Served
from obol.adapters.logs import make_logger
from obol.adapters.rpc_http import JsonRpc
from obol.core.clock import Clock
from obol.core.networks import BASE_SEPOLIA, Asset
from tests.evm.anvil import USDC, Anvil, Moved
from tests.evm.authorizing import cancel_call

GAS_KEY = bytes([5] * 32)
QUICK = SendingLimits(rebroadcast_s=0.2)


@asynccontextmanager
async def evm_facilitator(
    rpc_url: str,
    folder: Path,
    clock: Clock,
    *,
    limits: SendingLimits = QUICK,
    settle_wait_s: float = 5.0,
    confirmations: int = 1,
    gas_key: bytes = GAS_KEY,
) -> AsyncIterator[EvmFacilitator]:
    """With one key, whose journal is in `folder`."""
    chain = EvmChain(JsonRpc([rpc_url], timeout_s=1.0), BASE_SEPOLIA, confirmations=confirmations)
    signer, journal = LocalTransactionSigner(gas_key), folder / "sender.sqlite3"
    try:
        sender = await Sender.open(chain, signer, journal, clock, make_logger(as_json=True), limits=limits)
    except BaseException:
        await chain.close()
        raise
    facilitator = EvmFacilitator([Served(chain, sender, (USDC,))], clock, settle_wait_s=settle_wait_s)
    try:
        yield facilitator
    finally:
        await facilitator.close()


class AnvilLedger:
    """What the contract suite asks of the chain behind a facilitator; `wallets` can sign for their addresses."""

    def __init__(self, anvil: Anvil, *wallets: LocalAccount) -> None:
        self._anvil = anvil
        self._wallets = {wallet.address.lower(): wallet for wallet in wallets}

    async def fund(self, asset: Asset, address: str, amount_atomic: int) -> None:
        await self._anvil.mint(address, amount_atomic, asset.address)

    async def balance(self, asset: Asset, address: str) -> int:
        return await self._anvil.balance(address, asset.address)

    async def transfers(self, asset: Asset, *, payee: str) -> list[Moved]:
        return await self._anvil.transfers(payee, asset.address)

    async def cancel(self, asset: Asset, payer: str, nonce: str) -> None:
        await self._anvil.send(asset.address, cancel_call(self._wallets[payer.lower()], nonce))
