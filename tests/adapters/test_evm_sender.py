"""The nonce manager, on a real chain: every call is mined once, or provably never was."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from obol.adapters.evm_abi import call_data
from obol.adapters.evm_calls import Call, Mined, NotSent, Unmined
from obol.adapters.evm_sender import SendingLimits
from obol.errors import ChainUnavailableError, SettingsError
from tests.adapters.payments import SELLER
from tests.adapters.senders import Gate, Senders, is_mint, mint, nonce_of, nonces_used, opening
from tests.evm.anvil import USDC, Anvil
from tests.fakes.rpc import Behaviour, Drops, Errors, Fails, FakeRpc, Says, Stalls, Where

POOR = Errors(-32000, "insufficient funds for gas * price + value")


@pytest.fixture
async def fake(anvil: Anvil) -> AsyncIterator[FakeRpc]:
    async with FakeRpc(anvil.url) as fake:
        yield fake


@pytest.fixture
async def senders(fake: FakeRpc, anvil: Anvil, tmp_path: Path) -> AsyncIterator[Senders]:
    async with opening(anvil, fake, tmp_path) as senders:
        yield senders


async def test_a_call_is_mined_and_known_by_its_key(senders: Senders, anvil: Anvil) -> None:
    sender = await senders.open()
    mined = await sender.run(mint(7), wait_s=5)
    assert isinstance(mined, Mined)
    assert mined.receipt.is_success
    assert await anvil.balance(SELLER) == 7
    assert await sender.known("mint 7") == mined
    assert await sender.known("mint 8") is None
    assert sender.unmined == 0


async def test_many_at_once_have_consecutive_nonces(senders: Senders, anvil: Anvil) -> None:
    sender = await senders.open()
    sent = await asyncio.gather(*(sender.run(mint(2**n), wait_s=10) for n in range(20)))
    assert all(isinstance(one, Mined) and one.receipt.is_success for one in sent)
    assert await anvil.balance(SELLER) == 2**20 - 1
    assert int(await anvil.rpc("eth_getTransactionCount", sender.address, "latest"), 16) == 20


async def test_several_can_be_pending_at_once(senders: Senders, anvil: Anvil) -> None:
    sender = await senders.open()
    await anvil.automine(False)
    sent = [await sender.run(mint(2**n), wait_s=0.01) for n in range(3)]
    assert all(isinstance(one, Unmined) for one in sent)
    assert sender.unmined == 3
    waiting = asyncio.gather(*(sender.known(f"mint {2**n}", wait_s=5) for n in range(3)))
    await anvil.mine()
    assert all(isinstance(one, Mined) for one in await waiting)
    assert await anvil.balance(SELLER) == 7


async def test_a_reverted_transaction_is_mined_and_not_sent_again(senders: Senders, anvil: Anvil) -> None:
    sender = await senders.open()
    call = Call(("k",), USDC.address, call_data("transfer(address,uint256)", SELLER, 5), 100_000)
    mined = await sender.run(call, wait_s=5)
    assert isinstance(mined, Mined)
    assert not mined.receipt.is_success
    assert await sender.known("k") == mined


async def test_a_key_that_was_sent_cannot_be_sent_again(senders: Senders, anvil: Anvil) -> None:
    sender = await senders.open()
    await sender.run(mint(7), wait_s=5)
    with pytest.raises(ValueError, match="before"):
        await sender.run(mint(7), wait_s=5)
    assert isinstance(await sender.run(mint(8), wait_s=5), Mined)
    assert await anvil.balance(SELLER) == 15


async def test_what_was_broadcast_before_a_crash_is_found_after_it(senders: Senders, anvil: Anvil) -> None:
    sender = await senders.open()
    await anvil.automine(False)
    assert isinstance(await sender.run(mint(7), wait_s=0.01), Unmined)
    await sender.close()
    await anvil.mine()
    again = await senders.open()
    assert isinstance(await again.known("mint 7", wait_s=5), Mined)
    assert await anvil.balance(SELLER) == 7


async def test_what_was_written_down_and_not_broadcast_is_broadcast_after_a_crash(
    senders: Senders, anvil: Anvil, fake: FakeRpc
) -> None:
    sender = await senders.open()
    fake.behaviours = {"eth_sendRawTransaction": Drops()}
    assert isinstance(await sender.run(mint(7), wait_s=0.01), Unmined)
    await sender.close()
    fake.behaviours = {}
    again = await senders.open()
    assert isinstance(await again.run(mint(8), wait_s=15), Mined)
    assert isinstance(await again.known("mint 7", wait_s=5), Mined)
    assert await anvil.balance(SELLER) == 15


@pytest.mark.parametrize("behaviour", [Drops(after=True), Drops(), Stalls()])
async def test_a_broadcast_whose_answer_was_lost_is_mined_once(
    senders: Senders, anvil: Anvil, fake: FakeRpc, behaviour: Drops | Stalls
) -> None:
    sender = await senders.open()
    fake.behaviours = {"eth_sendRawTransaction": behaviour}
    first = await sender.run(mint(7), wait_s=0.1)
    assert isinstance(first, Mined | Unmined)
    fake.behaviours = {}
    assert isinstance(await sender.run(mint(8), wait_s=15), Mined)
    assert isinstance(await sender.known("mint 7", wait_s=15), Mined)
    assert await anvil.balance(SELLER) == 15


async def test_what_a_node_refuses_was_not_sent_and_leaves_no_gap(
    senders: Senders, anvil: Anvil, fake: FakeRpc
) -> None:
    sender = await senders.open()
    fake.behaviours = {"eth_sendRawTransaction": POOR}
    refused = await sender.run(mint(7), wait_s=1)
    assert isinstance(refused, NotSent)
    assert "insufficient funds" in refused.message
    fake.behaviours = {}
    assert isinstance(await sender.run(mint(7), wait_s=5), Mined)
    assert await anvil.balance(SELLER) == 7


async def test_what_is_sent_again_unchanged_after_a_refusal_is_found_after_a_crash(
    senders: Senders, anvil: Anvil, fake: FakeRpc
) -> None:
    """Nonce, fees and call are the same, so the transaction is: it belongs to the call that was not refused."""
    sender = await senders.open()
    fake.behaviours = {"eth_sendRawTransaction": Errors(-32000, "insufficient funds for gas * price + value", times=1)}
    assert isinstance(await sender.run(mint(7), wait_s=1), NotSent)
    await anvil.automine(False)
    assert isinstance(await sender.run(mint(7), wait_s=0.01), Unmined)
    await sender.close()
    await anvil.mine()
    again = await senders.open()
    assert isinstance(await again.known("mint 7", wait_s=5), Mined)


async def test_a_refusal_among_others_leaves_no_gap(senders: Senders, anvil: Anvil, fake: FakeRpc) -> None:
    sender = await senders.open()
    fake.behaviours = {"eth_sendRawTransaction": Errors(-32000, "transaction underpriced by our policy", times=1)}
    sent = await asyncio.gather(*(sender.run(mint(2**n), wait_s=10) for n in range(5)))
    refused = [place for place, one in enumerate(sent) if isinstance(one, NotSent)]
    assert len(refused) == 1
    assert await anvil.balance(SELLER) == 2**5 - 1 - 2 ** refused[0]
    assert isinstance(await sender.run(mint(2 ** refused[0]), wait_s=10), Mined)
    assert await anvil.balance(SELLER) == 2**5 - 1
    assert sender.unmined == 0


async def test_a_gap_is_filled_when_the_chain_answers_again(senders: Senders, anvil: Anvil, fake: FakeRpc) -> None:
    sender = await senders.open()
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


async def test_a_nonce_that_another_program_used_is_given_up(senders: Senders, anvil: Anvil) -> None:
    sender = await senders.open()
    await anvil.send(USDC.address, call_data("mint(address,uint256)", SELLER, 1), sender=sender.address)
    assert isinstance(await sender.run(mint(7), wait_s=5), Mined)
    assert await anvil.balance(SELLER) == 8


async def test_gas_above_the_cap_is_not_paid(senders: Senders, anvil: Anvil) -> None:
    sender = await senders.open(SendingLimits(max_fee_wei=1))
    refused = await sender.run(mint(7), wait_s=1)
    assert isinstance(refused, NotSent)
    assert refused.reason == "gas_price_above_cap"
    assert await sender.too_dear() == refused


async def test_one_key_has_one_sender(senders: Senders) -> None:
    await senders.open()
    with pytest.raises(SettingsError, match="another process"):
        await senders.open()


async def test_without_a_chain_nothing_is_opened(senders: Senders, fake: FakeRpc) -> None:
    fake.behaviours = {"*": Drops()}
    with pytest.raises(ChainUnavailableError):
        await senders.open()
    fake.behaviours = {}
    await senders.open()


async def test_who_waits_may_be_cancelled_and_the_call_is_made(senders: Senders, anvil: Anvil) -> None:
    sender = await senders.open()
    task = asyncio.get_running_loop().create_task(sender.run(mint(7), wait_s=5))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert isinstance(await sender.run(mint(8), wait_s=5), Mined)
    assert isinstance(await sender.known("mint 7", wait_s=5), Mined)
    assert await anvil.balance(SELLER) == 15


async def test_a_send_and_a_receipt_per_payment_are_the_round_trips_of_sending(senders: Senders, fake: FakeRpc) -> None:
    sender = await senders.open()
    await sender.run(mint(1), wait_s=5)
    fake.asked.clear()
    await sender.run(mint(2), wait_s=5)
    assert fake.asked["eth_sendRawTransaction"] == 1
    assert fake.asked["eth_getTransactionReceipt"] <= 2
    assert not set(fake.asked) - {"eth_sendRawTransaction", "eth_getTransactionReceipt", "eth_blockNumber"}


@pytest.mark.parametrize(
    "second",
    [None, Errors(-32000, "nonce too low"), POOR],
    ids=["honest", "nonce too low", "lagging"],
)
async def test_a_refusal_after_a_lost_answer_is_no_refusal(
    senders: Senders, fake: FakeRpc, anvil: Anvil, second: Errors | None
) -> None:
    """The first endpoint takes the transaction and says nothing; the second knows of it, or lags behind."""
    async with FakeRpc(anvil.url) as other:
        sender = await senders.open(urls=[fake.url, other.url])
        fake.behaviours = {"eth_sendRawTransaction": Drops(after=True)}
        other.behaviours = {} if second is None else {"eth_sendRawTransaction": second}
        assert isinstance(await sender.run(mint(7), wait_s=5), Mined)
        assert isinstance(await sender.known("mint 7", wait_s=5), Mined)
        assert await anvil.balance(SELLER) == 7


async def test_a_node_that_forgot_a_receipt_reopens_nothing(senders: Senders, anvil: Anvil, fake: FakeRpc) -> None:
    sender = await senders.open()
    await sender.run(mint(7), wait_s=5)
    fake.behaviours = {"eth_getTransactionReceipt": Says(lambda _: None)}
    with pytest.raises(ChainUnavailableError, match="receipt"):
        await sender.known("mint 7")
    fake.behaviours = {}
    assert isinstance(await sender.known("mint 7"), Mined)
    assert sender.unmined == 0


# ----------------------------------------------------------------------------------------------- what is a refusal


async def test_what_was_refused_is_never_broadcast_again(senders: Senders, anvil: Anvil, fake: FakeRpc) -> None:
    """Also not while it waits to be taken back, because another call holds the nonces."""
    gate = Gate()
    sender = await senders.open(signer=gate)
    is_out, answer = asyncio.Event(), asyncio.Event()

    async def refuse(asked: Mapping[str, Any]) -> Behaviour | None:
        if not is_mint(asked, 7):
            return None
        is_out.set()
        await answer.wait()
        return Errors(-32000, "txpool is full") if fake.asked["eth_sendRawTransaction"] == 1 else None

    fake.behaviours = {"eth_sendRawTransaction": Where(refuse)}
    refused = asyncio.create_task(sender.run(mint(7), wait_s=5))
    await is_out.wait()
    gate.open.clear()
    other = asyncio.create_task(sender.run(mint(8), wait_s=5))
    answer.set()
    await asyncio.sleep(0.6)
    gate.open.set()
    assert isinstance(await refused, NotSent)
    assert isinstance(await other, Mined)
    assert await anvil.balance(SELLER) == 8


@pytest.mark.parametrize("text", ["request timed out", "unknown error", "replacement transaction underpriced"])
async def test_an_error_that_proves_nothing_is_no_refusal(
    senders: Senders, anvil: Anvil, fake: FakeRpc, text: str
) -> None:
    """The node may have taken it: nobody is told that it was not sent, and the nonce is not given out again."""
    sender = await senders.open()
    fake.behaviours = {"eth_sendRawTransaction": Errors(-32000, text, times=1)}
    assert isinstance(await sender.run(mint(7), wait_s=0.01), Unmined)
    sent = await asyncio.gather(sender.known("mint 7", wait_s=5), sender.run(mint(8), wait_s=5))
    assert all(isinstance(one, Mined) for one in sent)
    assert await nonces_used(anvil) == 2


async def test_a_node_that_takes_only_what_is_next_is_sent_many_at_once(
    senders: Senders, anvil: Anvil, fake: FakeRpc
) -> None:
    sender = await senders.open(SendingLimits())
    taken = 0

    async def strictly(asked: Mapping[str, Any]) -> Behaviour | None:
        nonlocal taken
        nonce = nonce_of(asked)
        await asyncio.sleep(0.05 * (nonce % 2))
        if nonce > taken:
            return Errors(-32000, f"nonce too high: next {taken}, got {nonce}")
        taken = max(taken, nonce + 1)
        return None

    fake.behaviours = {"eth_sendRawTransaction": Where(strictly)}
    sent = await asyncio.gather(*(sender.run(mint(2**n), wait_s=8) for n in range(8)))
    assert all(isinstance(one, Mined) for one in sent)
    assert await nonces_used(anvil) == 8
