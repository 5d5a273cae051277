"""One call that fails, or is meant to do harm, takes nothing from the others in its batch."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from obol.adapters.chain_evm import EvmChain, Log, TransactionReceipt
from obol.adapters.contracts.batcher import (
    FACTORY,
    MAX_CALLS,
    BatchedCall,
    load_batcher,
    read_outcomes,
    run_data,
    run_gas_limit,
)
from obol.adapters.evm_abi import selector, topic
from obol.core.networks import BASE_SEPOLIA
from tests.adapters.payments import PRICE_ATOMIC, SELLER, account, pay, requirements
from tests.evm.anvil import ROOT, USDC, Anvil, compiled, rpc_of
from tests.evm.authorizing import transfer_call
from tests.evm.contracts import deploy_batcher

BUYER = account()
SENDER = "0x" + "ee" * 20
CALL_GAS = 150_000
GREEDY = "0x" + "ab" * 20
GREEDY_CODE = "0x5b600056"
"""Jumps back for ever."""
VERBOSE = "0x" + "ac" * 20
VERBOSE_CODE = "0x620190006000f3"
"""Returns 100 KiB of zeros."""
NEEDY = "0x" + "ae" * 20
NEEDY_GAS = 1_000_000
NEEDY_CODE = f"0x5a62{NEEDY_GAS - 10:06x}11600a57005bfe"
"""Fails unless it has as much gas as was promised; it takes some to look."""
NOBODY = "0x" + "ad" * 20
RAN = topic("Ran(uint256)")


def transfer(wallet: int = 1, gas_limit: int = CALL_GAS) -> BatchedCall:
    return BatchedCall(USDC.address, transfer_call(pay(requirements(), account(wallet))), gas_limit)


@pytest.fixture
async def batcher(anvil: Anvil) -> str:
    for wallet in (1, 2, 3):
        await anvil.mint(account(wallet).address, PRICE_ATOMIC)
    return await deploy_batcher(anvil)


@pytest.fixture
async def chain(anvil: Anvil) -> AsyncIterator[EvmChain]:
    chain = EvmChain(rpc_of(anvil), BASE_SEPOLIA)
    yield chain
    await chain.close()


class Runner:
    """Sends batches as anybody can."""

    def __init__(self, anvil: Anvil, chain: EvmChain, batcher: str) -> None:
        self.address = batcher
        self._anvil = anvil
        self._chain = chain

    async def run(self, calls: Sequence[BatchedCall], *, gas_limit: int | None = None) -> TransactionReceipt:
        await self._anvil.fund_native(SENDER)
        await self._anvil.rpc("anvil_impersonateAccount", SENDER)
        data = run_data(calls)
        gas = hex(gas_limit or run_gas_limit(calls, data))
        asked = {"from": SENDER, "to": self.address, "data": "0x" + data.hex(), "gas": gas}
        mined = await self._anvil.mined(await self._anvil.rpc("eth_sendTransaction", asked))
        receipt = await self._chain.receipt(mined["transactionHash"])
        assert receipt is not None
        return receipt

    async def outcomes(self, *calls: BatchedCall) -> tuple[bool, ...] | None:
        return read_outcomes((await self.run(calls)).logs, self.address, len(calls))


@pytest.fixture
def runner(anvil: Anvil, chain: EvmChain, batcher: str) -> Runner:
    return Runner(anvil, chain, batcher)


def test_the_package_holds_what_was_compiled_from_the_source() -> None:
    committed = ROOT / "contracts" / "compiled" / "Batcher.json"
    assert committed.resolve() == Path(ROOT, "src", "obol", "adapters", "contracts", "Batcher.json").resolve()
    assert load_batcher().runtime.hex() == compiled("Batcher")["runtime"][2:]


async def test_the_factory_deploys_it_where_its_code_says(anvil: Anvil, batcher: str, chain: EvmChain) -> None:
    assert batcher == load_batcher().address
    assert await chain.code(batcher) == load_batcher().runtime
    assert (await anvil.send(FACTORY, load_batcher().deployment))["status"] == "0x0"  # it is there already


async def test_each_payment_moves_its_money(runner: Runner, anvil: Anvil) -> None:
    assert await runner.outcomes(transfer(1), transfer(2), transfer(3)) == (True, True, True)
    moved = await anvil.transfers(SELLER)
    assert [one.payer for one in moved] == [account(wallet).address.lower() for wallet in (1, 2, 3)]
    assert len({one.transaction for one in moved}) == 1
    assert len({one.log_index for one in moved}) == 3


async def test_one_that_fails_does_not_fail_the_rest(runner: Runner, anvil: Anvil) -> None:
    paid = transfer(1)
    assert await runner.outcomes(paid, paid, transfer(4), transfer(2)) == (True, False, False, True)
    assert await anvil.balance(SELLER) == 2 * PRICE_ATOMIC


async def test_one_that_burns_all_its_gas_takes_no_more_than_its_own(runner: Runner, anvil: Anvil) -> None:
    await anvil.rpc("anvil_setCode", GREEDY, GREEDY_CODE)
    greedy = BatchedCall(GREEDY, b"", CALL_GAS)
    alone = await runner.run([greedy])
    assert CALL_GAS < alone.gas_used < CALL_GAS + 40_000
    assert await runner.outcomes(greedy, transfer(1), greedy, transfer(2)) == (False, True, False, True)


async def test_what_a_call_returns_is_not_paid_for_twice(runner: Runner, anvil: Anvil) -> None:
    await anvil.rpc("anvil_setCode", VERBOSE, VERBOSE_CODE)
    receipt = await runner.run([BatchedCall(VERBOSE, b"", CALL_GAS)])
    assert read_outcomes(receipt.logs, runner.address, 1) == (True,)
    assert receipt.gas_used < 21_000 + 40_000  # 29,000 of it by the call itself


async def test_a_call_to_an_address_without_a_contract_is_no_success(runner: Runner) -> None:
    assert await runner.outcomes(BatchedCall(NOBODY, b"", CALL_GAS), transfer(1)) == (False, True)


@pytest.mark.parametrize("gas_limit", [2**256 - 1, 2**255, 10**9])
async def test_a_limit_that_cannot_be_kept_is_refused(runner: Runner, anvil: Anvil, gas_limit: int) -> None:
    receipt = await runner.run([transfer(1), transfer(2, gas_limit)], gas_limit=1_000_000)
    assert not receipt.is_success
    assert await anvil.balance(SELLER) == 0


async def test_a_call_gets_the_gas_that_it_was_promised_or_nothing_is_run(runner: Runner, anvil: Anvil) -> None:
    await anvil.rpc("anvil_setCode", NEEDY, NEEDY_CODE)
    calls = [BatchedCall(NEEDY, b"", NEEDY_GAS)]
    seen = set[bool]()
    for gas_limit in range(NEEDY_GAS, NEEDY_GAS + 60_000, 500):
        receipt = await runner.run(calls, gas_limit=gas_limit)
        assert read_outcomes(receipt.logs, runner.address, 1) == ((True,) if receipt.is_success else None), gas_limit
        seen.add(receipt.is_success)
    assert seen == {True, False}


async def test_the_gas_limit_is_enough_for_as_many_as_there_can_be(runner: Runner, anvil: Anvil) -> None:
    await anvil.rpc("anvil_setCode", GREEDY, GREEDY_CODE)
    calls = [BatchedCall(GREEDY, b"\xff" * 300, 10_000)] * (MAX_CALLS - 1) + [transfer(1)]
    receipt = await runner.run(calls)
    assert read_outcomes(receipt.logs, runner.address, MAX_CALLS) == (False,) * (MAX_CALLS - 1) + (True,)


async def test_more_calls_than_there_are_bits_are_refused(runner: Runner, anvil: Anvil) -> None:
    one = BatchedCall(NOBODY, b"", 0)
    with pytest.raises(ValueError, match="at most 256 calls"):
        run_data([one] * (MAX_CALLS + 1))
    data = run_data([one]).hex().replace(f"{1:064x}", f"{MAX_CALLS + 1:064x}", 1) + "00" * 40_000
    with pytest.raises(RuntimeError, match=selector("TooManyCalls()").hex()):
        await anvil.rpc("eth_call", {"to": runner.address, "data": "0x" + data}, "latest")


async def test_an_empty_batch_runs(runner: Runner) -> None:
    assert await runner.outcomes() == ()


async def test_it_takes_no_ether(runner: Runner, anvil: Anvil) -> None:
    asked = {"from": SENDER, "to": runner.address, "value": "0x1"}
    for data in ("0x", "0x" + run_data([transfer(1)]).hex()):
        with pytest.raises(RuntimeError, match="revert"):
            await anvil.rpc("eth_call", asked | {"data": data}, "latest")


async def test_twenty_at_once_cost_two_thirds_of_twenty_alone(runner: Runner, anvil: Anvil) -> None:
    await anvil.mint(BUYER.address, 21 * PRICE_ATOMIC)
    await anvil.send(USDC.address, transfer().data)  # the seller's first payment costs more
    alone = int((await anvil.send(USDC.address, transfer().data))["gasUsed"], 16)
    together = (await runner.run([transfer() for _ in range(20)])).gas_used
    assert together * 3 < 20 * alone * 2


@pytest.mark.parametrize(
    "logs",
    [
        [],
        [Log(NOBODY, (RAN,), bytes(32), 1, "0x", 0)],
        [Log(GREEDY, (RAN, RAN), bytes(32), 1, "0x", 0)],
        [Log(GREEDY, (topic("Done(uint256)"),), bytes(32), 1, "0x", 0)],
        [Log(GREEDY, (RAN,), bytes(32), 1, "0x", 0), Log(GREEDY, (RAN,), bytes(32), 1, "0x", 1)],
    ],
)
def test_logs_that_do_not_say_what_became_of_the_calls_say_nothing(logs: list[Log]) -> None:
    assert read_outcomes(logs, GREEDY, 2) is None


def test_an_outcome_is_a_bit() -> None:
    logs = [Log(GREEDY, (RAN,), (0b101).to_bytes(32, "big"), 1, "0x", 0)]
    assert read_outcomes(logs, GREEDY.upper().replace("0X", "0x"), 4) == (True, False, True, False)
