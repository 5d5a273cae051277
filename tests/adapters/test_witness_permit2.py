"""The chain as a witness of Permit2 payments, where it does not show all: settled by a stranger on a real chain."""

import secrets
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec
import pytest

from obol.adapters.chain_evm import EvmChain
from obol.adapters.clock import SystemClock
from obol.adapters.contracts.batcher import BatchedCall, load_batcher, run_data
from obol.adapters.rpc_http import JsonRpc
from obol.adapters.signer_local import LocalSigner
from obol.adapters.witness_evm import JUST_BLOCKS, EvmWitness
from obol.core.networks import BASE_SEPOLIA
from obol.errors import ChainUnavailableError
from obol.x402.authorization import parse_authorization
from obol.x402.client import sign_exact
from obol.x402.models import PaymentPayload
from obol.x402.permit2 import EXACT_PROXY_ADDRESS, PERMIT2_ADDRESS
from obol.x402.witness import CANCELLED, USED_ELSEWHERE, Moved, NeverMoves, StillOpen, Unconfirmed, Used
from tests.adapters.payments import SELLER, account, requirements
from tests.evm.anvil import Anvil
from tests.evm.contracts import OBOL, allow_permit2, call, deploy_batcher, place_obol, place_permit2, settle_call
from tests.fakes.rpc import Behaviour, Drops, Errors, FakeRpc, Says, Where

PRICE_ATOMIC = 10**18
BUYER = LocalSigner(bytes([1] * 32))
WANTED = requirements(PRICE_ATOMIC, OBOL, extra={"assetTransferMethod": "permit2"})
LIMIT = Errors(-32007, "50/second request limit reached")
NO_SUCH_METHOD = Errors(-32601, "the method does not exist")


@pytest.fixture
async def fake(anvil: Anvil) -> AsyncIterator[FakeRpc]:
    await place_permit2(anvil)
    await place_obol(anvil)
    await anvil.mint(BUYER.address, 5 * PRICE_ATOMIC, OBOL.address)
    await allow_permit2(anvil, BUYER.address)
    async with FakeRpc(anvil.url) as fake:
        yield fake


@pytest.fixture
async def witness(fake: FakeRpc) -> AsyncIterator[EvmWitness]:
    witness = EvmWitness(EvmChain(JsonRpc([fake.url]), BASE_SEPOLIA))
    yield witness
    await witness.close()


def pay(pay_to: str = SELLER, *, nonce: bytes | None = None) -> PaymentPayload:
    wanted = msgspec.structs.replace(WANTED, pay_to=pay_to)
    now_s, nonce = SystemClock().now_s(), nonce or secrets.token_bytes(32)
    return sign_exact(BUYER, wanted, OBOL, now_s=now_s, nonce=nonce, version=2)


async def settled(anvil: Anvil) -> PaymentPayload:
    paid = pay()
    await anvil.send(EXACT_PROXY_ADDRESS, settle_call(msgspec.to_builtins(paid.payload)))
    return paid


@pytest.mark.parametrize(
    "behaviours",
    [
        {"eth_getLogs": Says(lambda _: []), "eth_getBlockReceipts": NO_SUCH_METHOD},
        {"eth_getLogs": Says(lambda _: []), "eth_getBlockReceipts": Says(lambda _: [])},
        {"eth_getLogs": Says(lambda _: []), "eth_getBlockReceipts": Says(lambda all_: [all_[0] | {"logs": []}])},
        {"eth_getLogs": Drops()},
        {"eth_getLogs": LIMIT},
        {"eth_getTransactionByHash": Says(lambda _: None), "eth_getBlockReceipts": NO_SUCH_METHOD},
        {"eth_getTransactionByHash": LIMIT},
    ],
)
async def test_what_is_used_and_not_shown_by_what_is_used(
    witness: EvmWitness, fake: FakeRpc, anvil: Anvil, behaviours: dict[str, Behaviour]
) -> None:
    paid = await settled(anvil)
    assert isinstance(await witness.fate(paid, WANTED), Moved)
    fake.behaviours = behaviours
    fate = await witness.fate(paid, WANTED)
    assert isinstance(fate, Used)
    assert fate.why


async def test_a_settlement_that_is_not_deep_enough_is_unconfirmed(fake: FakeRpc, anvil: Anvil) -> None:
    witness = EvmWitness(EvmChain(JsonRpc([fake.url]), BASE_SEPOLIA, confirmations=3))
    paid = await settled(anvil)
    assert await witness.fate(paid, WANTED) == Unconfirmed()
    await anvil.mine(2)
    assert isinstance(await witness.fate(paid, WANTED), Moved)
    await witness.close()


def invalidation(paid: PaymentPayload) -> bytes:
    nonce = int(parse_authorization(paid.payload).nonce, 16)
    return call("invalidateUnorderedNonces(uint256,uint256)", nonce >> 8, 1 << (nonce & 0xFF))


