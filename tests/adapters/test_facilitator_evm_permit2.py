"""OBOL by Permit2 on a real chain: settled by our facilitator, and what the chain says became of it."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from obol.adapters.chain_evm import EvmChain
from obol.adapters.clock import SystemClock
from obol.adapters.evm_sender import Sender
from obol.adapters.evm_signing import LocalTransactionSigner
from obol.adapters.facilitator_evm import EvmFacilitator, Served
from obol.adapters.logs import make_logger
from obol.adapters.rpc_http import JsonRpc
from obol.adapters.signer_local import LocalSigner
from obol.adapters.witness_evm import EvmWitness
from obol.core.networks import BASE_SEPOLIA
from obol.x402.authorization import parse_authorization
from obol.x402.client import sign_exact
from obol.x402.facilitator import Accepted, Refused, SettleOutcome
from obol.x402.gas_sponsoring import GAS_SPONSORING, sign_token_permit, write_token_permit
from obol.x402.models import PaymentPayload
from obol.x402.permit2 import PERMIT2_ADDRESS
from obol.x402.reasons import Reason
from obol.x402.witness import CANCELLED, EXPIRED, Moved, NeverMoves, StillOpen
from tests.adapters.payments import SELLER, requirements
from tests.evm.anvil import USDC, Anvil
from tests.evm.contracts import OBOL, allow_permit2, call, place_obol, place_permit2
from tests.evm.facilitating import GAS_KEY, QUICK
from tests.fakes.rpc import FakeRpc

PRICE_ATOMIC = 10**18
BUYER = LocalSigner(bytes([1] * 32))
WANTED = requirements(PRICE_ATOMIC, OBOL, extra={"assetTransferMethod": "permit2"})


@pytest.fixture
async def fake(anvil: Anvil) -> AsyncIterator[FakeRpc]:
    await place_permit2(anvil)
    await place_obol(anvil)
    await anvil.fund_native(LocalTransactionSigner(GAS_KEY).address)
    await anvil.mint(BUYER.address, 5 * PRICE_ATOMIC, OBOL.address)
    async with FakeRpc(anvil.url) as fake:
        yield fake


@pytest.fixture
async def allowed(anvil: Anvil, fake: FakeRpc) -> None:
    await allow_permit2(anvil, BUYER.address)


@pytest.fixture
async def facilitator(fake: FakeRpc, tmp_path: Path) -> AsyncIterator[EvmFacilitator]:
    chain = EvmChain(JsonRpc([fake.url]), BASE_SEPOLIA)
    log, signer, clock = make_logger(as_json=True), LocalTransactionSigner(GAS_KEY), SystemClock()
    sender = await Sender.open(chain, signer, tmp_path / "journal.sqlite3", clock, log, limits=QUICK)
    facilitator = EvmFacilitator([Served(chain, sender, (USDC, OBOL))], clock, settle_wait_s=5.0)
    yield facilitator
    await facilitator.close()


@pytest.fixture
async def witness(fake: FakeRpc) -> AsyncIterator[EvmWitness]:
    witness = EvmWitness(EvmChain(JsonRpc([fake.url]), BASE_SEPOLIA))
    yield witness
    await witness.close()


def pay(*, now_s: float | None = None, signer: LocalSigner = BUYER, nonce: bytes | None = None) -> PaymentPayload:
    now_s = SystemClock().now_s() if now_s is None else now_s
    return sign_exact(signer, WANTED, OBOL, now_s=now_s, nonce=nonce or secrets.token_bytes(32), version=2)


def sponsored(paid: PaymentPayload, nonce: int = 0) -> PaymentPayload:
    """The same, with a permit for Permit2 instead of an allowance."""
    permit = sign_token_permit(BUYER, OBOL, parse_authorization(paid.payload), nonce=nonce)
    return msgspec.structs.replace(paid, extensions=write_token_permit(permit))


@pytest.mark.usefixtures("allowed")
class TestAllowed:
    """The payer has allowed Permit2 once."""

    async def test_a_payment_is_verified_and_settled_once(self, facilitator: EvmFacilitator, anvil: Anvil) -> None:
        paid = pay()
        assert await facilitator.verify(paid, WANTED) == Accepted(BUYER.address.lower())
        settlements = await asyncio.gather(*(facilitator.settle(paid, WANTED) for _ in range(3)))
        assert {one.outcome for one in settlements} == {SettleOutcome.SETTLED}
        (moved,) = await anvil.transfers(SELLER, OBOL.address)
        assert (moved.amount_atomic, moved.payer) == (PRICE_ATOMIC, BUYER.address.lower())
        assert {(one.transaction, one.log_index) for one in settlements} == {(moved.transaction, moved.log_index)}

    async def test_a_used_payment_does_not_verify(self, facilitator: EvmFacilitator) -> None:
        paid = pay()
        await facilitator.settle(paid, WANTED)
        refused = await facilitator.verify(paid, WANTED)
        assert isinstance(refused, Refused)
        assert refused.reason == Reason.PERMIT2_NONCE_USED

    async def test_an_empty_wallet_is_refused_as_that(self, facilitator: EvmFacilitator, anvil: Anvil) -> None:
        await anvil.send(
            OBOL.address, call("transfer(address,uint256)", PERMIT2_ADDRESS, 5 * PRICE_ATOMIC), sender=BUYER.address
        )
        refused = await facilitator.verify(pay(), WANTED)
        assert isinstance(refused, Refused)
        assert refused.reason == Reason.INSUFFICIENT_BALANCE

    async def test_what_another_signed_is_refused(self, facilitator: EvmFacilitator) -> None:
        theirs = pay(signer=LocalSigner(bytes([2] * 32)))
        forged = msgspec.structs.replace(theirs.payload, signature=pay().payload.signature)
        refused = await facilitator.verify(msgspec.structs.replace(theirs, payload=forged), WANTED)
        assert isinstance(refused, Refused)
        assert refused.reason == Reason.PERMIT2_SIGNATURE

    async def test_what_was_settled_is_found_whoever_sent_it(
        self, facilitator: EvmFacilitator, witness: EvmWitness, anvil: Anvil
    ) -> None:
        paid, other = pay(), pay()
        assert await witness.fate(paid, WANTED) == StillOpen()
        settlement = await facilitator.settle(paid, WANTED)
        await facilitator.settle(other, WANTED)
        assert await witness.fate(paid, WANTED) == Moved(settlement.transaction, settlement.log_index or 0)
        assert await witness.fate(other, WANTED) != await witness.fate(paid, WANTED)

    async def test_what_was_not_settled_in_its_window_never_moves(self, witness: EvmWitness, anvil: Anvil) -> None:
        paid = pay()
        await anvil.pass_time(3600)
        assert await witness.fate(paid, WANTED) == NeverMoves(EXPIRED)

    async def test_a_nonce_that_the_payer_invalidated_never_moves(
        self, witness: EvmWitness, facilitator: EvmFacilitator, anvil: Anvil
    ) -> None:
        paid = pay(nonce=(7 << 8 | 3).to_bytes(32, "big"))
        data = call("invalidateUnorderedNonces(uint256,uint256)", 7, 1 << 3)
        await anvil.send(PERMIT2_ADDRESS, data, sender=BUYER.address)
        assert await witness.fate(paid, WANTED) == NeverMoves(CANCELLED)
        settlement = await facilitator.settle(paid, WANTED)
        assert (settlement.outcome, settlement.reason) == (SettleOutcome.FAILED, Reason.PERMIT2_NONCE_USED)

    async def test_a_transfer_of_the_same_amount_is_not_this_payment(self, witness: EvmWitness, anvil: Anvil) -> None:
        paid = pay()
        await anvil.send(OBOL.address, call("transfer(address,uint256)", SELLER, PRICE_ATOMIC), sender=BUYER.address)
        assert await witness.fate(paid, WANTED) == StillOpen()


class TestNotAllowed:
    """The payer has not."""

    async def test_it_is_told_what_to_allow(self, facilitator: EvmFacilitator) -> None:
        refused = await facilitator.verify(pay(), WANTED)
        assert isinstance(refused, Refused)
        assert refused.reason == Reason.PERMIT2_ALLOWANCE_REQUIRED
        assert PERMIT2_ADDRESS in refused.message

    async def test_a_permit_takes_the_place_of_the_allowance(self, facilitator: EvmFacilitator, anvil: Anvil) -> None:
        paid = sponsored(pay())
        assert isinstance(await facilitator.verify(paid, WANTED), Accepted)
        assert (await facilitator.settle(paid, WANTED)).outcome is SettleOutcome.SETTLED
        assert await anvil.balance(SELLER, OBOL.address) == PRICE_ATOMIC
        assert await anvil.balance(BUYER.address, OBOL.address) == 4 * PRICE_ATOMIC

    async def test_a_permit_of_another_turn_is_none(self, facilitator: EvmFacilitator) -> None:
        refused = await facilitator.verify(sponsored(pay(), nonce=5), WANTED)
        assert isinstance(refused, Refused)
        assert refused.reason == Reason.PERMIT2_ALLOWANCE_REQUIRED

    async def test_gas_sponsoring_is_advertised(self, facilitator: EvmFacilitator) -> None:
        assert (await facilitator.supported()).extensions == [GAS_SPONSORING]
