"""Our facilitator on a real chain: the contract of every facilitator, and what only a chain can do to one."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from eth_abi.abi import encode

from obol.adapters.evm_sender import SendingLimits
from obol.adapters.facilitator_evm import EvmFacilitator
from obol.errors import FacilitatorUnavailableError
from obol.x402.facilitator import Accepted, Facilitator, Refused, SettleOutcome
from obol.x402.reasons import Reason
from tests.adapters.facilitator_contract import BUYER, FacilitatorContract
from tests.adapters.payments import PRICE_ATOMIC, SELLER, account, pay, requirements
from tests.evm.anvil import USDC, Anvil, compiled
from tests.evm.authorizing import receive_call, transfer_call
from tests.evm.facilitating import GAS_KEY, AnvilLedger, evm_facilitator
from tests.fakes.clock import FakeClock
from tests.fakes.rpc import Drops, FakeRpc, Says, Stalls

GAS_ACCOUNT = account(int.from_bytes(GAS_KEY, "big")).address
WANTED = requirements()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def anvil(clock: FakeClock) -> AsyncIterator[Anvil]:
    async with Anvil("--timestamp", str(int(clock.now_s()))) as anvil:
        await anvil.fund_native(GAS_ACCOUNT)
        yield anvil


@pytest.fixture
def chain(anvil: Anvil) -> AnvilLedger:
    return AnvilLedger(anvil, BUYER)


@pytest.fixture
async def fake(anvil: Anvil) -> AsyncIterator[FakeRpc]:
    async with FakeRpc(anvil.url) as fake:
        yield fake


@pytest.fixture
async def facilitator(fake: FakeRpc, tmp_path: Path, clock: FakeClock) -> AsyncIterator[EvmFacilitator]:
    async with evm_facilitator(fake.url, tmp_path, clock) as facilitator:
        yield facilitator


class TestEvmFacilitator(FacilitatorContract):
    """On anvil."""


class TestSettling:
    @pytest.fixture(autouse=True)
    async def funds(self, anvil: Anvil) -> None:
        await anvil.mint(BUYER.address, 5 * PRICE_ATOMIC)

    async def test_a_settlement_names_its_transfer(self, facilitator: Facilitator, anvil: Anvil) -> None:
        settlement = await facilitator.settle(pay(WANTED), WANTED)
        (moved,) = await anvil.transfers(SELLER)
        assert (settlement.transaction, settlement.log_index) == (moved.transaction, moved.log_index)

    async def test_what_somebody_else_settled_is_settled(self, facilitator: Facilitator, anvil: Anvil) -> None:
        paid = pay(WANTED)
        receipt = await anvil.send(USDC.address, transfer_call(paid))
        settlement = await facilitator.settle(paid, WANTED)
        assert (settlement.outcome, settlement.transaction) == (SettleOutcome.SETTLED, receipt["transactionHash"])
        assert await anvil.balance(SELLER) == PRICE_ATOMIC

    async def test_a_nonce_that_paid_somebody_else_is_a_no(self, facilitator: Facilitator, anvil: Anvil) -> None:
        paid, other = pay(WANTED), account(7)
        await anvil.send(USDC.address, receive_call(BUYER, paid, other.address), sender=other.address)
        settlement = await facilitator.settle(paid, WANTED)
        assert (settlement.outcome, settlement.reason) == (SettleOutcome.FAILED, Reason.AUTHORIZATION_USED)

    async def test_a_race_that_we_lose_is_settled_all_the_same(
        self, facilitator: Facilitator, anvil: Anvil, fake: FakeRpc
    ) -> None:
        """The buyer's own transaction gets into the block before ours, which then reverts."""
        paid = pay(WANTED)
        await anvil.automine(False)
        async with asyncio.TaskGroup() as tasks:
            settling = tasks.create_task(facilitator.settle(paid, WANTED))
            await fake.asked_for("eth_sendRawTransaction")
            rich = {"maxFeePerGas": hex(10**12), "maxPriorityFeePerGas": hex(10**11)}
            await anvil.rpc("anvil_impersonateAccount", BUYER.address)
            await anvil.fund_native(BUYER.address)
            data = "0x" + transfer_call(paid).hex()
            call = {"from": BUYER.address, "to": USDC.address, "data": data, "gas": hex(300_000)}
            await anvil.rpc("eth_sendTransaction", call | rich)
            await anvil.mine()
        (moved,) = await anvil.transfers(SELLER)
        assert (settling.result().outcome, settling.result().transaction) == (SettleOutcome.SETTLED, moved.transaction)

    async def test_what_is_not_mined_in_time_is_pending_and_found_later(
        self, fake: FakeRpc, anvil: Anvil, tmp_path: Path, clock: FakeClock
    ) -> None:
        paid = pay(WANTED)
        await anvil.automine(False)
        async with evm_facilitator(fake.url, tmp_path, clock, settle_wait_s=0.1) as facilitator:
            pending = await facilitator.settle(paid, WANTED)
        assert (pending.outcome, pending.reason) == (SettleOutcome.PENDING, Reason.SETTLEMENT_PENDING)
        assert pending.transaction
        await anvil.mine()
        async with evm_facilitator(fake.url, tmp_path, clock) as facilitator:
            settled = await facilitator.settle(paid, WANTED)
        assert (settled.outcome, settled.transaction) == (SettleOutcome.SETTLED, pending.transaction)
        assert await anvil.balance(SELLER) == PRICE_ATOMIC

    async def test_a_lost_answer_to_the_broadcast_settles_once(
        self, facilitator: Facilitator, anvil: Anvil, fake: FakeRpc
    ) -> None:
        paid = pay(WANTED)
        fake.behaviours = {"eth_sendRawTransaction": Drops(after=True)}
        assert (await facilitator.settle(paid, WANTED)).outcome is SettleOutcome.SETTLED
        fake.behaviours = {}
        assert (await facilitator.settle(paid, WANTED)).outcome is SettleOutcome.SETTLED
        assert len(await anvil.transfers(SELLER)) == 1

    async def test_a_reorganisation_is_repaired_when_asked_again(
        self, facilitator: Facilitator, anvil: Anvil, fake: FakeRpc
    ) -> None:
        paid = pay(WANTED)
        before = await anvil.snapshot()
        first = await facilitator.settle(paid, WANTED)
        assert first.outcome is SettleOutcome.SETTLED
        await anvil.revert(before)
        assert await anvil.balance(SELLER) == 0
        assert (await facilitator.settle(paid, WANTED)).outcome is SettleOutcome.SETTLED
        assert await anvil.balance(SELLER) == PRICE_ATOMIC

    async def test_whoever_asks_may_leave_and_it_is_settled(self, facilitator: Facilitator, anvil: Anvil) -> None:
        paid = pay(WANTED)
        await anvil.automine(False)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await facilitator.settle(paid, WANTED)
        await anvil.automine(True)
        await anvil.mine()
        assert (await facilitator.settle(paid, WANTED)).outcome is SettleOutcome.SETTLED

    @pytest.mark.parametrize("behaviour", [Drops(), Stalls()])
    async def test_without_a_chain_nobody_knows(
        self, facilitator: Facilitator, fake: FakeRpc, anvil: Anvil, behaviour: Drops | Stalls
    ) -> None:
        paid = pay(WANTED)
        fake.behaviours = {"*": behaviour}
        with pytest.raises(FacilitatorUnavailableError):
            await facilitator.verify(paid, WANTED)
        assert (await facilitator.settle(paid, WANTED)).outcome is SettleOutcome.UNKNOWN
        fake.behaviours = {}
        assert (await facilitator.settle(paid, WANTED)).outcome is SettleOutcome.SETTLED

    async def test_a_receipt_without_our_transfer_is_not_believed(
        self, facilitator: Facilitator, fake: FakeRpc, anvil: Anvil
    ) -> None:
        """A node that invents a success: the chain, asked again, does not show it."""
        await anvil.automine(False)
        fake.behaviours = {
            "eth_getTransactionReceipt": Says(
                lambda _: {
                    "transactionHash": "0x" + "11" * 32,
                    "status": "0x1",
                    "blockNumber": "0x1",
                    "blockHash": "0x" + "22" * 32,
                    "logs": [],
                    "gasUsed": "0x1",
                }
            )
        }
        assert (await facilitator.settle(pay(WANTED), WANTED)).outcome is not SettleOutcome.SETTLED

    async def test_a_payer_whose_settlements_revert_is_served_no_more(
        self, facilitator: EvmFacilitator, anvil: Anvil, fake: FakeRpc
    ) -> None:
        """Verified, then emptied before the block: three times, and no more gas is burnt for this payer."""
        fake.behaviours = {"eth_call": Says(lambda result: result or "0x")}  # the money was there when it was simulated
        poor = account(9)
        for _ in range(3):
            settlement = await facilitator.settle(pay(WANTED, poor), WANTED)
            assert (settlement.outcome, settlement.reason) == (SettleOutcome.FAILED, Reason.TRANSACTION_FAILED)
            assert settlement.transaction
        sent = fake.asked["eth_sendRawTransaction"]
        refused = await facilitator.settle(pay(WANTED, poor), WANTED)
        assert (refused.outcome, refused.reason) == (SettleOutcome.FAILED, Reason.FAILURE_BUDGET)
        assert fake.asked["eth_sendRawTransaction"] == sent
        verified = await facilitator.verify(pay(WANTED, poor), WANTED)
        assert isinstance(verified, Refused)
        assert verified.reason == Reason.FAILURE_BUDGET
        fake.behaviours = {}
        assert isinstance(await facilitator.verify(pay(WANTED), WANTED), Accepted)  # others are

    async def test_gas_above_the_cap_is_not_paid(self, fake: FakeRpc, tmp_path: Path, clock: FakeClock) -> None:
        async with evm_facilitator(fake.url, tmp_path, clock, limits=SendingLimits(max_fee_wei=1)) as facilitator:
            with pytest.raises(FacilitatorUnavailableError, match="cap"):
                await facilitator.verify(pay(WANTED), WANTED)
            assert (await facilitator.settle(pay(WANTED), WANTED)).outcome is SettleOutcome.UNKNOWN
        assert not fake.asked["eth_sendRawTransaction"]

    async def test_requirements_that_wait_too_long_are_refused(self, facilitator: Facilitator) -> None:
        patient = requirements(max_timeout_seconds=86_401)
        refused = await facilitator.verify(pay(patient), patient)
        assert isinstance(refused, Refused)
        assert refused.reason == Reason.INVALID_REQUIREMENTS

    async def test_a_payment_takes_few_round_trips(self, facilitator: EvmFacilitator, fake: FakeRpc) -> None:
        """The official stack takes ten."""
        await facilitator.settle(pay(WANTED), WANTED)
        fake.asked.clear()
        paid = pay(WANTED)
        await facilitator.verify(paid, WANTED)
        await facilitator.settle(paid, WANTED)
        fake.asked.pop("eth_blockNumber")  # one for all that wait, at every look
        assert dict(fake.asked) == {"eth_call": 2, "eth_sendRawTransaction": 1, "eth_getTransactionReceipt": 1}


