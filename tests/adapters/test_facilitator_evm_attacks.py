"""What strangers and payers try with a facilitator on a chain: to decide about others' payments, to hear what is not
theirs, and to have it burn gas."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from aiohttp.test_utils import TestClient, TestServer

from obol.adapters.chain_evm import EvmChain
from obol.adapters.clock import SystemClock
from obol.adapters.evm_abi import call_data
from obol.adapters.evm_batching import BatchingSender
from obol.adapters.evm_sender import Sender
from obol.adapters.evm_signing import LocalTransactionSigner
from obol.adapters.facilitator_evm import EvmFacilitator, Served
from obol.adapters.logs import make_logger
from obol.adapters.rpc_http import JsonRpc
from obol.core.networks import BASE_SEPOLIA
from obol.facilitator.app import build_app
from obol.x402.facilitator import Accepted, Refused, SettleOutcome
from obol.x402.models import ExactAuthorization, ExactPayload, FacilitatorRequest, PaymentPayload, PaymentRequirements
from obol.x402.reasons import Reason
from tests.adapters.payments import PRICE_ATOMIC, SELLER, account, pay, requirements
from tests.evm.anvil import USDC, Anvil
from tests.evm.authorizing import transfer_call
from tests.evm.facilitating import GAS_KEY, QUICK, evm_facilitator
from tests.fakes.rpc import FakeRpc, Says

BUYER = account()
WANTED = requirements()
GAS_PAYER = LocalTransactionSigner(GAS_KEY).address
JUNK = "0x" + "11" * 65
FAILURES = 3
"""That one payer may cause."""
HUNGRY_WALLET = "0x62" + f"{40_000:06x}" + "5b600190038060045750" + "631626ba7e60e01b60005260206000f3"
"""Accepts every signature, after a long loop."""


@pytest.fixture
async def fake(anvil: Anvil) -> AsyncIterator[FakeRpc]:
    await anvil.fund_native(GAS_PAYER)
    await anvil.mint(SELLER, 1)
    async with FakeRpc(anvil.url) as fake:
        yield fake


@pytest.fixture
async def facilitator(fake: FakeRpc, tmp_path: Path) -> AsyncIterator[EvmFacilitator]:
    async with evm_facilitator(fake.url, tmp_path, SystemClock()) as facilitator:
        yield facilitator


@pytest.fixture
async def batching(fake: FakeRpc, tmp_path: Path) -> AsyncIterator[EvmFacilitator]:
    chain = EvmChain(JsonRpc([fake.url]), BASE_SEPOLIA)
    log, signer, clock = make_logger(as_json=True), LocalTransactionSigner(GAS_KEY), SystemClock()
    sender = await Sender.open(chain, signer, tmp_path / "journal.sqlite3", clock, log, limits=QUICK)
    batching = await BatchingSender.open(chain, sender, log, batch_max=20, batch_wait_s=0.2)
    facilitator = EvmFacilitator([Served(chain, batching, (USDC,))], clock, settle_wait_s=1.0)
    yield facilitator
    await facilitator.close()


def signed_with(paid: PaymentPayload, signature: str) -> PaymentPayload:
    return msgspec.structs.replace(paid, payload=ExactPayload(signature, paid.payload.authorization))


def to_another(paid: PaymentPayload) -> tuple[PaymentPayload, PaymentRequirements]:
    """The same payer and nonce, another recipient and a signature of nonsense."""
    wanted = msgspec.structs.replace(WANTED, pay_to="0x" + "66" * 20)
    assert isinstance(paid.payload.authorization, ExactAuthorization)
    wire = msgspec.structs.replace(paid.payload.authorization, to=wanted.pay_to)
    return msgspec.structs.replace(paid, accepted=wanted, payload=ExactPayload(JUNK, wire)), wanted


async def send_first(anvil: Anvil, data: bytes) -> None:
    """A transaction of the payer's own that is mined before the facilitator's."""
    await anvil.rpc("anvil_impersonateAccount", BUYER.address)
    await anvil.fund_native(BUYER.address)
    fees = {"maxFeePerGas": hex(10**12), "maxPriorityFeePerGas": hex(10**11)}
    call = {"from": BUYER.address, "to": USDC.address, "data": "0x" + data.hex(), "gas": hex(300_000)}
    await anvil.rpc("eth_sendTransaction", call | fees)
    await anvil.mine()


async def reverted(anvil: Anvil) -> int:
    """Transactions that burnt gas for nothing."""
    count = 0
    for number in range(int(await anvil.rpc("eth_blockNumber"), 16) + 1):
        block = await anvil.rpc("eth_getBlockByNumber", hex(number), True)
        for sent in block["transactions"]:
            if sent["from"].lower() == GAS_PAYER.lower():
                receipt = await anvil.rpc("eth_getTransactionReceipt", sent["hash"])
                count += receipt["status"] == "0x0"
    return count


class TestOthersPayments:
    """Without the payer's signature nobody decides or hears anything."""

    async def test_a_stranger_cannot_spend_a_payers_failure_budget(
        self, facilitator: EvmFacilitator, anvil: Anvil
    ) -> None:
        await anvil.mint(BUYER.address, 10 * PRICE_ATOMIC)
        paid = pay(WANTED)
        assert (await facilitator.settle(paid, WANTED)).outcome is SettleOutcome.SETTLED
        for _ in range(FAILURES):
            assert (await facilitator.settle(*to_another(paid))).outcome is not SettleOutcome.SETTLED
        assert isinstance(await facilitator.verify(pay(WANTED), WANTED), Accepted)

    async def test_a_strangers_signature_does_not_decide_a_settlement(
        self, facilitator: EvmFacilitator, anvil: Anvil
    ) -> None:
        await anvil.mint(BUYER.address, PRICE_ATOMIC)
        paid = pay(WANTED)
        strangers, sellers = await asyncio.gather(
            facilitator.settle(signed_with(paid, JUNK), WANTED), facilitator.settle(paid, WANTED)
        )
        assert strangers.outcome is not SettleOutcome.SETTLED
        assert sellers.outcome is SettleOutcome.SETTLED

    async def test_an_observer_does_not_take_the_sellers_answer(
        self, fake: FakeRpc, anvil: Anvil, tmp_path: Path
    ) -> None:
        """The seller is told `settlement_pending` first; who saw the transaction meanwhile asks too."""
        await anvil.mint(BUYER.address, PRICE_ATOMIC)
        await anvil.automine(False)
        paid, seller = pay(WANTED), {"Idempotency-Key": "the seller's"}
        async with evm_facilitator(fake.url, tmp_path, SystemClock(), settle_wait_s=0.1) as facilitator:
            app = build_app(facilitator, new_request_id=lambda: "x", log=make_logger(as_json=True))
            async with TestClient(TestServer(app)) as client:
                body, junk = (
                    msgspec.json.encode(FacilitatorRequest(one, WANTED)) for one in (paid, signed_with(paid, JUNK))
                )
                assert (await (await client.post("/settle", data=body, headers=seller)).json())["success"] is False
                await anvil.mine()
                for stolen in (body, junk):
                    answer = await (await client.post("/settle", data=stolen)).json()
                    assert not answer.get("success")
                answer = {"success": False}
                async with asyncio.timeout(5):
                    while not answer["success"]:
                        answer = await (await client.post("/settle", data=body, headers=seller)).json()