async def invalidate(anvil: Anvil, paid: PaymentPayload) -> None:
    await anvil.send(PERMIT2_ADDRESS, invalidation(paid), sender=BUYER.address)


@pytest.mark.parametrize("blocks", [1, 2100])
async def test_what_was_invalidated_after_it_had_paid_has_moved(witness: EvmWitness, anvil: Anvil, blocks: int) -> None:
    paid = await settled(anvil)
    await anvil.mine(blocks)
    await invalidate(anvil, paid)
    assert isinstance(await witness.fate(paid, WANTED), Moved)


async def batched(anvil: Anvil, *calls: tuple[str, bytes]) -> None:
    """By whoever saw the payments on their way."""
    await deploy_batcher(anvil)
    batch = [BatchedCall(to, data, 400_000) for to, data in calls]
    await anvil.send(load_batcher().address, run_data(batch))


def settling(paid: PaymentPayload) -> tuple[str, bytes]:
    return EXACT_PROXY_ADDRESS, settle_call(msgspec.to_builtins(paid.payload))


@pytest.mark.parametrize("blocks", [0, 2100])
@pytest.mark.parametrize("is_voided", [False, True])
async def test_what_paid_inside_another_call_has_moved(
    witness: EvmWitness, anvil: Anvil, blocks: int, is_voided: bool
) -> None:
    paid = pay()
    await batched(anvil, settling(paid))
    (moved,) = await anvil.transfers(SELLER, OBOL.address)
    await anvil.mine(blocks)
    if is_voided:
        await invalidate(anvil, paid)
    assert await witness.fate(paid, WANTED) == Moved(moved.transaction, moved.log_index)


async def test_payments_that_share_a_transaction_have_a_transfer_each(witness: EvmWitness, anvil: Anvil) -> None:
    paid = [pay(), pay(), pay()]
    await batched(anvil, *map(settling, paid))
    moved = await anvil.transfers(SELLER, OBOL.address)
    assert [await witness.fate(one, WANTED) for one in paid] == [Moved(one.transaction, one.log_index) for one in moved]


async def test_one_among_many_payments_is_found(witness: EvmWitness, fake: FakeRpc, anvil: Anvil) -> None:
    await anvil.mint(BUYER.address, 30 * PRICE_ATOMIC, OBOL.address)
    paid = await settled(anvil)
    for _ in range(17):
        await settled(anvil)
    assert isinstance(await witness.fate(paid, WANTED), Moved)
    fake.behaviours = {"eth_getBlockReceipts": NO_SUCH_METHOD}
    assert isinstance(await witness.fate(paid, WANTED), Moved)


async def test_a_transfer_never_counts_for_two(witness: EvmWitness, anvil: Anvil) -> None:
    """One pays, the other was used for somebody else; whoever sent both names both."""
    paid, spent = pay(), pay()
    to_another = pay(account(9).address, nonce=bytes.fromhex(parse_authorization(spent.payload).nonce[2:]))
    await batched(anvil, settling(to_another), settling(paid), settling(spent))
    assert len(await anvil.transfers(SELLER, OBOL.address)) == 1
    assert [await witness.fate(one, WANTED) for one in (paid, spent)] == [Used(), Used()]


async def test_a_transfer_that_names_no_nonce_counts_for_none(witness: EvmWitness, anvil: Anvil) -> None:
    """A payer could use up many nonces for nothing in its block."""
    paid = pay()
    nonce = bytes.fromhex(parse_authorization(paid.payload).nonce[2:])
    await anvil.automine(False)
    await send(anvil, *settling(pay(account(9).address, nonce=nonce)), sender="0x" + "dd" * 20)
    await send(anvil, OBOL.address, call("transfer(address,uint256)", SELLER, PRICE_ATOMIC), sender=BUYER.address)
    await anvil.mine()
    assert await witness.fate(paid, WANTED) == Used()


@pytest.mark.parametrize("blocks", [0, 70, 2100])
async def test_a_nonce_that_paid_somebody_else_never_pays_us(witness: EvmWitness, anvil: Anvil, blocks: int) -> None:
    nonce = secrets.token_bytes(32)
    theirs, ours = pay(account(9).address, nonce=nonce), pay(nonce=nonce)
    await settled(anvil)
    await anvil.send(*settling(theirs))
    await anvil.mine(blocks)
    assert await witness.fate(ours, WANTED) == NeverMoves(USED_ELSEWHERE)


async def test_a_use_elsewhere_that_is_not_deep_enough_is_unconfirmed(fake: FakeRpc, anvil: Anvil) -> None:
    witness = EvmWitness(EvmChain(JsonRpc([fake.url]), BASE_SEPOLIA, confirmations=3))
    nonce = secrets.token_bytes(32)
    await anvil.send(*settling(pay(account(9).address, nonce=nonce)))
    assert await witness.fate(pay(nonce=nonce), WANTED) == Unconfirmed()
    await anvil.mine(2)
    assert await witness.fate(pay(nonce=nonce), WANTED) == NeverMoves(USED_ELSEWHERE)
    await witness.close()


