"""Where the transfers of a reconciliation come from: the nodes of a chain, or the devnet's file."""

import contextlib
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from obol.core.transfer import Transfer
from obol.errors import SettingsError

if TYPE_CHECKING:
    from obol.adapters.chain_devnet import DevnetChain
    from obol.core.clock import Clock

CLOCK_SKEW_S = 60
"""By how much a chain's clock and a gateway's may differ."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What was transferred; whatever was recorded from `until_s` on may be missing. Unix seconds."""

    transfers: Sequence[Transfer]
    until_s: float


class Source(Protocol):
    """One place to read from. `network` in CAIP-2, or None for every network."""

    network: str | None

    async def read(self, network: str, asset: str, pay_tos: Collection[str], since_s: float) -> Reading:
        """The transfers of a token to any of these addresses since then, with room for clocks that differ."""
        ...


class BlockView(Protocol):
    """What is used of a block."""

    @property
    def number(self) -> int: ...

    @property
    def timestamp_s(self) -> int: ...


class ChainView(Protocol):
    """What is used of `adapters.chain_evm.EvmChain`."""

    async def block(self, which: int | str = "latest") -> BlockView: ...

    async def transfers(self, token: str, pay_to: str, from_block: int, to_block: int) -> list[Transfer]: ...


class ChainSource:
    """Reads blocks that have `confirmations`, 1 being the newest block's."""

    def __init__(self, chain: ChainView, network: str, *, confirmations: int) -> None:
        self.network: str | None = network
        self._chain = chain
        self._confirmations = confirmations

    async def read(self, network: str, asset: str, pay_tos: Collection[str], since_s: float) -> Reading:  # noqa: ARG002
        newest = await self._chain.block("latest")
        last = await self._chain.block(max(0, newest.number - self._confirmations + 1))
        first = await first_block_at(self._chain, since_s - CLOCK_SKEW_S, last.number)
        transfers: list[Transfer] = []
        for pay_to in sorted(pay_tos):
            transfers += await self._chain.transfers(asset, pay_to, first, last.number)
        return Reading(transfers, last.timestamp_s - CLOCK_SKEW_S)


class DevnetSource:
    """Reads the devnet: final at once, and complete."""

    def __init__(self, chain: "DevnetChain", clock: "Clock") -> None:
        self.network: str | None = None
        self._chain = chain
        self._clock = clock

    async def read(self, network: str, asset: str, pay_tos: Collection[str], since_s: float) -> Reading:
        token = self._chain.asset(network, asset)
        if token is None:
            raise SettingsError("--asset", f"the devnet has no token {asset} on {network}")
        until_s = self._clock.now_s()
        moved = [one for pay_to in sorted(pay_tos) for one in await self._chain.transfers(token, payee=pay_to)]
        transfers = [
            Transfer(one.transaction, 0, 0, one.payer, one.payee, one.amount_atomic)
            for one in moved
            if one.at_s >= since_s - CLOCK_SKEW_S
        ]
        return Reading(transfers, until_s)


async def first_block_at(chain: ChainView, time_s: float, last: int) -> int:
    """The first block, up to `last`, whose time is at or after `time_s`: O(log last) questions."""
    low, high = 0, last
    while low < high:
        middle = (low + high) // 2
        block = await chain.block(middle)
        if block.timestamp_s >= time_s:
            high = middle
        else:
            low = middle + 1
    return low


@contextlib.asynccontextmanager
async def chain_source(urls: Sequence[str], network: str | None, confirmations: int) -> AsyncIterator[Source]:
    """The chain of these nodes. Raises `SettingsError` when that is not `network` (a name), if one is given."""
    from obol.adapters.chain_evm import EvmChain
    from obol.adapters.rpc_http import JsonRpc
    from obol.core.networks import DEFAULT_CATALOGUE, Network

    rpc = JsonRpc(urls)
    try:
        chain_id = await rpc.chain_id()
        known = DEFAULT_CATALOGUE.find_network(f"eip155:{chain_id}") or Network(f"eip155:{chain_id}", chain_id)
        chain = EvmChain(rpc, known, confirmations=confirmations)
        if network not in (None, known.caip2):
            raise SettingsError("--rpc", f"is of chain {known.caip2}, --network says {network}")
        yield ChainSource(chain, known.caip2, confirmations=confirmations)
    finally:
        await rpc.close()


@contextlib.asynccontextmanager
async def devnet_source(data_dir: Path | None) -> AsyncIterator[Source]:
    """The devnet of a data folder. Raises `SettingsError` naming `--data-dir` when there is none."""
    import os

    from obol.adapters.chain_devnet import DevnetChain
    from obol.adapters.clock import SystemClock
    from obol.adapters.paths import default_data_dir, devnet_file
    from obol.core.networks import DEFAULT_CATALOGUE

    file = devnet_file(data_dir or default_data_dir(os.environ))
    if not file.is_file():
        raise SettingsError("--data-dir", f"there is no devnet {file}")
    chain = await DevnetChain.open(file, SystemClock(), networks=DEFAULT_CATALOGUE.networks)
    try:
        yield DevnetSource(chain, SystemClock())
    finally:
        await chain.close()
