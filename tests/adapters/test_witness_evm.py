"""The chain as a witness: what became of an authorization, told apart on a real chain."""

from collections.abc import AsyncIterator

import pytest

from obol.adapters.chain_evm import EvmChain
from obol.adapters.rpc_http import JsonRpc
from obol.adapters.witness_evm import EvmWitness
from obol.core.networks import BASE_SEPOLIA
from obol.errors import ChainUnavailableError
from obol.x402.models import PaymentPayload
from obol.x402.witness import CANCELLED, EXPIRED, USED_ELSEWHERE, Moved, NeverMoves, StillOpen
from tests.adapters.payments import PRICE_ATOMIC, SELLER, account, pay, requirements
from tests.evm.anvil import USDC, Anvil
from tests.evm.authorizing import cancel_call, receive_call, transfer_call
from tests.fakes.rpc import Drops, FakeRpc, Says

PAYER = account()
WANTED = requirements()


@pytest.fixture
async def fake(anvil: Anvil) -> AsyncIterator[FakeRpc]:
    await anvil.mint(PAYER.address, 10 * PRICE_ATOMIC)
    async with FakeRpc(anvil.url) as fake:
        yield fake


@pytest.fixture
async def witness(fake: FakeRpc) -> AsyncIterator[EvmWitness]:
    witness = EvmWitness(EvmChain(JsonRpc([fake.url]), BASE_SEPOLIA))
    yield witness
    await witness.close()


async def pay_until(anvil: Anvil, seconds: int) -> PaymentPayload:
    return pay(WANTED, validBefore=await anvil.now_s() + seconds)


async def test_what_nobody_has_sent_is_still_open(witness: EvmWitness, anvil: Anvil) -> None:
    assert await witness.fate(await pay_until(anvil, 60), WANTED) == StillOpen()


async def test_what_was_sent_has_moved_whoever_sent_it(witness: EvmWitness, anvil: Anvil) -> None:
    paid = pay(WANTED)
    receipt = await anvil.send(USDC.address, transfer_call(paid), sender="0x" + "dd" * 20)
    (moved,) = await anvil.transfers(SELLER)
    assert await witness.fate(paid, WANTED) == Moved(receipt["transactionHash"], moved.log_index)


async def test_two_payments_in_one_block_are_told_apart(witness: EvmWitness, anvil: Anvil) -> None:
    await anvil.automine(False)
    first, second = pay(WANTED), pay(WANTED)
    for number, paid in enumerate((first, second)):
        sender = "0x" + f"d{number}" * 20
        await anvil.fund_native(sender)
        await anvil.rpc("anvil_impersonateAccount", sender)
        call = {"from": sender, "to": USDC.address, "data": "0x" + transfer_call(paid).hex(), "gas": hex(300_000)}
        await anvil.rpc("eth_sendTransaction", call)
    await anvil.mine()
    fates = [await witness.fate(paid, WANTED) for paid in (first, second)]
    logs = {(moved.transaction, moved.log_index) for moved in await anvil.transfers(SELLER)}
    assert {(fate.transaction, fate.log_index) for fate in fates if isinstance(fate, Moved)} == logs
    assert len(logs) == 2


async def test_a_pending_transaction_has_moved_nothing_yet(witness: EvmWitness, anvil: Anvil) -> None:
    paid = await pay_until(anvil, 600)
    sender = "0x" + "dd" * 20
    await anvil.fund_native(sender)
    await anvil.rpc("anvil_impersonateAccount", sender)
    await anvil.automine(False)
    call = {"from": sender, "to": USDC.address, "data": "0x" + transfer_call(paid).hex(), "gas": hex(300_000)}
    await anvil.rpc("eth_sendTransaction", call)
    assert await witness.fate(paid, WANTED) == StillOpen()
    await anvil.mine()
    assert isinstance(await witness.fate(paid, WANTED), Moved)


async def test_what_was_cancelled_never_moves(witness: EvmWitness, anvil: Anvil) -> None:
    paid = pay(WANTED)
    await anvil.send(USDC.address, cancel_call(PAYER, paid.payload.signed.nonce))
    assert await witness.fate(paid, WANTED) == NeverMoves(CANCELLED)


async def test_a_nonce_that_paid_somebody_else_never_pays_us(witness: EvmWitness, anvil: Anvil) -> None:
    paid = pay(WANTED)
    other = account(7)
    await anvil.send(USDC.address, receive_call(PAYER, paid, other.address), sender=other.address)
    assert await anvil.balance(other.address) == PRICE_ATOMIC
    assert await witness.fate(paid, WANTED) == NeverMoves(USED_ELSEWHERE)


