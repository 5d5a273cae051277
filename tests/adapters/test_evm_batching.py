"""Several payments in one transaction, on a real chain: nobody's failure takes the others with it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from obol.adapters.chain_evm import EvmChain
from obol.adapters.clock import SystemClock
from obol.adapters.contracts.batcher import BatchedCall, load_batcher, run_data, run_gas_limit
from obol.adapters.evm_batching import BatchingSender, _fit
from obol.adapters.evm_calls import Call
from obol.adapters.evm_sender import Sender
from obol.adapters.evm_signing import LocalTransactionSigner
from obol.adapters.facilitator_evm import EvmFacilitator, Served
from obol.adapters.logs import make_logger
from obol.adapters.rpc_http import JsonRpc
from obol.core.networks import BASE_SEPOLIA
from obol.errors import ChainUnavailableError
from obol.x402.eip712 import keccak
from obol.x402.facilitator import SettleOutcome
from obol.x402.reasons import Reason
from tests.adapters.payments import PRICE_ATOMIC, SELLER, account, pay, requirements
from tests.evm.anvil import USDC, Anvil
from tests.evm.facilitating import GAS_KEY, QUICK
from tests.fakes.rpc import Drops, FakeRpc

BUYER = account()
WANTED = requirements()


@pytest.fixture
async def fake(anvil: Anvil) -> AsyncIterator[FakeRpc]:
    await anvil.fund_native(LocalTransactionSigner(GAS_KEY).address)
    await anvil.mint(BUYER.address, 50 * PRICE_ATOMIC)
    await anvil.mint(SELLER, 1)
    async with FakeRpc(anvil.url) as fake:
        yield fake


@pytest.fixture
async def facilitator(fake: FakeRpc, tmp_path: Path) -> AsyncIterator[EvmFacilitator]:
    """That sends at most 5 payments together."""
    chain = EvmChain(JsonRpc([fake.url]), BASE_SEPOLIA)
    log, signer, clock = make_logger(as_json=True), LocalTransactionSigner(GAS_KEY), SystemClock()
    sender = await Sender.open(chain, signer, tmp_path / "journal.sqlite3", clock, log, limits=QUICK)
    batching = await BatchingSender.open(chain, sender, log, batch_max=5, batch_wait_s=0.2)
    facilitator = EvmFacilitator([Served(chain, batching, (USDC,))], clock, settle_wait_s=5.0)
    yield facilitator
    await facilitator.close()


async def test_what_comes_together_is_one_transaction_with_a_log_for_each(
    facilitator: EvmFacilitator, anvil: Anvil
) -> None:
    settlements = await asyncio.gather(*(facilitator.settle(pay(WANTED), WANTED) for _ in range(5)))
    assert {one.outcome for one in settlements} == {SettleOutcome.SETTLED}
    assert len({one.transaction for one in settlements}) == 1
    moved = await anvil.transfers(SELLER)
    assert {one.log_index for one in settlements} == {one.log_index for one in moved if one.amount_atomic > 1}


async def test_more_than_fit_are_several_transactions(facilitator: EvmFacilitator, anvil: Anvil) -> None:
    settlements = await asyncio.gather(*(facilitator.settle(pay(WANTED), WANTED) for _ in range(12)))
    assert {one.outcome for one in settlements} == {SettleOutcome.SETTLED}
    assert len({one.transaction for one in settlements}) == 3
    assert await anvil.balance(SELLER) == 1 + 12 * PRICE_ATOMIC


async def test_one_alone_is_an_ordinary_transfer(facilitator: EvmFacilitator, anvil: Anvil) -> None:
    settlement = await facilitator.settle(pay(WANTED), WANTED)
    sent = await anvil.rpc("eth_getTransactionByHash", settlement.transaction)
    assert sent["to"].lower() == USDC.address.lower()


async def test_one_that_fails_does_not_fail_the_rest(facilitator: EvmFacilitator, anvil: Anvil) -> None:
    """Two payments of all that a payer has: each is good by itself, and only one of them is paid."""
    poor = account(3)
    await anvil.mint(poor.address, PRICE_ATOMIC)
    payments = [pay(WANTED), pay(WANTED, poor), pay(WANTED, poor), pay(WANTED)]
    settlements = await asyncio.gather(*(facilitator.settle(one, WANTED) for one in payments))
    outcomes = [one.outcome for one in settlements]
    assert outcomes[0] is outcomes[3] is SettleOutcome.SETTLED
    assert sorted(outcomes[1:3]) == [SettleOutcome.FAILED, SettleOutcome.SETTLED]
    assert await anvil.balance(SELLER) == 1 + 3 * PRICE_ATOMIC


async def test_what_was_sent_together_is_found_again_one_by_one(
    facilitator: EvmFacilitator, anvil: Anvil, fake: FakeRpc, tmp_path: Path
) -> None:
    payments = [pay(WANTED) for _ in range(3)]
    first = await asyncio.gather(*(facilitator.settle(one, WANTED) for one in payments))
    again = [await facilitator.settle(one, WANTED) for one in payments]
    assert first == again


async def test_an_emptied_payer_in_a_mined_batch_fails_alone(
    facilitator: EvmFacilitator, anvil: Anvil, fake: FakeRpc
) -> None:
    """The money leaves between the simulation of the batch and its block."""
    poor = account(3)
    await anvil.mint(poor.address, PRICE_ATOMIC)
    await anvil.automine(False)
    async with asyncio.TaskGroup() as tasks:
        settling = [
            tasks.create_task(facilitator.settle(one, WANTED)) for one in (pay(WANTED), pay(WANTED, poor), pay(WANTED))
        ]
        await fake.asked_for("eth_sendRawTransaction", times=2)  # the first was the batcher's deployment
        await anvil.rpc("anvil_setStorageAt", USDC.address, _balance_slot(poor.address), "0x" + "00" * 32)
        await anvil.mine()
    outcomes = [one.result().outcome for one in settling]
    assert outcomes == [SettleOutcome.SETTLED, SettleOutcome.FAILED, SettleOutcome.SETTLED]
    assert settling[1].result().reason == Reason.TRANSACTION_FAILED
    assert await anvil.balance(SELLER) == 1 + 2 * PRICE_ATOMIC


async def test_a_batch_that_cannot_be_sent_is_known_to_everybody(facilitator: EvmFacilitator, fake: FakeRpc) -> None:
    payments = [pay(WANTED) for _ in range(3)]
    async with asyncio.TaskGroup() as tasks:
        settling = [tasks.create_task(facilitator.settle(one, WANTED)) for one in payments]
        await fake.asked_for("eth_call", times=3)
        fake.behaviours = {"*": Drops()}
    assert {one.result().outcome for one in settling} == {SettleOutcome.UNKNOWN}
    fake.behaviours = {}
    settlements = await asyncio.gather(*(facilitator.settle(one, WANTED) for one in payments))
    assert {one.outcome for one in settlements} == {SettleOutcome.SETTLED}


async def test_the_contract_is_deployed_once(facilitator: EvmFacilitator, anvil: Anvil, tmp_path: Path) -> None:
    batcher = load_batcher()
    assert await anvil.rpc("eth_getCode", batcher.address, "latest") == "0x" + batcher.runtime.hex()
    (served,) = facilitator.served
    sender = served.sender
    assert isinstance(sender, BatchingSender)
    again = await BatchingSender.open(
        served.chain, sender._sender, make_logger(as_json=True), batch_max=5, batch_wait_s=0.1
    )
    assert int(await anvil.rpc("eth_getTransactionCount", again.address, "latest"), 16) == 1


async def test_without_the_factory_it_cannot_be_deployed(anvil: Anvil, fake: FakeRpc, tmp_path: Path) -> None:
    await anvil.rpc("anvil_setCode", "0x4e59b44847b379578588920cA78FbF26c0B4956C", "0x")
    chain = EvmChain(JsonRpc([fake.url]), BASE_SEPOLIA)
    log = make_logger(as_json=True)
    sender = await Sender.open(chain, LocalTransactionSigner(GAS_KEY), tmp_path / "j.sqlite3", SystemClock(), log)
    with pytest.raises(ChainUnavailableError, match="batcher"):
        await BatchingSender.open(chain, sender, log, batch_max=5, batch_wait_s=0.1)
    await sender.close()
    await chain.close()


def test_a_full_batch_fits_a_transaction() -> None:
    """Signatures of wallets may be long."""
    for size_bytes in (65, 1000, 4094):
        call = Call(("k",), USDC.address, bytes(292 + size_bytes), 300_000)
        calls: list[Call] = []
        while _fit([*calls, call]):
            calls.append(call)
        batched = [BatchedCall(one.to, one.data, one.gas_limit) for one in calls]
        data = run_data(batched)
        assert len(calls) > 10
        assert run_gas_limit(batched, data) <= 2**24
        assert len(data) <= 120 * 1024


def _balance_slot(address: str) -> str:
    """Where the token keeps a balance: its fourth variable."""
    return "0x" + keccak(bytes.fromhex(address[2:]).rjust(32, b"\0") + (3).to_bytes(32, "big")).hex()
