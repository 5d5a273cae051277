"""A block of a real chain as it is, and as a node shows it that does not show all."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from obol.adapters.block_content import block_content
from obol.adapters.chain_evm import EvmChain
from obol.adapters.rpc_http import JsonRpc
from obol.core.networks import BASE_SEPOLIA
from tests.adapters.payments import PRICE_ATOMIC, SELLER, account, pay, requirements
from tests.evm.anvil import USDC, Anvil
from tests.evm.authorizing import transfer_call
from tests.fakes.rpc import Behaviour, Drops, Errors, FakeRpc, Says

RECEIPTS = "eth_getBlockReceipts"
BLOCK = "eth_getBlockByNumber"


@pytest.fixture
async def fake(anvil: Anvil) -> AsyncIterator[FakeRpc]:
    await anvil.mint(account().address, PRICE_ATOMIC)
    async with FakeRpc(anvil.url) as fake:
        yield fake


@pytest.fixture
async def chain(fake: FakeRpc) -> AsyncIterator[EvmChain]:
    chain = EvmChain(JsonRpc([fake.url]), BASE_SEPOLIA)
    yield chain
    await chain.close()


async def test_a_block_shows_what_was_sent_and_logged(chain: EvmChain, fake: FakeRpc, anvil: Anvil) -> None:
    data = transfer_call(pay(requirements()))
    receipt = await anvil.send(USDC.address, data)
    number = int(receipt["blockNumber"], 16)
    content = await block_content(chain, number)
    assert fake.asked == {"eth_chainId": 1, BLOCK: 1, RECEIPTS: 1}
    assert content is not None
    assert list(content.logs) == await chain.logs(USDC.address, [], number, number)
    (moved,) = await anvil.transfers(SELLER)
    assert content.sent[moved.transaction].data == data
    assert content.sent[moved.transaction].to == USDC.address.lower()


async def test_an_empty_block_holds_nothing(chain: EvmChain, anvil: Anvil) -> None:
    await anvil.mine()
    content = await block_content(chain, await chain.newest_block())
    assert content is not None
    assert (content.logs, dict(content.sent)) == ((), {})


def each(**change: Any) -> Behaviour:
    return Says(lambda receipts: [one | change for one in receipts])


@pytest.mark.parametrize(
    "behaviours",
    [
        {RECEIPTS: Says(lambda _: None)},
        {RECEIPTS: Says(lambda _: [])},
        {RECEIPTS: Errors(-32601, "no such method")},
        {RECEIPTS: Errors(-32000, "no")},
        {RECEIPTS: Drops()},
        {RECEIPTS: each(logs=[])},
        {RECEIPTS: each(blockHash="0x" + "12" * 32)},
        {RECEIPTS: each(transactionHash="0x" + "12" * 32)},
        {RECEIPTS: Says(lambda receipts: [one | {"logs": one["logs"][1:]} for one in receipts])},
        {RECEIPTS: Says(lambda receipts: receipts * 2)},
        {BLOCK: Says(lambda _: None)},
        {BLOCK: Says(lambda block: block | {"number": "0x1"})},
        {BLOCK: Says(lambda block: block | {"logsBloom": "0x" + "00" * 256})},
        {BLOCK: Says(lambda block: block | {"transactions": []})},
    ],
)
async def test_a_block_that_is_not_shown_whole_is_not_known(
    chain: EvmChain, fake: FakeRpc, anvil: Anvil, behaviours: dict[str, Behaviour]
) -> None:
    receipt = await anvil.send(USDC.address, transfer_call(pay(requirements())))
    fake.behaviours = behaviours
    assert await block_content(chain, int(receipt["blockNumber"], 16)) is None
