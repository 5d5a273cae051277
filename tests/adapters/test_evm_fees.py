"""What is offered for gas, on a real chain."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from obol.adapters.chain_evm import EvmChain
from obol.adapters.evm_calls import NotSent
from obol.adapters.evm_fees import Fees, GasPrice
from obol.core.networks import BASE_SEPOLIA
from tests.evm.anvil import Anvil, rpc_of
from tests.fakes.clock import FakeClock

GWEI = 10**9


@pytest.fixture
async def chain(anvil: Anvil) -> AsyncIterator[EvmChain]:
    chain = EvmChain(rpc_of(anvil), BASE_SEPOLIA)
    yield chain
    await chain.close()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


async def set_base_fee(anvil: Anvil, wei: int) -> None:
    await anvil.rpc("anvil_setNextBlockBaseFeePerGas", hex(wei))
    await anvil.mine()


async def now(price: GasPrice) -> Fees:
    fees = await price.now()
    assert isinstance(fees, Fees)
    return fees


async def test_an_offer_has_room_for_twice_the_base_fee(anvil: Anvil, chain: EvmChain, clock: FakeClock) -> None:
    await set_base_fee(anvil, 3 * GWEI)
    tip_wei = await chain.priority_fee()
    assert await now(GasPrice(chain, clock, cap_wei=100 * GWEI)) == Fees(6 * GWEI + tip_wei, tip_wei)
    assert await now(GasPrice(chain, clock, cap_wei=5 * GWEI)) == Fees(5 * GWEI, tip_wei)


async def test_above_the_cap_nothing_is_sent(anvil: Anvil, chain: EvmChain, clock: FakeClock) -> None:
    await set_base_fee(anvil, 3 * GWEI)
    refused = await GasPrice(chain, clock, cap_wei=3 * GWEI).now()
    assert isinstance(refused, NotSent)
    assert refused.reason == "gas_price_above_cap"


async def test_a_price_is_asked_for_once_in_two_seconds(anvil: Anvil, chain: EvmChain, clock: FakeClock) -> None:
    await set_base_fee(anvil, 3 * GWEI)
    price = GasPrice(chain, clock, cap_wei=100 * GWEI)
    first = await now(price)
    await set_base_fee(anvil, 5 * GWEI)
    assert await now(price) == first
    clock.advance(2.1)
    assert (await now(price)).max_fee_wei == first.max_fee_wei + 4 * GWEI


async def test_a_replacement_offers_an_eighth_more(anvil: Anvil, chain: EvmChain, clock: FakeClock) -> None:
    """What nodes want to see; what it costs now where that is more still."""
    price = GasPrice(chain, clock, cap_wei=100 * GWEI)
    fees = await now(price)
    raised = await price.for_replacing(fees)
    assert raised == Fees(fees.max_fee_wei * 9 // 8 + 1, fees.priority_fee_wei * 9 // 8 + 1)
    await set_base_fee(anvil, 20 * GWEI)
    clock.advance(2.1)
    assert await price.for_replacing(fees) == replace(raised, max_fee_wei=40 * GWEI + fees.priority_fee_wei)


async def test_an_offer_is_not_raised_beyond_half_above_the_price(chain: EvmChain, clock: FakeClock) -> None:
    price = GasPrice(chain, clock, cap_wei=100 * GWEI)
    fees = first = await now(price)
    raises = 0
    while (raised := await price.for_replacing(fees)) is not None:
        fees, raises = raised, raises + 1
    assert raises == 4
    assert 3 * first.priority_fee_wei <= 2 * fees.priority_fee_wei < 4 * first.priority_fee_wei


async def test_no_offer_is_above_the_cap(anvil: Anvil, chain: EvmChain, clock: FakeClock) -> None:
    """Also where the price is: then what was offered may go up to the cap."""
    await set_base_fee(anvil, 9 * GWEI)
    price = GasPrice(chain, clock, cap_wei=4 * GWEI)
    assert await price.for_replacing(Fees(3 * GWEI, GWEI)) == Fees(3 * GWEI, GWEI).raised()
    assert await price.for_replacing(Fees(4 * GWEI, GWEI)) is None
