"""The nonces of one key, on a real chain: none is left out, whatever was refused, and whatever a node counts."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from obol.adapters.evm_calls import Mined, NotSent, Unmined
from obol.errors import ChainUnavailableError
from tests.adapters.payments import SELLER
from tests.adapters.senders import ADDRESS, Gate, Senders, is_mint, mint, nonces_used, opening
from tests.evm.anvil import Anvil
from tests.fakes.rpc import Behaviour, Drops, Errors, Fails, FakeRpc, Says, Where

POOR = Errors(-32000, "insufficient funds for gas * price + value")


@pytest.fixture
async def fake(anvil: Anvil) -> AsyncIterator[FakeRpc]:
    async with FakeRpc(anvil.url) as fake:
        yield fake


@pytest.fixture
async def senders(fake: FakeRpc, anvil: Anvil, tmp_path: Path) -> AsyncIterator[Senders]:
    async with opening(anvil, fake, tmp_path) as senders:
        yield senders


async def test_every_gap_is_filled_though_the_signer_was_away(senders: Senders, anvil: Anvil, fake: FakeRpc) -> None:
    gate = Gate()
    sender = await senders.open(signer=gate)
    answer = asyncio.Event()

    async def refuse(asked: Mapping[str, Any]) -> Behaviour | None:
        await answer.wait()
        return POOR if is_mint(asked, 1) or is_mint(asked, 2) else None

    fake.behaviours = {"eth_sendRawTransaction": Where(refuse), "eth_getTransactionCount": Fails()}
    sending = asyncio.gather(*(sender.run(mint(2**n), wait_s=10) for n in range(3)))
    await fake.hears("eth_sendRawTransaction", times=3)
    gate.away = {gate.asked + 2}  # the second filler
    answer.set()
    await fake.hears("eth_getTransactionCount", times=2)
    del fake.behaviours["eth_getTransactionCount"]
    first, second, third = await sending
    assert isinstance(first, NotSent)
    assert isinstance(second, NotSent)
    assert isinstance(third, Mined)
    assert await nonces_used(anvil) == 3


async def test_a_count_that_was_too_high_once_costs_no_gas(senders: Senders, anvil: Anvil, fake: FakeRpc) -> None:
    """What was sent far ahead of its turn waits for it; new calls take the nonces before."""
    fake.behaviours = {"eth_getTransactionCount": Says(lambda _: hex(20))}
    sender = await senders.open()
    assert isinstance(await sender.run(mint(2**20), wait_s=0.01), Unmined)
    await sender.close()
    fake.behaviours = {}
    again = await senders.open()
    for n in range(4):
        assert isinstance(await again.run(mint(2**n), wait_s=5), Mined)
    assert isinstance(await again.known(f"mint {2**20}", wait_s=8), Mined)  # so few are filled
    assert await anvil.balance(SELLER) == 2**20 + 15


async def test_a_call_far_ahead_keeps_nobody_from_sending(senders: Senders, anvil: Anvil, fake: FakeRpc) -> None:
    fake.behaviours = {"eth_getTransactionCount": Says(lambda _: hex(2**30))}
    sender = await senders.open()
    assert isinstance(await sender.run(mint(7), wait_s=0.01), Unmined)
    await sender.close()
    fake.behaviours = {}
    again = await senders.open()
    assert isinstance(await again.run(mint(8), wait_s=5), Mined)
    assert isinstance(await again.known("mint 7"), Unmined)
    assert await nonces_used(anvil) == 1


@pytest.mark.parametrize("count", [2**64 - 1, 2**40 + 1])
async def test_a_count_that_nobody_reaches_is_not_believed(senders: Senders, fake: FakeRpc, count: int) -> None:
    fake.behaviours = {"eth_getTransactionCount": Says(lambda _: hex(count))}
    with pytest.raises(ChainUnavailableError, match=f"the node counts {count} transactions of {ADDRESS}"):
        await senders.open()


@pytest.mark.parametrize("count", [0, 5001])
async def test_a_count_far_off_the_journals_is_not_believed(
    senders: Senders, anvil: Anvil, fake: FakeRpc, count: int
) -> None:
    """From a node that has just begun to follow the chain, say: nothing is sent again, and nothing left out."""
    await anvil.rpc("anvil_setNonce", ADDRESS, hex(3_999))
    sender = await senders.open()
    assert isinstance(await sender.run(mint(7), wait_s=5), Mined)
    await sender.close()
    fake.behaviours = {"eth_getTransactionCount": Says(lambda _: hex(count))}
    with pytest.raises(ChainUnavailableError, match=f"counts {count} transactions .* the journal knows of 4000"):
        await senders.open()
    await anvil.rpc("anvil_setNonce", ADDRESS, hex(5_000))  # by another program
    fake.behaviours = {}
    again = await senders.open()
    assert isinstance(await again.run(mint(8), wait_s=5), Mined)


async def test_what_is_refused_in_a_row_costs_no_gas(senders: Senders, anvil: Anvil, fake: FakeRpc) -> None:
    """Nonces before calls that are on their way are filled only when one of those was taken."""
    sender = await senders.open()

    async def refuse(_: Mapping[str, Any]) -> Behaviour | None:
        await asyncio.sleep(0.05)
        return POOR

    fake.behaviours = {"eth_sendRawTransaction": Where(refuse)}
    sent = await asyncio.gather(*(sender.run(mint(n), wait_s=0.1) for n in range(1, 21)))
    assert all(isinstance(one, NotSent) for one in sent)
    assert sender.unmined == 0
    fake.behaviours = {}
    assert isinstance(await sender.run(mint(100), wait_s=5), Mined)
    assert await nonces_used(anvil) == 1


async def test_nothing_is_sent_behind_what_the_account_cannot_pay(
    senders: Senders, anvil: Anvil, fake: FakeRpc
) -> None:
    sender = await senders.open()
    fake.behaviours = {"eth_sendRawTransaction": Drops()}
    assert isinstance(await sender.run(mint(7), wait_s=0.01), Unmined)
    fake.behaviours = {"eth_sendRawTransaction": POOR}
    await fake.hears("eth_sendRawTransaction", times=fake.asked["eth_sendRawTransaction"] + 2)
    refused = await sender.run(mint(8), wait_s=1)
    assert isinstance(refused, NotSent)
    assert refused.reason == "gas_account_empty"
    assert await sender.too_dear() == refused
    fake.behaviours = {}
    assert isinstance(await sender.known("mint 7", wait_s=5), Mined)
    assert isinstance(await sender.run(mint(8), wait_s=5), Mined)
