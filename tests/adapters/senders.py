"""A key that sends to a real chain through an RPC that may be hostile."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from eth_account.typed_transactions.typed_transaction import TypedTransaction
from hexbytes import HexBytes

from obol.adapters.chain_evm import EvmChain
from obol.adapters.clock import SystemClock
from obol.adapters.evm_abi import call_data
from obol.adapters.evm_calls import Call
from obol.adapters.evm_journal import EvmJournal, JournalCall
from obol.adapters.evm_sender import Sender, SendingLimits
from obol.adapters.evm_signing import LocalTransactionSigner, Signed, TransactionFields
from obol.adapters.logs import make_logger
from obol.adapters.rpc_http import JsonRpc
from obol.core.networks import BASE_SEPOLIA
from obol.errors import ChainUnavailableError
from tests.adapters.payments import SELLER
from tests.evm.anvil import USDC, Anvil
from tests.fakes.rpc import Behaviour, Drops, Errors, FakeRpc

KEY = bytes([5] * 32)
ADDRESS = LocalTransactionSigner(KEY).address
QUICK = SendingLimits(rebroadcast_s=0.2)


class Gate(LocalTransactionSigner):
    """Signs when it is `open`, and not the calls whose number (from 1) is in `away`."""

    def __init__(self, key: bytes = KEY) -> None:
        super().__init__(key)
        self.open = asyncio.Event()
        self.open.set()
        self.asked = 0
        self.away: set[int] = set()

    async def sign(self, fields: TransactionFields) -> Signed:
        self.asked += 1
        if self.asked in self.away:
            raise ChainUnavailableError("the signer is away")
        await self.open.wait()
        return await super().sign(fields)


class Senders:
    """Opens senders of one key, one after the other, on one journal; closed at the end of `senders`."""

    def __init__(self, fake: FakeRpc, journal: Path) -> None:
        self._fake = fake
        self._journal = journal
        self._opened: list[Sender] = []
        self._chains: list[EvmChain] = []

    async def open(
        self,
        limits: SendingLimits = QUICK,
        *,
        signer: LocalTransactionSigner | None = None,
        urls: Sequence[str] | None = None,
        confirmations: int = 1,
    ) -> Sender:
        rpc = JsonRpc(urls or [self._fake.url], timeout_s=0.5)
        chain = EvmChain(rpc, BASE_SEPOLIA, confirmations=confirmations)
        self._chains.append(chain)
        log = make_logger(as_json=True)
        signer = signer or LocalTransactionSigner(KEY)
        sender = await Sender.open(chain, signer, self._journal, SystemClock(), log, limits=limits)
        self._opened.append(sender)
        return sender

    async def written_down(self, key: str) -> JournalCall | None:
        """What the journal says when no sender is open."""
        journal = await EvmJournal.open(self._journal)
        call = await journal.by_key(key)
        await journal.close()
        return call

    async def close(self) -> None:
        for sender in self._opened:
            await sender.close()
        for chain in self._chains:
            await chain.close()


@asynccontextmanager
async def opening(anvil: Anvil, fake: FakeRpc, folder: Path) -> AsyncIterator[Senders]:
    """With money for gas."""
    await anvil.fund_native(ADDRESS)
    senders = Senders(fake, folder / "journal.sqlite3")
    try:
        yield senders
    finally:
        await senders.close()


def mint(amount_atomic: int) -> Call:
    """Something whose effect can be counted."""
    return Call(
        (f"mint {amount_atomic}",), USDC.address, call_data("mint(address,uint256)", SELLER, amount_atomic), 100_000
    )


def is_mint(asked: Mapping[str, Any], amount_atomic: int) -> bool:
    """Whether a broadcast is of `mint`, and not of a filler."""
    return mint(amount_atomic).data.hex() in asked["params"][0]


def nonce_of(asked: Mapping[str, Any]) -> int:
    """Of the transaction that is broadcast."""
    nonce: int = TypedTransaction.from_bytes(HexBytes(asked["params"][0])).as_dict()["nonce"]
    return nonce


async def nonces_used(anvil: Anvil) -> int:
    return int(await anvil.rpc("eth_getTransactionCount", ADDRESS, "latest"), 16)


class Refusing:
    """For `Where`: refuses the broadcasts of one mint; `first` is what becomes of the first of them."""

    def __init__(self, refusal: Errors, amount_atomic: int, *, first: Drops) -> None:
        self._refusal = refusal
        self._amount_atomic = amount_atomic
        self._first: Drops | None = first
        self.has_refused = asyncio.Event()

    def __call__(self, asked: Mapping[str, Any]) -> Behaviour | None:
        if not is_mint(asked, self._amount_atomic):
            return None
        first, self._first = self._first, None
        if first is None:
            self.has_refused.set()
        return first or self._refusal
