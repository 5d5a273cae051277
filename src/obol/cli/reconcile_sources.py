"""Where the transfers of a reconciliation come from: the nodes of a chain, or the devnet's file."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from obol.core.reconciliation import CLOCK_SKEW_S
from obol.core.reconciliation_report import TransferKey
from obol.core.transfer import Transfer
from obol.errors import SettingsError

if TYPE_CHECKING:
    from obol.adapters.chain_devnet import DevnetChain
    from obol.adapters.chain_evm import Log
    from obol.core.clock import Clock
    from obol.x402.models import PaymentPayload, PaymentRequirements
    from obol.x402.witness import Witness

_QUESTIONS_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Reading:
    """What was transferred; whatever was recorded from `until_s` on may be missing. Unix seconds."""

    transfers: Sequence[Transfer]
    until_s: float


class Source(Protocol):
    """One place to read from. `network` in CAIP-2, or None for every network."""

    network: str | None

    async def read(self, network: str, asset: str, pay_tos: Collection[str], since_s: float | None) -> Reading:
        """The transfers of a token to any of these addresses since then, with room for clocks that differ.

        Raises `SettingsError` naming `--since` where it must be said, and is None.
        """
        ...

    async def dated(self, transfers: Sequence[Transfer]) -> list[Transfer]:
        """The same with the times of their blocks."""
        ...

    async def transfer_of(self, payload: "PaymentPayload", requirements: "PaymentRequirements") -> TransferKey | None:
        """Which transfer a payment has surely made, of exactly its amount to its seller; None where none is proven."""
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

    async def logs(
        self, address: str, topics: Sequence[str | Sequence[str] | None], from_block: int, to_block: int
    ) -> "list[Log]": ...


class ChainSource:
    """Reads blocks that have `confirmations`, 1 being the newest block's."""

    def __init__(self, chain: ChainView, network: str, *, confirmations: int, witness: "Witness | None" = None) -> None:
        """`witness` has the same confirmations; without one no payment is proven."""
        self.network: str | None = network
        self._chain = chain
        self._confirmations = confirmations
        self._witness = witness

    async def read(self, network: str, asset: str, pay_tos: Collection[str], since_s: float | None) -> Reading:  # noqa: ARG002
        """See the port: every transfer with the authorization that made it."""
        from obol.adapters.evm_authorizations import with_authorizations

        if since_s is None:
            raise SettingsError("--since", "no sale says from when on the chain is to be read: name a time")
        newest = await self._chain.block("latest")
        last = await self._chain.block(max(0, newest.number - self._confirmations + 1))
        first = await first_block_at(self._chain, since_s - CLOCK_SKEW_S, last.number)
        transfers: list[Transfer] = []
        for pay_to in sorted(pay_tos):
            transfers += await self._chain.transfers(asset, pay_to, first, last.number)
        made = await with_authorizations(self._chain, asset, transfers)
        return Reading(made, last.timestamp_s - CLOCK_SKEW_S)

    async def dated(self, transfers: Sequence[Transfer]) -> list[Transfer]:
        """See the port."""
        blocks = sorted({one.block for one in transfers})
        times: dict[int, int] = {}
        for start in range(0, len(blocks), _QUESTIONS_AT_ONCE):
            piece = blocks[start : start + _QUESTIONS_AT_ONCE]
            found = await asyncio.gather(*map(self._chain.block, piece))
            times |= {number: block.timestamp_s for number, block in zip(piece, found, strict=True)}
        return [replace(one, time_s=times[one.block]) for one in transfers]

    async def transfer_of(self, payload: "PaymentPayload", requirements: "PaymentRequirements") -> TransferKey | None:
        """See the port: as the witness at a gateway sees it. Raises `ChainUnavailableError`."""
        from obol.x402.witness import Moved

        if self._witness is None:
            return None
        fate = await self._witness.fate(payload, requirements)
        return (fate.transaction.lower(), fate.log_index) if isinstance(fate, Moved) else None


class DevnetSource:
    """Reads the devnet: final at once, and complete."""

    def __init__(self, chain: "DevnetChain", clock: "Clock") -> None:
        self.network: str | None = None
        self._chain = chain
        self._clock = clock

    async def read(self, network: str, asset: str, pay_tos: Collection[str], since_s: float | None) -> Reading:
        """See the port."""
        token = self._chain.asset(network, asset)
        if token is None:
            raise SettingsError("--asset", f"the devnet has no token {asset} on {network}")
        until_s = self._clock.now_s()
        moved = [one for pay_to in sorted(pay_tos) for one in await self._chain.transfers(token, payee=pay_to)]
        transfers = [
            Transfer(one.transaction, 0, 0, one.payer, one.payee, one.amount_atomic, one.nonce, one.at_s)
            for one in moved
            if since_s is None or one.at_s >= since_s - CLOCK_SKEW_S
        ]
        return Reading(transfers, until_s)

    async def dated(self, transfers: Sequence[Transfer]) -> list[Transfer]:
        """See the port: they are."""
        return list(transfers)

    async def transfer_of(self, payload: "PaymentPayload", requirements: "PaymentRequirements") -> TransferKey | None:  # noqa: ARG002
        """See the port: every payment on the devnet is known by its nonce."""
        return None


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
    from obol.adapters.witness_evm import EvmWitness
    from obol.core.networks import DEFAULT_CATALOGUE, Network

    rpc = JsonRpc(urls)
    try:
        chain_id = await rpc.chain_id()
        known = DEFAULT_CATALOGUE.find_network(f"eip155:{chain_id}") or Network(f"eip155:{chain_id}", chain_id)
        chain = EvmChain(rpc, known, confirmations=confirmations)
        if network not in (None, known.caip2):
            raise SettingsError("--rpc", f"is of chain {known.caip2}, --network says {network}")
        yield ChainSource(chain, known.caip2, confirmations=confirmations, witness=EvmWitness(chain))
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
