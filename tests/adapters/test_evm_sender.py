"""The nonce manager, on a real chain: every call is mined once, through crashes, stalls and stuck transactions."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from obol.adapters.chain_evm import EvmChain
from obol.adapters.clock import SystemClock
from obol.adapters.evm_abi import call_data
from obol.adapters.evm_calls import Call, Mined, NotSent, Unmined
from obol.adapters.evm_sender import Sender, SendingLimits
from obol.adapters.evm_signing import LocalTransactionSigner
from obol.adapters.logs import make_logger
from obol.adapters.rpc_http import JsonRpc
from obol.core.networks import BASE_SEPOLIA
from obol.errors import ChainUnavailableError, SettingsError
from tests.adapters.payments import SELLER
from tests.evm.anvil import USDC, Anvil
from tests.fakes.rpc import Drops, Errors, Fails, FakeRpc, Says, Stalls

KEY = bytes([5] * 32)
QUICK = SendingLimits(rebroadcast_s=0.2)
OpenSender = Callable[..., Awaitable[Sender]]


@pytest.fixture
async def fake(anvil: Anvil) -> AsyncIterator[FakeRpc]:
    async with FakeRpc(anvil.url) as fake:
        yield fake


@pytest.fixture
async def open_sender(fake: FakeRpc, anvil: Anvil, tmp_path: Path) -> AsyncIterator[OpenSender]:
    opened: list[Sender] = []
    chains: list[EvmChain] = []
    await anvil.fund_native(LocalTransactionSigner(KEY).address)

    async def open_one(limits: SendingLimits = QUICK) -> Sender:
        chain = EvmChain(JsonRpc([fake.url], timeout_s=0.5), BASE_SEPOLIA)
        chains.append(chain)
        signer = LocalTransactionSigner(KEY)
        log = make_logger(as_json=True)
        sender = await Sender.open(chain, signer, tmp_path / "journal.sqlite3", SystemClock(), log, limits=limits)
        opened.append(sender)
        return sender

    yield open_one
    for sender in opened:
        await sender.close()
    for chain in chains:
        await chain.close()


def mint(amount_atomic: int) -> Call:
    """Something whose effect can be counted."""
    return Call(
        (f"mint {amount_atomic}",), USDC.address, call_data("mint(address,uint256)", SELLER, amount_atomic), 100_000
    )


async def test_a_call_is_mined_and_known_by_its_key(open_sender: OpenSender, anvil: Anvil) -> None:
    sender = await open_sender()
    mined = await sender.run(mint(7), wait_s=5)
    assert isinstance(mined, Mined)
    assert mined.receipt.is_success
    assert await anvil.balance(SELLER) == 7
    assert await sender.known("mint 7") == mined
    assert await sender.known("mint 8") is None
    assert sender.unmined == 0


async def test_many_at_once_have_consecutive_nonces(open_sender: OpenSender, anvil: Anvil) -> None:
    sender = await open_sender()
    sent = await asyncio.gather(*(sender.run(mint(2**n), wait_s=10) for n in range(20)))
    assert all(isinstance(one, Mined) and one.receipt.is_success for one in sent)
    assert await anvil.balance(SELLER) == 2**20 - 1
    assert int(await anvil.rpc("eth_getTransactionCount", sender.address, "latest"), 16) == 20


async def test_several_can_be_pending_at_once(open_sender: OpenSender, anvil: Anvil) -> None:
    sender = await open_sender()
    await anvil.automine(False)
    sent = [await sender.run(mint(2**n), wait_s=0.01) for n in range(3)]
    assert all(isinstance(one, Unmined) for one in sent)
    assert sender.unmined == 3
    waiting = asyncio.gather(*(sender.known(f"mint {2**n}", wait_s=5) for n in range(3)))
    await anvil.mine()
    assert all(isinstance(one, Mined) for one in await waiting)
    assert await anvil.balance(SELLER) == 7


async def test_a_reverted_transaction_is_mined_and_not_sent_again(open_sender: OpenSender, anvil: Anvil) -> None:
    sender = await open_sender()
    call = Call(("k",), USDC.address, call_data("transfer(address,uint256)", SELLER, 5), 100_000)
    mined = await sender.run(call, wait_s=5)
    assert isinstance(mined, Mined)
    assert not mined.receipt.is_success
    assert await sender.known("k") == mined


async def test_a_key_that_was_sent_cannot_be_sent_again(open_sender: OpenSender, anvil: Anvil) -> None:
    sender = await open_sender()
    await sender.run(mint(7), wait_s=5)
    with pytest.raises(ValueError, match="before"):
        await sender.run(mint(7), wait_s=5)
    assert isinstance(await sender.run(mint(8), wait_s=5), Mined)
    assert await anvil.balance(SELLER) == 15


async def test_what_was_broadcast_before_a_crash_is_found_after_it(open_sender: OpenSender, anvil: Anvil) -> None:
    sender = await open_sender()
    await anvil.automine(False)
    assert isinstance(await sender.run(mint(7), wait_s=0.01), Unmined)
    await sender.close()
    await anvil.mine()
    again = await open_sender()
    assert isinstance(await again.known("mint 7", wait_s=5), Mined)
    assert await anvil.balance(SELLER) == 7


async def test_what_was_written_down_and_not_broadcast_is_broadcast_after_a_crash(
    open_sender: OpenSender, anvil: Anvil, fake: FakeRpc
) -> None:
    sender = await open_sender()
    fake.behaviours = {"eth_sendRawTransaction": Drops()}
    assert isinstance(await sender.run(mint(7), wait_s=0.01), Unmined)
    await sender.close()
    fake.behaviours = {}
    again = await open_sender()
    assert isinstance(await again.run(mint(8), wait_s=15), Mined)
    assert isinstance(await again.known("mint 7", wait_s=5), Mined)
    assert await anvil.balance(SELLER) == 15


@pytest.mark.parametrize("behaviour", [Drops(after=True), Drops(), Stalls()])
async def test_a_broadcast_whose_answer_was_lost_is_mined_once(
    open_sender: OpenSender, anvil: Anvil, fake: FakeRpc, behaviour: Drops | Stalls
) -> None:
    sender = await open_sender()
    fake.behaviours = {"eth_sendRawTransaction": behaviour}
    first = await sender.run(mint(7), wait_s=0.1)
    assert isinstance(first, Mined | Unmined)
    fake.behaviours = {}
    assert isinstance(await sender.run(mint(8), wait_s=15), Mined)
    assert isinstance(await sender.known("mint 7", wait_s=15), Mined)
    assert await anvil.balance(SELLER) == 15


async def test_what_a_node_refuses_was_not_sent_and_leaves_no_gap(
    open_sender: OpenSender, anvil: Anvil, fake: FakeRpc
) -> None:
    sender = await open_sender()
    fake.behaviours = {"eth_sendRawTransaction": Errors(-32000, "insufficient funds for gas * price + value")}
    refused = await sender.run(mint(7), wait_s=1)
    assert isinstance(refused, NotSent)
    assert "insufficient funds" in refused.message
    fake.behaviours = {}
    assert isinstance(await sender.run(mint(7), wait_s=5), Mined)
    assert await anvil.balance(SELLER) == 7


async def test_what_is_sent_again_unchanged_after_a_refusal_is_found_after_a_crash(
    open_sender: OpenSender, anvil: Anvil, fake: FakeRpc
) -> None:
    """Nonce, fees and call are the same, so the transaction is: it belongs to the call that was not refused."""
    sender = await open_sender()
    fake.behaviours = {"eth_sendRawTransaction": Errors(-32000, "insufficient funds for gas * price + value", times=1)}
    assert isinstance(await sender.run(mint(7), wait_s=1), NotSent)
    await anvil.automine(False)
    assert isinstance(await sender.run(mint(7), wait_s=0.01), Unmined)
    await sender.close()
    await anvil.mine()
    again = await open_sender()
    assert isinstance(await again.known("mint 7", wait_s=5), Mined)


async def test_a_refusal_among_others_leaves_no_gap(open_sender: OpenSender, anvil: Anvil, fake: FakeRpc) -> None:
    sender = await open_sender()
    fake.behaviours = {"eth_sendRawTransaction": Errors(-32000, "transaction underpriced by our policy", times=1)}
    sent = await asyncio.gather(*(sender.run(mint(2**n), wait_s=10) for n in range(5)))
    refused = [place for place, one in enumerate(sent) if isinstance(one, NotSent)]
    assert len(refused) == 1
    assert await anvil.balance(SELLER) == 2**5 - 1 - 2 ** refused[0]
    assert isinstance(await sender.run(mint(2 ** refused[0]), wait_s=10), Mined)
    assert await anvil.balance(SELLER) == 2**5 - 1
    assert sender.unmined == 0


async def test_a_gap_is_filled_when_the_chain_answers_again(
    open_sender: OpenSender, anvil: Anvil, fake: FakeRpc
) -> None:
    sender = await open_sender()
    fake.behaviours = {
        "eth_sendRawTransaction": Errors(-32000, "transaction underpriced by our policy", times=1),
        "eth_getTransactionCount": Fails(),
    }
    sending = asyncio.gather(*(sender.run(mint(2**n), wait_s=0.2) for n in range(5)))
    sent = await sending
    refused = [place for place, one in enumerate(sent) if isinstance(one, NotSent)]
    assert len(refused) == 1
    fake.behaviours = {}
    others = [n for n in range(5) if n not in refused]
    mined = await asyncio.gather(*(sender.known(f"mint {2**n}", wait_s=10) for n in others))
    assert all(isinstance(one, Mined) for one in mined)
    assert await anvil.balance(SELLER) == sum(2**n for n in others)


async def test_a_stuck_transaction_is_replaced_at_a_higher_fee(open_sender: OpenSender, anvil: Anvil) -> None:
    sender = await open_sender(SendingLimits(replace_after_s=0.2, rebroadcast_s=0.1))
    await anvil.automine(False)
    first = await sender.run(mint(7), wait_s=0.01)
    assert isinstance(first, Unmined)
    async with asyncio.timeout(10):
        while (await sender.known("mint 7", wait_s=0.05)) == first:
            pass
    pending = await anvil.rpc("eth_getBlockByNumber", "pending", True)
    (replacing,) = pending["transactions"]
    assert replacing["hash"] != first.transaction
    await anvil.mine()
    mined = await sender.known("mint 7", wait_s=5)
    assert isinstance(mined, Mined)
    assert await anvil.balance(SELLER) == 7


async def test_a_nonce_that_another_program_used_is_given_up(open_sender: OpenSender, anvil: Anvil) -> None:
    sender = await open_sender()
    await anvil.send(USDC.address, call_data("mint(address,uint256)", SELLER, 1), sender=sender.address)
    assert isinstance(await sender.run(mint(7), wait_s=5), Mined)
    assert await anvil.balance(SELLER) == 8


async def test_a_settlement_that_a_reorganisation_took_back_is_sent_again(
    open_sender: OpenSender, anvil: Anvil
) -> None:
    sender = await open_sender()
    before = await anvil.snapshot()
    assert isinstance(await sender.run(mint(7), wait_s=5), Mined)
    await anvil.revert(before)
    assert await anvil.balance(SELLER) == 0
    assert isinstance(await sender.known("mint 7", wait_s=20), Mined)
    assert await anvil.balance(SELLER) == 7


async def test_what_a_reorganisation_took_back_is_sent_again_after_a_restart(
    open_sender: OpenSender, anvil: Anvil
) -> None:
    sender = await open_sender()
    before = await anvil.snapshot()
    for amount in (1, 2):
        assert isinstance(await sender.run(mint(amount), wait_s=5), Mined)
    await sender.close()
    await anvil.revert(before)
    again = await open_sender()
    assert isinstance(await again.run(mint(4), wait_s=15), Mined)
    assert await anvil.balance(SELLER) == 7


async def test_gas_above_the_cap_is_not_paid(open_sender: OpenSender, anvil: Anvil) -> None:
    sender = await open_sender(SendingLimits(max_fee_wei=1))
    refused = await sender.run(mint(7), wait_s=1)
    assert isinstance(refused, NotSent)
    assert refused.reason == "gas_price_above_cap"
    assert await sender.too_dear() == refused


async def test_one_key_has_one_sender(open_sender: OpenSender) -> None:
    await open_sender()
    with pytest.raises(SettingsError, match="another process"):
        await open_sender()


async def test_without_a_chain_nothing_is_opened(open_sender: OpenSender, fake: FakeRpc) -> None:
    fake.behaviours = {"*": Drops()}
    with pytest.raises(ChainUnavailableError):
        await open_sender()
    fake.behaviours = {}
    await open_sender()


async def test_who_waits_may_be_cancelled_and_the_call_is_made(open_sender: OpenSender, anvil: Anvil) -> None:
    sender = await open_sender()
    task = asyncio.get_running_loop().create_task(sender.run(mint(7), wait_s=5))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert isinstance(await sender.run(mint(8), wait_s=5), Mined)
    assert isinstance(await sender.known("mint 7", wait_s=5), Mined)
    assert await anvil.balance(SELLER) == 15


async def test_a_send_and_a_receipt_per_payment_are_the_round_trips_of_sending(
    open_sender: OpenSender, fake: FakeRpc
) -> None:
    sender = await open_sender()
    await sender.run(mint(1), wait_s=5)
    fake.asked.clear()
    await sender.run(mint(2), wait_s=5)
    assert fake.asked["eth_sendRawTransaction"] == 1
    assert fake.asked["eth_getTransactionReceipt"] <= 2
    assert not set(fake.asked) - {"eth_sendRawTransaction", "eth_getTransactionReceipt", "eth_blockNumber"}


async def test_receipts_are_asked_for_once_in_a_block(open_sender: OpenSender, anvil: Anvil, fake: FakeRpc) -> None:
    sender = await open_sender(SendingLimits())
    await anvil.automine(False)
    await asyncio.gather(*(sender.run(mint(2**n), wait_s=0.7) for n in range(5)))
    assert fake.asked["eth_blockNumber"] > 3
    assert fake.asked["eth_getTransactionReceipt"] <= 5


@pytest.mark.parametrize(
    "second",
    [None, Errors(-32000, "nonce too low"), Errors(-32000, "insufficient funds for gas * price + value")],
    ids=["honest", "nonce too low", "lagging"],
)
async def test_a_refusal_after_a_lost_answer_is_no_refusal(
    fake: FakeRpc, anvil: Anvil, tmp_path: Path, second: Errors | None
) -> None:
    """The first endpoint takes the transaction and says nothing; the second knows of it, or lags behind."""
    async with FakeRpc(anvil.url) as other:
        await anvil.fund_native(LocalTransactionSigner(KEY).address)
        chain = EvmChain(JsonRpc([fake.url, other.url], timeout_s=0.5), BASE_SEPOLIA)
        journal, log = tmp_path / "two.sqlite3", make_logger(as_json=True)
        sender = await Sender.open(chain, LocalTransactionSigner(KEY), journal, SystemClock(), log, limits=QUICK)
        fake.behaviours = {"eth_sendRawTransaction": Drops(after=True)}
        other.behaviours = {} if second is None else {"eth_sendRawTransaction": second}
        assert isinstance(await sender.run(mint(7), wait_s=5), Mined)
        assert isinstance(await sender.known("mint 7", wait_s=5), Mined)
        assert await anvil.balance(SELLER) == 7
        await sender.close()
        await chain.close()


async def test_a_node_that_forgot_a_receipt_reopens_nothing(
    open_sender: OpenSender, anvil: Anvil, fake: FakeRpc
) -> None:
    sender = await open_sender()
    await sender.run(mint(7), wait_s=5)
    fake.behaviours = {"eth_getTransactionReceipt": Says(lambda _: None)}
    with pytest.raises(ChainUnavailableError, match="receipt"):
        await sender.known("mint 7")
    fake.behaviours = {}
    assert isinstance(await sender.known("mint 7"), Mined)
    assert sender.unmined == 0
