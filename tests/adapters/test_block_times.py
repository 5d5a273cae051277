"""Points in time as blocks of a real chain."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from obol.adapters.block_times import SEARCH_S, blocks_of, first_block_at
from obol.adapters.chain_evm import EvmChain
from obol.adapters.rpc_http import JsonRpc
from obol.core.networks import BASE_SEPOLIA
from obol.errors import ChainUnavailableError
from obol.x402.authorization import parse_authorization
from tests.adapters.payments import FOREVER_S, requirements, unsigned
from tests.evm.anvil import Anvil
from tests.fakes.rpc import Drops, FakeRpc

AUTHORIZATION = parse_authorization(unsigned(requirements()).payload)


@pytest.fixture
async def fake(anvil: Anvil) -> AsyncIterator[FakeRpc]:
    async with FakeRpc(anvil.url) as fake:
        yield fake


@pytest.fixture
async def chain(fake: FakeRpc) -> AsyncIterator[EvmChain]:
    chain = EvmChain(JsonRpc([fake.url]), BASE_SEPOLIA)
    yield chain
    await chain.close()


async def times(anvil: Anvil) -> list[int]:
    """Of some blocks that are minutes apart, oldest first; the first of them is at the newest block there is."""
    found = [await anvil.now_s()]
    for _ in range(4):
        await anvil.pass_time(60)
        found.append(await anvil.now_s())
    return found


async def test_the_first_block_at_a_time(chain: EvmChain, anvil: Anvil) -> None:
    start = await chain.newest_block()
    found = await times(anvil)
    last = await chain.newest_block()
    assert [await first_block_at(chain, time_s, last) for time_s in found[1:]] == [start + n for n in range(1, 5)]
    assert await first_block_at(chain, found[1] + 1, last) == start + 2
    assert await first_block_at(chain, 0, last) == 0
    assert await first_block_at(chain, found[-1] + 60, last) == last


async def test_the_blocks_of_a_window_hold_all_that_could_use_it(chain: EvmChain, anvil: Anvil) -> None:
    start = await chain.newest_block()
    found = await times(anvil)
    window = replace(AUTHORIZATION, valid_after_s=found[1], valid_before_s=found[2])
    assert await blocks_of(chain, window) == (start + 1, start + 3)
    is_open = replace(AUTHORIZATION, valid_after_s=found[3], valid_before_s=FOREVER_S)
    assert await blocks_of(chain, is_open) == (start + 3, start + 4)


async def test_a_window_without_a_beginning_is_as_long_as_anybody_accepts(chain: EvmChain, anvil: Anvil) -> None:
    await anvil.pass_time(SEARCH_S)
    start = await chain.newest_block()
    end_s = await anvil.now_s() + 60
    await anvil.pass_time(3600)
    first, last = await blocks_of(chain, replace(AUTHORIZATION, valid_after_s=0, valid_before_s=end_s))
    assert (first, last) == (start, start + 1)


async def test_where_the_blocks_cannot_be_asked_for_that_is_not_known(chain: EvmChain, fake: FakeRpc) -> None:
    fake.behaviours = {"eth_getBlockByNumber": Drops()}
    with pytest.raises(ChainUnavailableError):
        await blocks_of(chain, AUTHORIZATION)
