"""From settings to a facilitator on EVM chains: one chain per `--rpc`, each checked before anything is served."""

from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import structlog

from obol.adapters.chain_evm import EvmChain
from obol.adapters.evm_batching import BatchingSender, deploy_batcher, is_batcher_there
from obol.adapters.evm_sender import DEFAULT_LIMITS, Sender, SendingLimits
from obol.adapters.evm_signing import TransactionSigner
from obol.adapters.facilitator_evm import EvmFacilitator, Served
from obol.adapters.gas_account import GasAccount
from obol.adapters.rpc_http import JsonRpc
from obol.adapters.token_check import is_token_there
from obol.core.clock import Clock
from obol.core.networks import DEFAULT_CATALOGUE, Asset, Catalogue, Network, TransferMethod
from obol.errors import SettingsError
from obol.x402.permit2 import EXACT_PROXY_ADDRESS, PERMIT2_ADDRESS

RPC = "--rpc"
BATCH_MAX = "--batch-max"


@dataclass(frozen=True, slots=True)
class ChainSettings:
    """Chains, and what is paid and waited for there. Durations in seconds."""

    rpc_urls: tuple[tuple[str, ...], ...]
    """For each chain the URLs of its nodes, in order. Of which chain they are, they say themselves."""
    data_dir: Path
    """Folder of the senders' journals: what was sent must be found again after a restart."""
    catalogue: Catalogue = DEFAULT_CATALOGUE
    limits: SendingLimits = DEFAULT_LIMITS
    batch_max: int = 1
    """Payments in one transaction, at most; 1 sends each by itself."""
    batch_wait_s: float = 0.05
    """How long the first of a batch waits for company."""
    factories: frozenset[str] = frozenset()
    """Contracts, in lower case, that may be called to deploy a payer's wallet (ERC-6492). None: none is."""
    confirmations: int = 1
    settle_wait_s: float = 45.0
    """How long `/settle` waits for a block before it answers `settlement_pending`."""
    max_timeout_s: int = 86_400
    """Requirements with a longer `maxTimeoutSeconds` are refused."""
    payees: frozenset[str] = frozenset()
    """The sellers it works for, in lower case. None: anybody."""

    @property
    def needs_batcher(self) -> bool:
        """Whether several calls may go in one transaction."""
        return self.batch_max > 1 or bool(self.factories)


async def open_on_chain(
    settings: ChainSettings,
    signer: TransactionSigner,
    clock: Clock,
    log: structlog.typing.FilteringBoundLogger,
) -> EvmFacilitator:
    """Check every chain and token, then go on with what the journals have open. Takes over `signer`.

    Raises `SettingsError` for a chain that is unknown, given twice or has no token of the catalogue, for a token that
    signs under another domain, and for a key that another process sends with; `ChainUnavailableError`.
    """
    served: list[Served] = []
    async with AsyncExitStack() as undo:
        undo.push_async_callback(signer.close)
        for urls in settings.rpc_urls:
            chain = await _open_chain(JsonRpc(urls, log=log), settings, undo)
            if any(chain.network == other.chain.network for other in served):
                raise SettingsError(RPC, f"two are of {chain.network.name}: give its nodes in one, separated by commas")
            assets = await _tokens(chain, settings.catalogue)
            journal = settings.data_dir / f"facilitator-{chain.network.chain_id}-{signer.address.lower()}.sqlite3"
            sender = await Sender.open(chain, signer, journal, clock, log, limits=settings.limits)
            undo.push_async_callback(sender.close)
            gas = GasAccount(chain, signer.address, clock, log)
            shortage = await gas.shortage()
            if settings.needs_batcher and shortage and not await is_batcher_there(chain):
                raise SettingsError(BATCH_MAX, f"the batcher contract is still to be deployed, and {shortage}: fund it")
            if settings.needs_batcher:
                await deploy_batcher(chain, sender, log)
            served.append(Served(chain, _batching(chain, sender, settings, log), assets, settings.factories, gas))
        undo.pop_all()
    return EvmFacilitator(
        served,
        clock,
        settle_wait_s=settings.settle_wait_s,
        max_timeout_s=settings.max_timeout_s,
        payees=settings.payees,
    )


def _batching(
    chain: EvmChain, sender: Sender, settings: ChainSettings, log: structlog.typing.FilteringBoundLogger
) -> Sender | BatchingSender:
    if settings.batch_max == 1:
        return sender
    return BatchingSender(chain, sender, log, batch_max=settings.batch_max, batch_wait_s=settings.batch_wait_s)


async def _open_chain(rpc: JsonRpc, settings: ChainSettings, undo: AsyncExitStack) -> EvmChain:
    undo.push_async_callback(rpc.close)
    network = _network(await rpc.chain_id(), settings.catalogue)
    return EvmChain(rpc, network, confirmations=settings.confirmations)


def _network(chain_id: int, catalogue: Catalogue) -> Network:
    network = catalogue.find_network(f"eip155:{chain_id}")
    if network is None:
        known = ", ".join(f"{one.name} ({one.chain_id})" for one in catalogue.networks)
        raise SettingsError(RPC, f"is of chain {chain_id}, which is not one of {known}")
    return network


async def _tokens(chain: EvmChain, catalogue: Catalogue) -> tuple[Asset, ...]:
    """The tokens of the catalogue that are on this chain, with what moves them."""
    possible = [asset for asset in catalogue.assets if asset.network == chain.network]
    there = tuple([asset for asset in possible if await _can_be_moved(chain, asset)])
    if not there:
        names = ", ".join(f"{asset.symbol} {asset.address}" for asset in possible) or "none is known"
        raise SettingsError(RPC, f"{chain.network.name} has no token there that can be settled ({names})")
    return there


async def _can_be_moved(chain: EvmChain, asset: Asset) -> bool:
    if not await is_token_there(chain, asset, field=RPC):
        return False
    if asset.transfer_method is TransferMethod.EIP3009:
        return True
    return bool(await chain.code(PERMIT2_ADDRESS)) and bool(await chain.code(EXACT_PROXY_ADDRESS))
