"""Whether there is money for gas, as far as a facilitator looks."""

from collections.abc import AsyncIterator

import pytest

from obol.adapters.chain_evm import EvmChain
from obol.adapters.gas_account import ENOUGH_AGE_S, SHORT_AGE_S, GasAccount
from obol.adapters.logs import make_logger
from obol.adapters.rpc_http import JsonRpc
from obol.core.networks import BASE_SEPOLIA
from tests.adapters.payments import account
from tests.evm.anvil import Anvil
from tests.fakes.clock import FakeClock
from tests.fakes.rpc import FakeRpc

ADDRESS = account(77).address


@pytest.fixture
async def fake(anvil: Anvil) -> AsyncIterator[FakeRpc]:
    async with FakeRpc(anvil.url) as fake:
        yield fake


@pytest.fixture
async def chain(fake: FakeRpc) -> AsyncIterator[EvmChain]:
    chain = EvmChain(JsonRpc([fake.url]), BASE_SEPOLIA)
    yield chain
    await chain.close()


async def test_an_empty_account_is_named_with_what_it_has_and_may_need(
    chain: EvmChain, capsys: pytest.CaptureFixture[str]
) -> None:
    gas = GasAccount(chain, ADDRESS, FakeClock(), make_logger(as_json=True))
    shortage = await gas.shortage()
    assert shortage.startswith(f"{ADDRESS} has 0 wei on base-sepolia to pay gas with, and a settlement may take ")
    assert capsys.readouterr().err.count("gas_account_short") == 1


async def test_who_funds_it_does_not_wait_long(chain: EvmChain, anvil: Anvil) -> None:
    clock = FakeClock()
    gas = GasAccount(chain, ADDRESS, clock, make_logger(as_json=True))
    assert await gas.shortage()
    await anvil.fund_native(ADDRESS)
    assert await gas.shortage()
    clock.advance(SHORT_AGE_S + 1)
    assert not await gas.shortage()


async def test_an_account_that_has_enough_is_seldom_read(chain: EvmChain, anvil: Anvil, fake: FakeRpc) -> None:
    clock = FakeClock()
    await anvil.fund_native(ADDRESS)
    gas = GasAccount(chain, ADDRESS, clock, make_logger(as_json=True))
    for _ in range(5):
        assert not await gas.shortage()
        clock.advance(ENOUGH_AGE_S / 5)
    assert fake.asked["eth_getBalance"] == 1
    clock.advance(1)
    await gas.shortage()
    assert fake.asked["eth_getBalance"] == 2