async def test_a_nonce_that_paid_another_amount_does_not_count(witness: EvmWitness, anvil: Anvil) -> None:
    nonce = "0x" + "77" * 32
    await anvil.send(USDC.address, transfer_call(pay(requirements(PRICE_ATOMIC - 1), nonce=nonce)))
    assert await witness.fate(pay(WANTED, nonce=nonce), WANTED) == NeverMoves(USED_ELSEWHERE)


async def test_what_was_not_sent_in_its_window_never_moves(witness: EvmWitness, anvil: Anvil) -> None:
    paid = await pay_until(anvil, 60)
    await anvil.pass_time(61)
    assert await witness.fate(paid, WANTED) == NeverMoves(EXPIRED)


async def test_what_was_sent_in_its_window_is_found_long_after_it(fake: FakeRpc, anvil: Anvil) -> None:
    witness = EvmWitness(EvmChain(JsonRpc([fake.url]), BASE_SEPOLIA), newest_blocks=10)
    paid = await pay_until(anvil, 60)
    await anvil.send(USDC.address, transfer_call(paid))
    await anvil.pass_time(3600)
    await anvil.mine(30)
    assert isinstance(await witness.fate(paid, WANTED), Moved)
    await witness.close()


async def test_a_settlement_that_is_not_deep_enough_is_still_open(fake: FakeRpc, anvil: Anvil) -> None:
    witness = EvmWitness(EvmChain(JsonRpc([fake.url]), BASE_SEPOLIA, confirmations=3))
    paid = pay(WANTED)
    await anvil.send(USDC.address, transfer_call(paid))
    assert await witness.fate(paid, WANTED) == StillOpen()
    await anvil.mine(2)
    assert isinstance(await witness.fate(paid, WANTED), Moved)
    await witness.close()


async def test_an_expiry_that_is_not_deep_enough_is_still_open(fake: FakeRpc, anvil: Anvil) -> None:
    witness = EvmWitness(EvmChain(JsonRpc([fake.url]), BASE_SEPOLIA, confirmations=3))
    paid = await pay_until(anvil, 60)
    await anvil.pass_time(61)
    assert await witness.fate(paid, WANTED) == StillOpen()
    await anvil.mine(2)
    assert await witness.fate(paid, WANTED) == NeverMoves(EXPIRED)
    await witness.close()


async def test_a_settlement_that_a_reorg_took_back_is_open_again(witness: EvmWitness, anvil: Anvil) -> None:
    paid = await pay_until(anvil, 3600)
    before = await anvil.snapshot()
    await anvil.send(USDC.address, transfer_call(paid))
    assert isinstance(await witness.fate(paid, WANTED), Moved)
    await anvil.revert(before)
    assert await witness.fate(paid, WANTED) == StillOpen()


async def test_used_and_no_log_to_be_found_is_not_known(witness: EvmWitness, fake: FakeRpc, anvil: Anvil) -> None:
    paid = pay(WANTED)
    await anvil.send(USDC.address, transfer_call(paid))
    fake.behaviours = {"eth_getLogs": Says(lambda _: [])}
    with pytest.raises(ChainUnavailableError):
        await witness.fate(paid, WANTED)


async def test_a_node_that_lags_behind_cannot_say_that_it_expired(
    witness: EvmWitness, fake: FakeRpc, anvil: Anvil
) -> None:
    paid = await pay_until(anvil, 60)
    await anvil.pass_time(61)
    fake.behaviours = {"eth_blockNumber": Says(lambda number: hex(int(number, 16) + 5))}  # of another node
    with pytest.raises(ChainUnavailableError):
        await witness.fate(paid, WANTED)


@pytest.mark.parametrize("method", ["eth_blockNumber", "eth_getLogs", "eth_call", "eth_getBlockByNumber"])
async def test_a_node_that_does_not_answer_is_no_answer(
    witness: EvmWitness, fake: FakeRpc, anvil: Anvil, method: str
) -> None:
    paid = await pay_until(anvil, 60)
    await anvil.pass_time(61)
    fake.behaviours = {method: Drops()}
    with pytest.raises(ChainUnavailableError):
        await witness.fate(paid, WANTED)


async def test_a_receipt_that_is_missing_is_no_answer(witness: EvmWitness, fake: FakeRpc, anvil: Anvil) -> None:
    paid = pay(WANTED)
    await anvil.send(USDC.address, transfer_call(paid))
    fake.behaviours = {"eth_getTransactionReceipt": Says(lambda _: None)}
    with pytest.raises(ChainUnavailableError):
        await witness.fate(paid, WANTED)
