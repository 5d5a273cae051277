"""The block of a use, found in the state of a real chain."""

from collections.abc import AsyncIterator, Mapping
from math import log2
from typing import Any

import pytest

from obol.adapters.chain_evm import EvmChain
from obol.adapters.evm_abi import call_data, decode_bool
from obol.adapters.rpc_http import JsonRpc
from obol.adapters.use_search import Flag, block_of_use
from obol.core.networks import BASE_SEPOLIA
from tests.adapters.payments import account, pay, requirements
from tests.evm.anvil import USDC, Anvil
from tests.evm.authorizing import cancel_call
from tests.fakes.rpc import Behaviour, Drops, Errors, FakeRpc, Says, Where

PAYER = account()
PAID = pay(requirements())
NONCE = bytes.fromhex(PAID.payload.signed.nonce[2:])
FLAG = Flag(USDC.address, call_data("authorizationState(address,bytes32)", PAYER.address, NONCE), decode_bool)
GONE = Errors(-32000, "missing trie node")


@pytest.fixture
async def fake(anvil: Anvil) -> AsyncIterator[FakeRpc]:
    async with FakeRpc(anvil.url) as fake:
        yield fake


@pytest.fixture
async def chain(fake: FakeRpc) -> AsyncIterator[EvmChain]:
    chain = EvmChain(JsonRpc([fake.url]), BASE_SEPOLIA)
    yield chain
    await chain.close()


async def used(anvil: Anvil, chain: EvmChain, *, before: int, after: int) -> int:
    """The block of a use, with so many before and after it."""
    await anvil.mine(before)
    await anvil.send(USDC.address, cancel_call(PAYER, "0x" + NONCE.hex()))
    block = await chain.newest_block()
    if after:
        await anvil.mine(after)
    return block


def since(block: int, behaviour: Behaviour) -> Where:
    """A node that has only the state of later blocks."""

    def choose(asked: Mapping[str, Any]) -> Behaviour | None:
        return behaviour if int(asked["params"][1], 16) < block else None

    return Where(choose)


@pytest.mark.parametrize("after", [0, 1, 63, 64, 65, 500, 1500])
async def test_the_block_of_a_use_is_found(chain: EvmChain, fake: FakeRpc, anvil: Anvil, after: int) -> None:
    block = await used(anvil, chain, before=1000, after=after)
    last = await chain.newest_block()
    fake.asked.clear()
    assert await block_of_use(chain, FLAG, last) == block
    assert fake.asked.total() <= 2 * log2(max(64, after)) + 2


@pytest.mark.parametrize("behaviour", [GONE, Says(lambda _: "0x")])
async def test_it_is_found_where_older_states_are_gone(
    chain: EvmChain, fake: FakeRpc, anvil: Anvil, behaviour: Behaviour
) -> None:
    block = await used(anvil, chain, before=300, after=90)
    last = await chain.newest_block()
    fake.behaviours = {"eth_call": since(block - 20, behaviour)}
    assert await block_of_use(chain, FLAG, last) == block


async def test_only_a_block_before_which_it_was_unused_counts(chain: EvmChain, fake: FakeRpc, anvil: Anvil) -> None:
    block = await used(anvil, chain, before=300, after=90)
    last = await chain.newest_block()
    for pruned in (block, block + 50, last):
        fake.behaviours = {"eth_call": since(pruned, GONE)}
        assert await block_of_use(chain, FLAG, last) is None


async def test_what_was_used_in_the_first_block_is_not_found(chain: EvmChain, fake: FakeRpc, anvil: Anvil) -> None:
    fake.behaviours = {"eth_call": Says(lambda _: f"0x{1:064x}")}
    await anvil.mine(100)
    assert await block_of_use(chain, FLAG, 100) is None


async def test_a_node_that_is_down_is_not_asked_for_long(chain: EvmChain, fake: FakeRpc, anvil: Anvil) -> None:
    await anvil.mine(1000)
    fake.behaviours = {"eth_call": Drops()}
    assert await block_of_use(chain, FLAG, 1000) is None
    assert fake.asked["eth_call"] <= 2 * 6  # a dropped connection is tried twice
