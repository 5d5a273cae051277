"""The chain as a witness: what became of an authorization, told apart on a real chain."""

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest

from obol.adapters.chain_evm import EvmChain, address_topic
from obol.adapters.rpc_http import JsonRpc
from obol.adapters.witness_evm import JUST_BLOCKS, EvmWitness
from obol.core.networks import BASE_SEPOLIA
from obol.errors import ChainUnavailableError
from obol.x402.models import PaymentPayload
from obol.x402.witness import CANCELLED, EXPIRED, USED_ELSEWHERE, Moved, NeverMoves, StillOpen, Unconfirmed, Used
from tests.adapters.payments import PRICE_ATOMIC, SELLER, account, pay, requirements
from tests.evm.anvil import USDC, Anvil
from tests.evm.authorizing import cancel_call, receive_call, transfer_call
from tests.fakes.rpc import Behaviour, Drops, Errors, FakeRpc, Says, Where

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


async def test_an_end_that_is_not_deep_enough_is_unconfirmed(fake: FakeRpc, anvil: Anvil) -> None:
    witness = EvmWitness(EvmChain(JsonRpc([fake.url]), BASE_SEPOLIA, confirmations=3))
    paid, cancelled = pay(WANTED), pay(WANTED)
    await anvil.send(USDC.address, transfer_call(paid))
    await anvil.send(USDC.address, cancel_call(PAYER, cancelled.payload.signed.nonce))
    assert [await witness.fate(one, WANTED) for one in (paid, cancelled)] == [Unconfirmed(), Unconfirmed()]
    await anvil.mine(2)
    assert isinstance(await witness.fate(paid, WANTED), Moved)
    assert await witness.fate(cancelled, WANTED) == NeverMoves(CANCELLED)
    await witness.close()


async def test_an_expiry_that_is_not_deep_enough_is_still_open(fake: FakeRpc, anvil: Anvil) -> None:
    witness = EvmWitness(EvmChain(JsonRpc([fake.url]), BASE_SEPOLIA, confirmations=3))
    paid = await pay_until(anvil, 60)
    await anvil.pass_time(61)
    assert await witness.fate(paid, WANTED) == StillOpen()
    await anvil.mine(2)
    assert await witness.fate(paid, WANTED) == NeverMoves(EXPIRED)
    await witness.close()


@pytest.mark.parametrize("has_state", [True, False])
async def test_what_was_sent_before_a_long_outage_is_found(fake: FakeRpc, anvil: Anvil, has_state: bool) -> None:
    """However many blocks were made since: it can only have been used in its window."""
    witness = EvmWitness(EvmChain(JsonRpc([fake.url]), BASE_SEPOLIA), newest_blocks=10)
    await anvil.mine(50)
    await anvil.pass_time(600)
    now_s = await anvil.now_s()
    paid = pay(WANTED, validAfter=now_s - 300, validBefore=now_s + 60)
    await anvil.send(USDC.address, transfer_call(paid))
    await anvil.pass_time(3600)
    await anvil.mine(50)
    widths: list[int] = []

    def note(asked: Mapping[str, Any]) -> None:
        (given,) = asked["params"]
        widths.append(int(given["toBlock"], 16) - int(given["fromBlock"], 16))

    if not has_state:
        fake.behaviours["eth_call"] = Where(pruned(await anvil.rpc("eth_blockNumber")))
    fake.behaviours["eth_getLogs"] = Where(note)
    fate = await witness.fate(paid, WANTED)
    assert isinstance(fate, Moved)
    assert fate.age_s >= 3600
    assert widths == [10, 0 if has_state else 2]
    await witness.close()


def pruned(newest: str) -> Callable[[Mapping[str, Any]], Behaviour | None]:
    """A node that has the state of the newest block only."""
    gone = Errors(-32000, "missing trie node")
    return lambda asked: None if asked["params"][1] == newest else gone


async def test_a_cancellation_before_its_window_is_found_however_long_ago(fake: FakeRpc, anvil: Anvil) -> None:
    witness = EvmWitness(EvmChain(JsonRpc([fake.url]), BASE_SEPOLIA), newest_blocks=10)
    nonce = "0x" + "78" * 32
    await anvil.mine(100)
    await anvil.send(USDC.address, cancel_call(PAYER, nonce))
    await anvil.mine(3000)
    now_s = await anvil.now_s()
    paid = pay(WANTED, nonce=nonce, validAfter=now_s - 2, validBefore=now_s + 300)
    fake.asked.clear()
    assert await witness.fate(paid, WANTED) == NeverMoves(CANCELLED)
    assert fake.asked.total() <= 2 * 12 + 10
    fake.behaviours = {"eth_call": Where(pruned(await anvil.rpc("eth_blockNumber")))}
    other = EvmWitness(EvmChain(JsonRpc([fake.url]), BASE_SEPOLIA), newest_blocks=10)
    assert await other.fate(paid, WANTED) == Used()
    await other.close()
    await witness.close()


