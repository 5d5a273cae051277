"""What is signed, and what is believed of a node's answer to it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from obol.adapters.chain_evm import EvmChain
from obol.adapters.evm_calls import Call
from obol.adapters.evm_fees import Fees
from obol.adapters.evm_journal import Attempt
from obol.adapters.evm_outbox import Answer, Outbox
from obol.adapters.evm_refusals import Meaning
from obol.adapters.evm_signing import LocalTransactionSigner
from obol.adapters.logs import make_logger
from obol.adapters.rpc_http import JsonRpc
from obol.core.networks import BASE_SEPOLIA
from tests.adapters.payments import SELLER
from tests.adapters.senders import ADDRESS, KEY, mint, nonces_used
from tests.evm.anvil import Anvil
from tests.fakes.clock import FakeClock
from tests.fakes.rpc import Behaviour, Drops, Errors, FakeRpc, Stalls

FEES = Fees(10 * 10**9, 10**9)


@asynccontextmanager
async def outbox(urls: Sequence[str]) -> AsyncIterator[Outbox]:
    chain = EvmChain(JsonRpc(urls, timeout_s=0.3), BASE_SEPOLIA)
    outbox = Outbox(chain, LocalTransactionSigner(KEY), FakeClock(), make_logger(as_json=True))
    try:
        yield outbox
    finally:
        await outbox.close()
        await chain.close()


@pytest.fixture
async def rich(anvil: Anvil) -> Anvil:
    await anvil.fund_native(ADDRESS)
    return anvil


async def test_what_was_signed_is_what_is_mined(rich: Anvil) -> None:
    async with outbox([rich.url]) as out:
        attempt = await out.sign(0, mint(7), FEES)
        assert await out.broadcast(attempt) == Answer(Meaning.KEPT)
    receipt = await rich.mined(attempt.transaction)
    assert receipt["status"] == "0x1"
    assert await rich.balance(SELLER) == 7
    assert (attempt.max_fee_wei, attempt.priority_fee_wei, attempt.is_filler) == (10 * 10**9, 10**9, False)
    assert attempt.at_s == FakeClock().now_s()


async def test_a_filler_uses_a_nonce_and_does_nothing(rich: Anvil) -> None:
    async with outbox([rich.url]) as out:
        attempt = await out.sign(0, out.filler, FEES, is_filler=True)
        await out.broadcast(attempt)
    receipt = await rich.mined(attempt.transaction)
    assert (receipt["status"], receipt["to"], int(receipt["gasUsed"], 16)) == ("0x1", ADDRESS.lower(), 21_000)
    assert attempt.is_filler
    assert await nonces_used(rich) == 1


async def test_a_node_that_knows_a_transaction_has_kept_it(rich: Anvil) -> None:
    await rich.automine(False)
    async with outbox([rich.url]) as out:
        attempt = await out.sign(0, mint(7), FEES)
        await out.broadcast(attempt)
        assert (await out.broadcast(attempt)).meaning is Meaning.KEPT


@pytest.mark.parametrize(
    ("nonce", "call", "fees", "meaning"),
    [
        (0, Call((), SELLER, b"", 20_000), FEES, Meaning.REFUSED),
        (0, Call((), SELLER, b"", 2**40), FEES, Meaning.REFUSED),
        (0, mint(7), Fees(10**18, 1), Meaning.POOR),
        (0, mint(7), Fees(1, 1), Meaning.CHEAP),
    ],
)
async def test_what_a_real_node_refuses_was_not_kept(
    rich: Anvil, nonce: int, call: Call, fees: Fees, meaning: Meaning
) -> None:
    async with outbox([rich.url]) as out:
        answer = await out.broadcast(await out.sign(nonce, call, fees))
    assert (answer.meaning, answer.is_proof) == (meaning, True)
    assert answer.text


async def test_a_used_nonce_is_told(rich: Anvil) -> None:
    async with outbox([rich.url]) as out:
        await rich.mined((await _sent(out, mint(7))).transaction)
        answer = await out.broadcast(await out.sign(0, mint(8), FEES))
    assert (answer.meaning, answer.is_proof) == (Meaning.USED, True)


async def test_a_rival_in_the_pool_is_told(rich: Anvil) -> None:
    await rich.automine(False)
    async with outbox([rich.url]) as out:
        await _sent(out, mint(7))
        answer = await out.broadcast(await out.sign(0, mint(8), FEES))
    assert (answer.meaning, answer.is_proof) == (Meaning.RIVAL, False)


@pytest.mark.parametrize("behaviour", [Drops(), Drops(after=True), Stalls()])
async def test_without_an_answer_a_node_may_have_it(rich: Anvil, behaviour: Behaviour) -> None:
    async with FakeRpc(rich.url) as fake, outbox([fake.url]) as out:
        fake.behaviours = {"eth_sendRawTransaction": behaviour}
        answer = await out.broadcast(await out.sign(0, mint(7), FEES))
    assert (answer.meaning, answer.is_proof) == (Meaning.LOST, False)


async def test_a_refusal_proves_nothing_when_another_node_may_have_it(rich: Anvil) -> None:
    async with FakeRpc(rich.url) as first, FakeRpc(rich.url) as second, outbox([first.url, second.url]) as out:
        first.behaviours = {"eth_sendRawTransaction": Drops(after=True)}
        second.behaviours = {"eth_sendRawTransaction": Errors(-32000, "exceeds block gas limit")}
        answer = await out.broadcast(await out.sign(0, mint(7), FEES))
    assert (answer.meaning, answer.is_proof) == (Meaning.REFUSED, False)


async def _sent(out: Outbox, call: Call) -> Attempt:
    attempt = await out.sign(0, call, FEES)
    await out.broadcast(attempt)
    return attempt