async def test_where_the_block_of_a_use_elsewhere_is_not_shown_whole_it_is_used(
    witness: EvmWitness, fake: FakeRpc, anvil: Anvil
) -> None:
    nonce = secrets.token_bytes(32)
    await anvil.send(*settling(pay(account(9).address, nonce=nonce)))
    fake.behaviours = {"eth_getBlockReceipts": Says(lambda all_: [one | {"logs": []} for one in all_])}
    assert await witness.fate(pay(nonce=nonce), WANTED) == Used()


async def test_a_use_elsewhere_costs_few_questions_and_then_none(
    witness: EvmWitness, fake: FakeRpc, anvil: Anvil
) -> None:
    nonce = secrets.token_bytes(32)
    ours = pay(nonce=nonce)
    await anvil.send(*settling(pay(account(9).address, nonce=nonce)))
    await anvil.mine(3000)
    await anvil.pass_time(700)
    fake.asked.clear()
    assert await witness.fate(ours, WANTED) == NeverMoves(USED_ELSEWHERE)
    assert fake.asked.total() <= 2 * 12 + 30
    fake.asked.clear()
    assert await witness.fate(ours, WANTED) == NeverMoves(USED_ELSEWHERE)
    assert fake.asked.total() == 0


async def test_what_was_invalidated_in_the_block_in_which_its_payer_paid_another_time_is_cancelled(
    witness: EvmWitness, anvil: Anvil
) -> None:
    paid, other = pay(), pay()
    await anvil.automine(False)
    await send(anvil, *settling(other), sender="0x" + "dd" * 20)
    await send(anvil, PERMIT2_ADDRESS, invalidation(paid), sender=BUYER.address)
    await anvil.mine()
    assert await witness.fate(paid, WANTED) == NeverMoves(CANCELLED)
    assert isinstance(await witness.fate(other, WANTED), Moved)


async def send(anvil: Anvil, to: str, data: bytes, *, sender: str) -> None:
    """Without a block for it."""
    await anvil.fund_native(sender)
    await anvil.rpc("anvil_impersonateAccount", sender)
    asked = {"from": sender, "to": to, "data": "0x" + data.hex(), "gas": hex(400_000)}
    await anvil.rpc("eth_sendTransaction", asked)


async def test_without_the_state_of_old_blocks_only_one_who_never_paid_the_amount_is_known_not_to_have(
    witness: EvmWitness, fake: FakeRpc, anvil: Anvil
) -> None:
    paid = pay()
    await invalidate(anvil, paid)
    block = await anvil.rpc("eth_blockNumber")
    await anvil.mine()

    def pruned(asked: Mapping[str, Any]) -> Behaviour | None:
        return Errors(-32000, "missing trie node") if int(asked["params"][1], 16) < int(block, 16) else None

    fake.behaviours = {"eth_call": Where(pruned)}
    assert await witness.fate(paid, WANTED) == NeverMoves(CANCELLED)
    await settled(anvil)
    assert await witness.fate(paid, WANTED) == Used()


async def test_just_used_is_what_was_used_in_the_newest_blocks(witness: EvmWitness, anvil: Anvil) -> None:
    await anvil.mine(JUST_BLOCKS)
    paid = await settled(anvil)
    assert [await witness.is_just_used(one, WANTED) for one in (paid, pay())] == [True, False]
    await anvil.mine(JUST_BLOCKS + 1)
    assert not await witness.is_just_used(paid, WANTED)


async def test_how_long_ago_it_moved_is_by_the_chains_clock(witness: EvmWitness, anvil: Anvil) -> None:
    paid = await settled(anvil)
    await anvil.pass_time(200)
    await anvil.pass_time(200)
    fate = await witness.fate(paid, WANTED)
    assert isinstance(fate, Moved)
    assert 400 <= fate.age_s <= 410


async def test_an_unused_nonce_needs_no_logs(witness: EvmWitness, fake: FakeRpc) -> None:
    fake.behaviours = {"eth_getLogs": Drops()}
    assert await witness.fate(pay(), WANTED) == StillOpen()


@pytest.mark.parametrize("code", ["0x", "0x60006000fd"])
async def test_where_permit2_is_not_there_nothing_is_known(witness: EvmWitness, anvil: Anvil, code: str) -> None:
    await anvil.rpc("anvil_setCode", PERMIT2_ADDRESS, code)
    with pytest.raises(ChainUnavailableError):
        await witness.fate(pay(), WANTED)


@pytest.mark.parametrize("answer", [LIMIT, Says(lambda _: "0x")])
async def test_a_node_that_does_not_tell_is_no_answer(witness: EvmWitness, fake: FakeRpc, answer: Behaviour) -> None:
    fake.behaviours = {"eth_call": answer}
    with pytest.raises(ChainUnavailableError):
        await witness.fate(pay(), WANTED)