class TestGas:
    """What one payer can have burnt is bounded."""

    async def test_one_reverted_settlement_counts_once(
        self, facilitator: EvmFacilitator, anvil: Anvil, fake: FakeRpc
    ) -> None:
        await anvil.mint(BUYER.address, PRICE_ATOMIC)
        await anvil.automine(False)
        paid = pay(WANTED)
        async with asyncio.TaskGroup() as tasks:
            settling = tasks.create_task(facilitator.settle(paid, WANTED))
            await fake.asked_for("eth_sendRawTransaction")
            await send_first(anvil, call_data("transfer(address,uint256)", account(9).address, PRICE_ATOMIC))
        assert settling.result().outcome is SettleOutcome.FAILED
        await anvil.automine(True)
        for _ in range(FAILURES):
            assert (await facilitator.settle(paid, WANTED)).outcome is SettleOutcome.FAILED
        await anvil.mint(BUYER.address, PRICE_ATOMIC)
        assert isinstance(await facilitator.verify(pay(WANTED), WANTED), Accepted)

    async def test_many_payments_over_the_same_money(self, fake: FakeRpc, anvil: Anvil, tmp_path: Path) -> None:
        """All pass a simulation as long as none is mined."""
        await anvil.mint(BUYER.address, PRICE_ATOMIC)
        await anvil.automine(False)
        async with (
            evm_facilitator(fake.url, tmp_path, SystemClock(), settle_wait_s=1.0) as facilitator,
            asyncio.TaskGroup() as tasks,
        ):
            settling = [tasks.create_task(facilitator.settle(pay(WANTED), WANTED)) for _ in range(40)]
            await asyncio.wait(settling)
            await anvil.automine(True)
            await anvil.mine()
        outcomes = [one.result().outcome for one in settling]
        assert outcomes.count(SettleOutcome.PENDING) == 1
        assert outcomes.count(SettleOutcome.UNKNOWN) == 39  # asked again, they are told
        assert await reverted(anvil) == 0

    async def test_many_payments_over_the_same_money_in_a_batch(self, batching: EvmFacilitator, anvil: Anvil) -> None:
        await anvil.mint(BUYER.address, PRICE_ATOMIC)
        settled = await asyncio.gather(*(batching.settle(pay(WANTED), WANTED) for _ in range(20)))
        assert [one.outcome for one in settled].count(SettleOutcome.SETTLED) == 1
        assert await reverted(anvil) == 0

    async def test_a_wallet_that_needs_more_gas_than_it_is_given(
        self, facilitator: EvmFacilitator, anvil: Anvil
    ) -> None:
        wallet = "0x" + "77" * 20
        await anvil.rpc("anvil_setCode", wallet, HUNGRY_WALLET)
        await anvil.mint(wallet, 100 * PRICE_ATOMIC)
        paid = signed_with(pay(WANTED, from_=wallet), "0x" + "22" * 100)
        verified = await facilitator.verify(paid, WANTED)
        assert isinstance(verified, Refused)
        assert (await facilitator.settle(paid, WANTED)).outcome is SettleOutcome.FAILED
        assert int(await anvil.rpc("eth_getTransactionCount", GAS_PAYER, "latest"), 16) == 0

    @pytest.mark.parametrize("changes", [{"amount": "0"}, {"max_timeout_seconds": 0}], ids=str)
    async def test_what_moves_nothing_or_waits_for_nothing_is_refused(
        self, facilitator: EvmFacilitator, changes: dict[str, object]
    ) -> None:
        """A transfer of nothing needs no money: anybody could have any number of them sent."""
        wanted = msgspec.structs.replace(WANTED, **changes)
        settlement = await facilitator.settle(pay(wanted), wanted)
        assert (settlement.outcome, settlement.reason) == (SettleOutcome.FAILED, Reason.INVALID_REQUIREMENTS)


async def test_a_node_that_is_behind_does_not_make_a_paid_payment_failed(
    facilitator: EvmFacilitator, anvil: Anvil, fake: FakeRpc
) -> None:
    """Somebody else's transaction pays first and ours reverts; who is asked for logs is one block behind."""
    await anvil.mint(BUYER.address, PRICE_ATOMIC)
    await anvil.automine(False)
    paid, mined = pay(WANTED), asyncio.Event()

    def note(receipt: object) -> object:
        if receipt:
            mined.set()
        return receipt

    fake.behaviours = {
        "eth_getTransactionReceipt": Says(note),
        "eth_blockNumber": Says(lambda number: hex(int(number, 16) - 1) if mined.is_set() else number),
    }
    async with asyncio.TaskGroup() as tasks:
        settling = tasks.create_task(facilitator.settle(paid, WANTED))
        await fake.asked_for("eth_sendRawTransaction")
        await send_first(anvil, transfer_call(paid))
    assert settling.result().outcome is SettleOutcome.PENDING
    fake.behaviours = {}
    assert (await facilitator.settle(paid, WANTED)).outcome is SettleOutcome.SETTLED
    assert await anvil.balance(SELLER) == 1 + PRICE_ATOMIC