class TestContractWallets:
    """EIP-1271: a wallet that is a contract says itself what it signed."""

    @pytest.fixture
    async def wallet(self, anvil: Anvil) -> str:
        creation = bytes.fromhex(compiled("Wallet1271")["creation"][2:]) + encode(["address"], [BUYER.address])
        call = {"from": GAS_ACCOUNT, "data": "0x" + creation.hex(), "gas": "0xf4240"}
        await anvil.rpc("anvil_impersonateAccount", GAS_ACCOUNT)
        receipt = await anvil.mined(await anvil.rpc("eth_sendTransaction", call))
        await anvil.rpc("anvil_stopImpersonatingAccount", GAS_ACCOUNT)
        address: str = receipt["contractAddress"]
        await anvil.mint(address, PRICE_ATOMIC)
        return address

    async def test_what_its_owner_signed_is_verified_and_settled(
        self, wallet: str, anvil: Anvil, fake: FakeRpc, tmp_path: Path, clock: FakeClock
    ) -> None:
        paid = pay(WANTED, BUYER, from_=wallet)
        async with evm_facilitator(fake.url, tmp_path, clock) as facilitator:
            assert await facilitator.verify(paid, WANTED) == Accepted(wallet.lower())
            assert (await facilitator.settle(paid, WANTED)).outcome is SettleOutcome.SETTLED
        assert await anvil.balance(SELLER) == PRICE_ATOMIC

    async def test_what_another_signed_is_refused(
        self, wallet: str, fake: FakeRpc, tmp_path: Path, clock: FakeClock
    ) -> None:
        paid = pay(WANTED, account(2), from_=wallet)
        async with evm_facilitator(fake.url, tmp_path, clock) as facilitator:
            refused = await facilitator.verify(paid, WANTED)
            assert isinstance(refused, Refused)
            assert refused.reason == Reason.SIGNATURE
            assert (await facilitator.settle(paid, WANTED)).outcome is SettleOutcome.FAILED


async def test_one_nonce_signed_for_two_sellers_is_settled_for_one(facilitator: Facilitator, anvil: Anvil) -> None:
    await anvil.mint(BUYER.address, 5 * PRICE_ATOMIC)
    nonce, elsewhere = "0x" + "44" * 32, requirements(pay_to=account(8).address)
    both = [(pay(WANTED, nonce=nonce), WANTED), (pay(elsewhere, nonce=nonce), elsewhere)]
    settlements = await asyncio.gather(*(facilitator.settle(paid, wanted) for paid, wanted in both))
    assert sorted(one.outcome for one in settlements) == [SettleOutcome.FAILED, SettleOutcome.SETTLED]
    assert await anvil.balance(SELLER) + await anvil.balance(account(8).address) == PRICE_ATOMIC