async def test_what_has_long_been_final_costs_no_question(witness: EvmWitness, fake: FakeRpc, anvil: Anvil) -> None:
    moved, cancelled, expired = pay(WANTED), pay(WANTED), await pay_until(anvil, 60)
    await anvil.send(USDC.address, transfer_call(moved))
    await anvil.send(USDC.address, cancel_call(PAYER, cancelled.payload.signed.nonce))
    await anvil.pass_time(700)
    fates = [await witness.fate(one, WANTED) for one in (moved, cancelled, expired)]
    fake.asked.clear()
    assert [await witness.fate(one, WANTED) for one in (moved, cancelled, expired)] == fates
    assert fake.asked.total() == 0
    longer = pay(WANTED, nonce=expired.payload.signed.nonce, validBefore=await anvil.now_s() + 600)
    assert await witness.fate(longer, WANTED) == StillOpen()
    assert await witness.fate(moved, requirements(PRICE_ATOMIC - 1)) == NeverMoves(USED_ELSEWHERE)


async def test_how_long_ago_it_moved_is_by_the_chains_clock(witness: EvmWitness, anvil: Anvil) -> None:
    paid = pay(WANTED)
    await anvil.send(USDC.address, transfer_call(paid))
    ages_s = []
    for _ in range(4):
        fate = await witness.fate(paid, WANTED)
        assert isinstance(fate, Moved)
        ages_s.append(fate.age_s)
        await anvil.pass_time(200)
    assert [age_s // 200 for age_s in ages_s] == [0, 1, 2, 3]


async def test_what_had_to_be_deep_enough_is_as_old_as_it_has_been_that(fake: FakeRpc, anvil: Anvil) -> None:
    witness = EvmWitness(EvmChain(JsonRpc([fake.url]), BASE_SEPOLIA, confirmations=5))
    paid = pay(WANTED)
    await anvil.send(USDC.address, transfer_call(paid))
    for age_s in (0, 200):
        await anvil.mine(4)
        fate = await witness.fate(paid, WANTED)
        assert isinstance(fate, Moved)
        assert age_s <= fate.age_s <= age_s + 10
        await anvil.pass_time(200)
    await witness.close()


async def test_just_used_is_what_was_used_in_the_newest_blocks(
    witness: EvmWitness, fake: FakeRpc, anvil: Anvil
) -> None:
    paid, cancelled, idle = pay(WANTED), pay(WANTED), pay(WANTED)
    await anvil.mine(JUST_BLOCKS)
    await anvil.send(USDC.address, transfer_call(paid))
    await anvil.send(USDC.address, cancel_call(PAYER, cancelled.payload.signed.nonce))
    assert [await witness.is_just_used(one, WANTED) for one in (paid, cancelled, idle)] == [True, True, False]
    await anvil.mine(JUST_BLOCKS + 2)
    fake.asked.clear()
    assert [await witness.is_just_used(one, WANTED) for one in (paid, cancelled, idle)] == [False, False, False]
    assert fake.asked.total() <= 9


@pytest.mark.parametrize("method", ["eth_blockNumber", "eth_call"])
async def test_where_nobody_says_whether_it_was_just_used_that_is_not_known(
    witness: EvmWitness, fake: FakeRpc, method: str
) -> None:
    fake.behaviours = {method: Drops()}
    with pytest.raises(ChainUnavailableError):
        await witness.is_just_used(pay(WANTED), WANTED)


async def test_a_settlement_that_a_reorg_took_back_is_open_again(witness: EvmWitness, anvil: Anvil) -> None:
    paid = await pay_until(anvil, 3600)
    before = await anvil.snapshot()
    await anvil.send(USDC.address, transfer_call(paid))
    assert isinstance(await witness.fate(paid, WANTED), Moved)
    await anvil.revert(before)
    assert await witness.fate(paid, WANTED) == StillOpen()


def change_receipt(change: Callable[[dict[str, Any]], Any]) -> dict[str, Behaviour]:
    return {"eth_getTransactionReceipt": Says(change)}


NOT_SHOWN: dict[str, dict[str, Behaviour]] = {
    "no logs": {"eth_getLogs": Says(lambda _: [])},
    "logs refused": {"eth_getLogs": Errors(-32007, "50/second request limit reached")},
    "logs dropped": {"eth_getLogs": Drops()},
    "no receipt": change_receipt(lambda _: None),
    "receipt refused": {"eth_getTransactionReceipt": Errors(-32601, "no such method")},
    "receipt without logs": change_receipt(lambda receipt: receipt | {"logs": []}),
    "receipt without the use": change_receipt(lambda receipt: receipt | {"logs": receipt["logs"][1:]}),
    "receipt without the transfer": change_receipt(lambda receipt: receipt | {"logs": receipt["logs"][:1]}),
    "receipt of another block": change_receipt(lambda receipt: receipt | {"blockNumber": "0x1"}),
}


@pytest.mark.parametrize("behaviours", NOT_SHOWN.values(), ids=list(NOT_SHOWN))
async def test_what_is_used_and_not_shown_by_what_is_used(
    witness: EvmWitness, fake: FakeRpc, anvil: Anvil, behaviours: dict[str, Behaviour]
) -> None:
    paid = pay(WANTED)
    await anvil.send(USDC.address, transfer_call(paid))
    fake.behaviours = behaviours
    fate = await witness.fate(paid, WANTED)
    assert isinstance(fate, Used)
    assert fate.why


async def test_another_transfer_in_the_transaction_does_not_say_what_was_used_for_what(
    witness: EvmWitness, fake: FakeRpc, anvil: Anvil
) -> None:
    paid = pay(WANTED)
    await anvil.send(USDC.address, transfer_call(paid))

    def by_another(receipt: dict[str, Any]) -> dict[str, Any]:
        use, move = receipt["logs"]
        signature, _, *others = move["topics"]
        return receipt | {"logs": [use, move | {"topics": [signature, address_topic(SELLER), *others]}]}

    fake.behaviours = change_receipt(by_another)
    assert await witness.fate(paid, WANTED) == Used()


async def test_logs_of_another_authorization_say_nothing_of_this_one(
    witness: EvmWitness, fake: FakeRpc, anvil: Anvil
) -> None:
    paid, other, idle = pay(WANTED), pay(WANTED), pay(WANTED)
    await anvil.send(USDC.address, transfer_call(paid))
    await anvil.send(USDC.address, cancel_call(PAYER, other.payload.signed.nonce))
    every = await anvil.rpc("eth_getLogs", {"fromBlock": "0x0", "address": USDC.address})
    fake.behaviours = {"eth_getLogs": Says(lambda _: every)}
    assert await witness.fate(paid, WANTED) == Used()
    assert await witness.fate(idle, WANTED) == StillOpen()


async def test_used_before_and_unused_after_is_used(fake: FakeRpc, anvil: Anvil) -> None:
    """By a node that has another chain than the one that says the newest block."""
    witness = EvmWitness(EvmChain(JsonRpc([fake.url]), BASE_SEPOLIA, confirmations=2))
    paid = await pay_until(anvil, 60)
    await anvil.pass_time(61)
    await anvil.mine(3)
    newest = await anvil.rpc("eth_blockNumber")

    def at_a_block(asked: Mapping[str, Any]) -> Behaviour:
        return Says(lambda _: f"0x{asked['params'][1] != newest:064x}")

    fake.behaviours = {"eth_call": Where(at_a_block)}
    assert await witness.fate(paid, WANTED) == Used()
    await witness.close()


async def test_an_end_without_use_needs_no_logs(witness: EvmWitness, fake: FakeRpc, anvil: Anvil) -> None:
    paid = await pay_until(anvil, 60)
    fake.behaviours = {"eth_getLogs": Drops()}
    assert await witness.fate(paid, WANTED) == StillOpen()
    await anvil.pass_time(61)
    assert await witness.fate(paid, WANTED) == NeverMoves(EXPIRED)


async def test_a_node_that_lags_behind_cannot_say_that_it_expired(
    witness: EvmWitness, fake: FakeRpc, anvil: Anvil
) -> None:
    paid = await pay_until(anvil, 60)
    await anvil.pass_time(61)
    fake.behaviours = {"eth_blockNumber": Says(lambda number: hex(int(number, 16) + 5))}  # of another node
    with pytest.raises(ChainUnavailableError):
        await witness.fate(paid, WANTED)


@pytest.mark.parametrize("behaviour", [Drops(), Errors(-32007, "50/second request limit reached")])
@pytest.mark.parametrize("method", ["eth_blockNumber", "eth_call", "eth_getBlockByNumber"])
async def test_a_node_that_does_not_answer_is_no_answer(
    witness: EvmWitness, fake: FakeRpc, anvil: Anvil, method: str, behaviour: Behaviour
) -> None:
    paid = await pay_until(anvil, 60)
    await anvil.pass_time(61)
    fake.behaviours = {method: behaviour}
    with pytest.raises(ChainUnavailableError):
        await witness.fate(paid, WANTED)


async def test_what_was_just_settled_is_seen_in_three_questions(
    witness: EvmWitness, fake: FakeRpc, anvil: Anvil
) -> None:
    paid = pay(WANTED)
    await anvil.send(USDC.address, transfer_call(paid))
    await witness.fate(paid, WANTED)
    fake.asked.clear()
    await witness.fate(paid, WANTED)
    assert fake.asked == {"eth_blockNumber": 1, "eth_getLogs": 1, "eth_getTransactionReceipt": 1}
