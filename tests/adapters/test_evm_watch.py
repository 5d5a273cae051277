"""What was sent is looked after until its end, through lost answers, stuck transactions, refusals, reorganisations."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from obol.adapters.evm_abi import call_data
from obol.adapters.evm_calls import Mined, NotSent, Unmined
from obol.adapters.evm_sender import SendingLimits
from tests.adapters.payments import SELLER
from tests.adapters.senders import ADDRESS, Refusing, Senders, is_mint, mint, nonces_used, opening
from tests.evm.anvil import USDC, Anvil
from tests.fakes.rpc import Behaviour, Drops, Errors, FakeRpc, Says, Where

IMPATIENT = SendingLimits(rebroadcast_s=0.1, replace_after_s=0.2)
TOO_LARGE = Errors(-32000, "exceeds block gas limit")


@pytest.fixture
async def fake(anvil: Anvil) -> AsyncIterator[FakeRpc]:
    async with FakeRpc(anvil.url) as fake:
        yield fake


@pytest.fixture
async def senders(fake: FakeRpc, anvil: Anvil, tmp_path: Path) -> AsyncIterator[Senders]:
    async with opening(anvil, fake, tmp_path) as senders:
        yield senders


async def test_receipts_are_asked_for_once_in_a_block(senders: Senders, anvil: Anvil, fake: FakeRpc) -> None:
    sender = await senders.open(SendingLimits())
    await anvil.automine(False)
    await asyncio.gather(*(sender.run(mint(2**n), wait_s=0.7) for n in range(5)))
    assert fake.asked["eth_blockNumber"] > 3
    assert fake.asked["eth_getTransactionReceipt"] <= 5


async def test_receipts_are_asked_for_beside_each_other(senders: Senders, anvil: Anvil, fake: FakeRpc) -> None:
    """A node that is far away would be asked for one after the other otherwise."""
    sender = await senders.open(SendingLimits())
    await anvil.automine(False)
    together = asyncio.Barrier(5)

    async def with_the_others(_: Mapping[str, Any]) -> None:
        await together.wait()

    await asyncio.gather(*(sender.run(mint(2**n), wait_s=0.01) for n in range(5)))
    fake.behaviours = {"eth_getTransactionReceipt": Where(with_the_others)}
    await anvil.mine()
    mined = await asyncio.gather(*(sender.known(f"mint {2**n}", wait_s=5) for n in range(5)))
    assert all(isinstance(one, Mined) for one in mined)


# ------------------------------------------------------------------------------------------------------------ price


async def test_what_blocks_pass_by_is_replaced_at_a_higher_fee(senders: Senders, anvil: Anvil, fake: FakeRpc) -> None:
    sender = await senders.open(IMPATIENT)
    fake.behaviours = {"eth_sendRawTransaction": Errors(-32000, "already known")}  # and forgets it
    first = await sender.run(mint(7), wait_s=0.01)
    assert isinstance(first, Unmined)
    await fake.hears("eth_blockNumber", times=fake.asked["eth_blockNumber"] + 2)
    await anvil.mine(2)
    while (await sender.known("mint 7", wait_s=0.05)) == first:
        pass
    fake.behaviours = {}
    mined = await sender.known("mint 7", wait_s=5)
    assert isinstance(mined, Mined)
    assert mined.receipt.transaction != first.transaction
    await sender.close()
    call = await senders.written_down("mint 7")
    assert call is not None
    old, new = call.attempts
    assert 8 * new.max_fee_wei > 9 * old.max_fee_wei
    assert await anvil.balance(SELLER) == 7


async def test_what_has_become_too_cheap_is_replaced_before_any_block(
    senders: Senders, anvil: Anvil, fake: FakeRpc
) -> None:
    sender = await senders.open(IMPATIENT)
    sent: list[str] = []

    def dearer(asked: Mapping[str, Any]) -> Behaviour | None:
        """Takes another one than the first, of which it has lost the answer."""
        sent.extend(asked["params"])
        if len(sent) == 1:
            return Drops()
        return Errors(-32000, "max fee per gas less than block base fee") if sent[-1] == sent[0] else None

    fake.behaviours = {"eth_sendRawTransaction": Where(dearer)}
    assert isinstance(await sender.run(mint(7), wait_s=10), Mined)
    assert await anvil.balance(SELLER) == 7


async def test_a_chain_that_stands_still_raises_no_fee(senders: Senders, anvil: Anvil, fake: FakeRpc) -> None:
    sender = await senders.open(SendingLimits(rebroadcast_s=0.02, replace_after_s=0.02))
    await anvil.automine(False)
    first = await sender.run(mint(7), wait_s=0.01)
    await fake.asked_for("eth_sendRawTransaction", times=6)
    assert await sender.known("mint 7") == first
    await anvil.mine()
    assert isinstance(await sender.known("mint 7", wait_s=5), Mined)


# --------------------------------------------------------------------------------------- what no node takes


async def test_a_call_that_no_node_takes_is_given_up_and_stops_no_other(
    senders: Senders, anvil: Anvil, fake: FakeRpc
) -> None:
    """It may have been taken, so it is watched; from then on it is refused for good."""
    sender = await senders.open(IMPATIENT)
    refusing = Refusing(TOO_LARGE, 7, first=Drops())
    fake.behaviours = {"eth_sendRawTransaction": Where(refusing)}
    given_up, mined = await asyncio.gather(sender.run(mint(7), wait_s=10), sender.run(mint(8), wait_s=10))
    assert isinstance(given_up, NotSent)
    assert given_up.reason == "never_mined"
    assert isinstance(mined, Mined)
    assert await sender.known("mint 7") is None
    assert sender.unmined == 0
    fake.behaviours = {}
    assert isinstance(await sender.run(mint(7), wait_s=5), Mined)
    assert await anvil.balance(SELLER) == 15
    assert await nonces_used(anvil) == 3


async def test_what_was_written_down_before_a_crash_and_is_refused_after_it_is_given_up(
    senders: Senders, anvil: Anvil, fake: FakeRpc
) -> None:
    sender = await senders.open(IMPATIENT)
    fake.behaviours = {"eth_sendRawTransaction": Drops()}
    assert isinstance(await sender.run(mint(7), wait_s=0.01), Unmined)
    await sender.close()
    fake.behaviours = {"eth_sendRawTransaction": Where(Refusing(TOO_LARGE, 7, first=Drops()))}
    again = await senders.open(IMPATIENT)
    assert isinstance(await again.run(mint(8), wait_s=10), Mined)
    assert await again.known("mint 7") is None


async def test_a_filler_is_known_after_a_crash(senders: Senders, anvil: Anvil, fake: FakeRpc) -> None:
    """Mined while nobody looked: the call was not made, whatever receipt its nonce has."""
    sender = await senders.open(IMPATIENT)
    await anvil.automine(False)
    fake.behaviours = {"eth_sendRawTransaction": Where(Refusing(TOO_LARGE, 7, first=Drops()))}
    sent = await sender.run(mint(7), wait_s=0.01)
    await anvil.pending(1)
    assert await sender.known("mint 7") == sent  # not the filler
    await sender.close()
    await anvil.mine()
    again = await senders.open(IMPATIENT)
    await again.known("mint 7", wait_s=5)
    assert await again.known("mint 7") is None
    await again.close()
    assert await senders.written_down("mint 7") is None


async def test_a_call_that_is_mined_before_its_filler_was_made(senders: Senders, anvil: Anvil, fake: FakeRpc) -> None:
    """The node that lost its answer had it all the time."""
    sender = await senders.open(IMPATIENT)
    await anvil.automine(False)
    refusing = Refusing(TOO_LARGE, 7, first=Drops(after=True))
    fake.behaviours = {"eth_sendRawTransaction": Where(refusing)}
    await sender.run(mint(7), wait_s=0.01)
    await anvil.pending(1)

    await refusing.has_refused.wait()
    is_filled = asyncio.Event()

    def lose_the_filler(asked: Mapping[str, Any]) -> Behaviour:
        if is_mint(asked, 7):
            return TOO_LARGE
        is_filled.set()
        return Drops()

    fake.behaviours = {"eth_sendRawTransaction": Where(lose_the_filler)}
    await is_filled.wait()
    await anvil.mine()
    assert isinstance(await sender.known("mint 7", wait_s=5), Mined)
    assert await anvil.balance(SELLER) == 7


async def test_an_error_that_nobody_understands_is_borne_longer(senders: Senders, anvil: Anvil, fake: FakeRpc) -> None:
    sender = await senders.open(SendingLimits(rebroadcast_s=0.05, replace_after_s=0.1))
    fake.behaviours = {"eth_sendRawTransaction": Where(Refusing(Errors(-32000, "no."), 7, first=Drops()))}
    began_s = asyncio.get_running_loop().time()
    assert isinstance(await sender.run(mint(7), wait_s=10), NotSent)
    assert asyncio.get_running_loop().time() - began_s > 1


async def test_want_of_money_is_waited_out(senders: Senders, anvil: Anvil, fake: FakeRpc) -> None:
    """At the price it was offered."""
    sender = await senders.open(SendingLimits(rebroadcast_s=0.02, replace_after_s=0.02))
    poor = Errors(-32000, "insufficient funds for gas * price + value")
    fake.behaviours = {"eth_sendRawTransaction": Where(Refusing(poor, 7, first=Drops()))}
    sent = await sender.run(mint(7), wait_s=0.01)
    await fake.hears("eth_sendRawTransaction", times=6)
    assert await sender.known("mint 7") == sent
    fake.behaviours = {}
    mined = await sender.known("mint 7", wait_s=5)
    assert isinstance(mined, Mined)
    assert isinstance(sent, Unmined)
    assert mined.receipt.transaction == sent.transaction


async def test_a_nonce_that_another_program_used_ends_the_call(senders: Senders, anvil: Anvil, fake: FakeRpc) -> None:
    sender = await senders.open(IMPATIENT)
    fake.behaviours = {"eth_sendRawTransaction": Drops()}
    sending = asyncio.create_task(sender.run(mint(7), wait_s=10))
    await fake.hears("eth_sendRawTransaction")
    await anvil.send(USDC.address, call_data("mint(address,uint256)", SELLER, 1), sender=ADDRESS)
    fake.behaviours = {}
    ended = await sending
    assert isinstance(ended, NotSent)
    assert await sender.known("mint 7") is None
    assert await anvil.balance(SELLER) == 1


# --------------------------------------------------------------------------------------------------- reorganisations


async def test_a_settlement_that_a_reorganisation_took_back_is_sent_again(senders: Senders, anvil: Anvil) -> None:
    sender = await senders.open()
    before = await anvil.snapshot()
    assert isinstance(await sender.run(mint(7), wait_s=5), Mined)
    await anvil.revert(before)
    assert await anvil.balance(SELLER) == 0
    assert isinstance(await sender.known("mint 7", wait_s=20), Mined)
    assert await anvil.balance(SELLER) == 7


async def test_what_a_reorganisation_took_back_is_sent_again_after_a_restart(senders: Senders, anvil: Anvil) -> None:
    sender = await senders.open()
    before = await anvil.snapshot()
    for amount in (1, 2):
        assert isinstance(await sender.run(mint(amount), wait_s=5), Mined)
    await sender.close()
    await anvil.revert(before)
    again = await senders.open()
    assert isinstance(await again.run(mint(4), wait_s=15), Mined)
    assert await anvil.balance(SELLER) == 7


async def test_a_reorganisation_of_several_does_not_stop_the_next(senders: Senders, anvil: Anvil) -> None:
    """Nobody asks for them again, and no node has them any more."""
    sender = await senders.open()
    before = await anvil.snapshot()
    for n in range(3):
        assert isinstance(await sender.run(mint(2**n), wait_s=5), Mined)
    await anvil.revert(before)
    assert isinstance(await sender.run(mint(8), wait_s=10), Mined)
    assert await anvil.balance(SELLER) == 15


async def test_what_a_reorganisation_put_into_a_later_block_counts_when_it_is_deep_again(
    senders: Senders, anvil: Anvil
) -> None:
    sender = await senders.open(confirmations=3)
    before = await anvil.snapshot()
    sent = await sender.run(mint(7), wait_s=0.01)
    assert isinstance(sent, Unmined)
    raw = await anvil.rpc("eth_getRawTransactionByHash", sent.transaction)
    await anvil.mine(2)
    first = await sender.known("mint 7", wait_s=5)
    assert isinstance(first, Mined)
    await anvil.revert(before)
    await anvil.mine(3)
    await anvil.rpc("eth_sendRawTransaction", raw)
    assert await sender.known("mint 7", wait_s=0.5) == sent
    await anvil.mine(2)
    again = await sender.known("mint 7", wait_s=5)
    assert isinstance(again, Mined)
    assert again.receipt.block > first.receipt.block


async def test_a_node_that_is_behind_with_receipts_ends_nothing(senders: Senders, anvil: Anvil, fake: FakeRpc) -> None:
    """Its nonce is used: by the call itself."""
    sender = await senders.open(IMPATIENT)
    looks = 0

    def behind(_: Mapping[str, Any]) -> Behaviour | None:
        nonlocal looks
        looks += 1
        return Says(lambda _: None) if looks <= 2 else None

    fake.behaviours = {"eth_getTransactionReceipt": Where(behind), "eth_sendRawTransaction": Drops(after=True)}
    sending = asyncio.create_task(sender.run(mint(7), wait_s=10))
    await fake.asked_for("eth_sendRawTransaction")
    del fake.behaviours["eth_sendRawTransaction"]
    await fake.hears("eth_getTransactionReceipt", times=2)
    await anvil.mine()
    assert isinstance(await sending, Mined)
