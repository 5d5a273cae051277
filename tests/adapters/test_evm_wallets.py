"""Wallets that are deployed by their first payment, on a real chain; and the reading of their signatures."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from eth_abi.abi import encode
from hypothesis import given
from hypothesis import strategies as st

from obol.adapters.chain_evm import EvmChain
from obol.adapters.clock import SystemClock
from obol.adapters.evm_batching import deploy_batcher
from obol.adapters.evm_sender import Sender
from obol.adapters.evm_signing import LocalTransactionSigner
from obol.adapters.evm_wallets import Undeployed, unwrap
from obol.adapters.facilitator_evm import EvmFacilitator, Served
from obol.adapters.logs import make_logger
from obol.adapters.rpc_http import JsonRpc
from obol.core.networks import BASE_SEPOLIA
from obol.x402.facilitator import Accepted, Refused, SettleOutcome
from obol.x402.models import ExactPayload, PaymentPayload
from obol.x402.reasons import Reason
from tests.adapters.payments import PRICE_ATOMIC, SELLER, account, pay, requirements
from tests.evm.anvil import USDC, Anvil
from tests.evm.contracts import ERC6492_END, deploy_factory, undeployed_signature, wallet_address, wallet_creation
from tests.evm.facilitating import GAS_KEY, QUICK

OWNER = account(1)
WANTED = requirements()
BYTES = st.binary(max_size=100)


@given(st.binary(min_size=20, max_size=20), BYTES, st.binary(min_size=1, max_size=100))
def test_what_was_wrapped_comes_out(factory: bytes, data: bytes, signature: bytes) -> None:
    wrapped = encode(["address", "bytes", "bytes"], [factory, data, signature]) + ERC6492_END
    assert unwrap(wrapped) == Undeployed("0x" + factory.hex(), data, signature)


@given(st.binary(max_size=300))
def test_what_is_not_wrapped_is_an_ordinary_signature(content: bytes) -> None:
    assert unwrap(content.removesuffix(ERC6492_END)) is None


@given(st.binary(max_size=300))
def test_a_wrapping_of_nonsense_is_read_or_not_but_never_beyond_its_end(content: bytes) -> None:
    read = unwrap(content + ERC6492_END)
    assert read is None or (read.data in content and read.signature in content)


class TestOnAChain:
    @pytest.fixture
    async def factory(self, anvil: Anvil) -> str:
        await anvil.fund_native(LocalTransactionSigner(GAS_KEY).address)
        return await deploy_factory(anvil)

    @pytest.fixture
    async def wallet(self, anvil: Anvil, factory: str) -> str:
        """Where the owner's wallet will be; it has money already."""
        address = wallet_address(factory, OWNER.address)
        await anvil.mint(address, 5 * PRICE_ATOMIC)
        return address

    @pytest.fixture
    async def facilitator(self, anvil: Anvil, factory: str, tmp_path: Path) -> AsyncIterator[EvmFacilitator]:
        chain = EvmChain(JsonRpc([anvil.url]), BASE_SEPOLIA)
        log, clock = make_logger(as_json=True), SystemClock()
        signer = LocalTransactionSigner(GAS_KEY)
        sender = await Sender.open(chain, signer, tmp_path / "journal.sqlite3", clock, log, limits=QUICK)
        await deploy_batcher(chain, sender, log)
        served = Served(chain, sender, (USDC,), frozenset({factory.lower()}))
        facilitator = EvmFacilitator([served], clock, settle_wait_s=5.0)
        yield facilitator
        await facilitator.close()

    def paid(self, wallet: str, factory: str, signer: int = 1) -> PaymentPayload:
        plain = pay(WANTED, account(signer), from_=wallet)
        signature = undeployed_signature(factory, OWNER.address, bytes.fromhex(plain.payload.signature[2:]))
        return PaymentPayload(WANTED, ExactPayload("0x" + signature.hex(), plain.payload.authorization))

    async def test_the_first_payment_deploys_the_wallet(
        self, facilitator: EvmFacilitator, wallet: str, factory: str, anvil: Anvil
    ) -> None:
        paid = self.paid(wallet, factory)
        assert await facilitator.verify(paid, WANTED) == Accepted(wallet.lower())
        first = await facilitator.settle(paid, WANTED)
        assert first.outcome is SettleOutcome.SETTLED
        assert await facilitator.settle(paid, WANTED) == first
        assert await anvil.rpc("eth_getCode", wallet, "latest") != "0x"
        (moved,) = await anvil.transfers(SELLER)
        assert (moved.payer, moved.log_index) == (wallet.lower(), first.log_index)

    async def test_the_next_one_is_an_ordinary_payment(
        self, facilitator: EvmFacilitator, wallet: str, factory: str, anvil: Anvil
    ) -> None:
        for _ in range(2):
            assert (await facilitator.settle(self.paid(wallet, factory), WANTED)).outcome is SettleOutcome.SETTLED
        plain = pay(WANTED, OWNER, from_=wallet)
        assert (await facilitator.settle(plain, WANTED)).outcome is SettleOutcome.SETTLED
        assert await anvil.balance(SELLER) == 3 * PRICE_ATOMIC

    async def test_another_factory_is_not_called(
        self, facilitator: EvmFacilitator, wallet: str, factory: str, anvil: Anvil
    ) -> None:
        other = await deploy_factory(anvil)
        refused = await facilitator.verify(self.paid(wallet, other), WANTED)
        assert isinstance(refused, Refused)
        assert refused.reason == Reason.FACTORY_NOT_ALLOWED

    async def test_anothers_signature_moves_nothing_and_deploys_nothing(
        self, facilitator: EvmFacilitator, wallet: str, factory: str, anvil: Anvil
    ) -> None:
        refused = await facilitator.verify(self.paid(wallet, factory, signer=2), WANTED)
        assert isinstance(refused, Refused)
        assert refused.reason == Reason.SIMULATION_FAILED
        assert await anvil.rpc("eth_getCode", wallet, "latest") == "0x"

    async def test_a_factory_that_deploys_nothing_is_refused(
        self, facilitator: EvmFacilitator, wallet: str, factory: str
    ) -> None:
        plain = pay(WANTED, OWNER, from_=wallet)
        inner = bytes.fromhex(plain.payload.signature[2:])
        wrapped = encode(["address", "bytes", "bytes"], [factory, b"\x01\x02\x03\x04", inner]) + ERC6492_END
        paid = PaymentPayload(WANTED, ExactPayload("0x" + wrapped.hex(), plain.payload.authorization))
        refused = await facilitator.verify(paid, WANTED)
        assert isinstance(refused, Refused)
        assert refused.reason == Reason.DEPLOYMENT_FAILED
        assert wallet_creation(OWNER.address)[:4] != b"\x01\x02\x03\x04"
