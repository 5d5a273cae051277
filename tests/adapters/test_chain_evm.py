"""One chain, read through our client: from anvil, and from a node that cannot be believed."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import pytest

from obol.adapters.chain_evm import TRANSFER, EvmChain, RevertedError, TokenDomain, address_topic
from obol.adapters.evm_abi import call_data, decode_uint
from obol.adapters.rpc_http import MAX_REPLY_BYTES, JsonRpc
from obol.adapters.witness_evm import AUTHORIZATION_USED
from obol.core.networks import BASE, BASE_SEPOLIA
from obol.errors import ChainUnavailableError, SettingsError
from obol.x402.eip712 import domain_separator
from tests.adapters.payments import SELLER, account
from tests.evm.anvil import USDC, Anvil
from tests.fakes.rpc import Behaviour, Errors, Fails, FakeRpc, Says, Where

PAYER = account().address


@pytest.fixture
async def fake(anvil: Anvil) -> AsyncIterator[FakeRpc]:
    async with FakeRpc(anvil.url) as fake:
        yield fake


@pytest.fixture
async def chain(fake: FakeRpc) -> AsyncIterator[EvmChain]:
    chain = EvmChain(JsonRpc([fake.url], timeout_s=2.0), BASE_SEPOLIA)
    yield chain
    await chain.close()


async def test_the_right_chain_passes_the_check(chain: EvmChain) -> None:
    await chain.check()


async def test_another_chain_is_refused_naming_both(anvil: Anvil) -> None:
    chain = EvmChain(JsonRpc([anvil.url]), BASE)
    with pytest.raises(SettingsError, match="--rpc: is of chain 84532; base is chain 8453"):
        await chain.check()
    with pytest.raises(ChainUnavailableError):
        await chain.newest_block()
    await chain.close()


async def test_a_tokens_domain_is_read(chain: EvmChain) -> None:
    separator = domain_separator("USDC", "2", BASE_SEPOLIA.chain_id, USDC.address)
    assert await chain.token_domain(USDC.address) == TokenDomain("USDC", "2", separator)


async def test_where_no_contract_is_there_is_no_domain(chain: EvmChain) -> None:
    assert await chain.token_domain(SELLER) is None


async def test_balances_and_blocks(chain: EvmChain, anvil: Anvil) -> None:
    await anvil.mint(PAYER, 5000)
    await anvil.fund_native(PAYER, 77)
    assert await chain.balance(USDC.address, PAYER) == 5000
    assert await chain.native_balance(PAYER) == 77
    newest = await chain.block()
    assert newest.number == await chain.newest_block()
    assert await chain.block(newest.number) == newest


async def test_a_block_that_is_not_there_yet_is_not_known(chain: EvmChain) -> None:
    with pytest.raises(ChainUnavailableError):
        await chain.block(10_000)


async def test_the_state_of_a_block_that_is_not_there_yet_is_not_known(chain: EvmChain) -> None:
    with pytest.raises(ChainUnavailableError):
        await chain.is_authorization_used(USDC.address, PAYER, "0x" + "11" * 32, 10_000)


async def test_a_revert_carries_the_contracts_own_words(chain: EvmChain) -> None:
    with pytest.raises(RevertedError, match="ERC20: transfer amount exceeds balance"):
        await chain.call(USDC.address, call_data("transfer(address,uint256)", SELLER, 1), sender=PAYER)


async def test_a_call_with_too_little_gas_fails_as_it_would_on_the_chain(chain: EvmChain) -> None:
    mint = call_data("mint(address,uint256)", SELLER, 1)
    await chain.call(USDC.address, mint, gas=100_000)
    for gas in (22_800, 24_000, 100):
        with pytest.raises(RevertedError):
            await chain.call(USDC.address, mint, gas=gas)


async def test_a_contract_that_is_another_is_not_known(chain: EvmChain) -> None:
    for contract in (SELLER, USDC.address):  # nothing there; has no such function
        with pytest.raises(ChainUnavailableError, match="does not answer like one of its kind"):
            await chain.read(contract, call_data("nonceBitmap(address,uint256)", PAYER, 0), decode_uint)


async def test_transfers_to_an_address_are_found_in_order_and_in_pieces(chain: EvmChain, anvil: Anvil) -> None:
    for amount_atomic in (1, 2, 3):
        await anvil.mint(SELLER, amount_atomic)
        await anvil.mine(3)
    await anvil.mint(PAYER, 4)
    chain._range_blocks = 2
    found = await chain.transfers(USDC.address, SELLER, 0, await chain.newest_block())
    assert [transfer.amount_atomic for transfer in found] == [1, 2, 3]
    assert {transfer.pay_to for transfer in found} == {SELLER.lower()}


async def test_a_node_that_allows_only_small_ranges_is_asked_for_smaller_ones(chain: EvmChain, fake: FakeRpc) -> None:
    fake.behaviours = {"eth_getLogs": Errors(-32600, "block range is too wide")}
    with pytest.raises(ChainUnavailableError, match="no logs"):
        await chain.transfers(USDC.address, SELLER, 0, 1000)
    assert fake.asked["eth_getLogs"] == 10  # 1001, 500 ... 1


async def test_after_a_bad_moment_ranges_grow_again(chain: EvmChain, fake: FakeRpc, anvil: Anvil) -> None:
    await anvil.mine(2000)
    fake.behaviours = {"eth_getLogs": Errors(-32000, "something that nobody knows", times=5)}
    await chain.transfers(USDC.address, SELLER, 0, 100)
    asked = fake.asked["eth_getLogs"]
    await chain.transfers(USDC.address, SELLER, 0, 2000)
    assert fake.asked["eth_getLogs"] - asked < 12


async def test_a_node_that_allows_only_small_ranges_is_refused_once_a_question(
    chain: EvmChain, fake: FakeRpc, anvil: Anvil
) -> None:
    await anvil.mint(SELLER, 5)
    await anvil.mine(100)

    def limit(asked: Mapping[str, Any]) -> Behaviour | None:
        ((given,), most) = asked["params"], 10
        is_short = int(given["toBlock"], 16) - int(given["fromBlock"], 16) < most
        return None if is_short else Errors(-32600, "up to a 10 block range")

    fake.behaviours = {"eth_getLogs": Where(limit)}
    await chain.transfers(USDC.address, SELLER, 0, 100)
    fake.asked.clear()
    (found,) = await chain.transfers(USDC.address, SELLER, 0, 69)
    assert found.amount_atomic == 5
    assert fake.asked["eth_getLogs"] == 13  # twelve of six blocks, and one that was too wide


async def test_more_logs_than_a_reply_may_hold_are_asked_for_in_pieces(
    chain: EvmChain, fake: FakeRpc, anvil: Anvil
) -> None:
    await anvil.mint(SELLER, 5)
    await anvil.mine(100)

    def limit(asked: Mapping[str, Any]) -> Behaviour | None:
        (given,) = asked["params"]
        is_short = int(given["toBlock"], 16) - int(given["fromBlock"], 16) < 40
        return None if is_short else Fails(200, b" " * (MAX_REPLY_BYTES + 1))

    fake.behaviours = {"eth_getLogs": Where(limit)}
    (found,) = await chain.transfers(USDC.address, SELLER, 0, 100)
    assert found.amount_atomic == 5


async def test_a_node_that_is_busy_is_not_asked_for_less_but_passed_over(chain: EvmChain, fake: FakeRpc) -> None:
    fake.behaviours = {"eth_getLogs": Errors(-32007, "50/second request limit reached")}
    with pytest.raises(ChainUnavailableError):
        await chain.transfers(USDC.address, SELLER, 0, 1000)
    assert fake.asked["eth_getLogs"] == 1


async def test_a_receipt_is_read_and_none_is_none(chain: EvmChain, anvil: Anvil) -> None:
    mined = await anvil.send(USDC.address, call_data("mint(address,uint256)", SELLER, 9))
    receipt = await chain.receipt(mined["transactionHash"])
    assert receipt is not None
    assert receipt.is_success
    assert [log.data for log in receipt.logs] == [(9).to_bytes(32, "big")]
    assert await chain.receipt("0x" + "11" * 32) is None


async def test_how_deep_a_block_is(fake: FakeRpc, anvil: Anvil) -> None:
    chain = EvmChain(JsonRpc([fake.url]), BASE_SEPOLIA, confirmations=3)
    newest = await chain.newest_block()
    assert not await chain.is_deep(newest)
    await anvil.mine(2)
    assert await chain.is_deep(newest)
    await chain.close()


LOG: dict[str, Any] = {
    "address": USDC.address,
    "topics": [TRANSFER, address_topic("0x" + "00" * 20), address_topic(SELLER)],
    "data": "0x" + "00" * 31 + "05",
    "blockNumber": "0x1",
    "transactionHash": "0x" + "11" * 32,
    "logIndex": "0x0",
}


def _with(**changes: Any) -> Says:
    return Says(lambda result: {**(result or {}), **changes})


@pytest.mark.parametrize(
    "other",
    [
        {"address": "0x" + "22" * 20},
        {"blockNumber": "0x9"},
        {"topics": [AUTHORIZATION_USED, *LOG["topics"][1:]]},
        {"topics": [*LOG["topics"][:2], address_topic(PAYER)]},
        {"topics": LOG["topics"][:2]},
    ],
)
async def test_a_log_that_was_not_asked_for_is_not_believed(
    chain: EvmChain, fake: FakeRpc, other: dict[str, Any]
) -> None:
    fake.behaviours = {"eth_getLogs": Says(lambda _: [LOG])}
    assert len(await chain.transfers(USDC.address, SELLER, 0, 1)) == 1
    fake.behaviours = {"eth_getLogs": Says(lambda _: [LOG, LOG | other])}
    with pytest.raises(ChainUnavailableError, match="not asked for"):
        await chain.transfers(USDC.address, SELLER, 0, 1)


async def test_any_of_several_topics_may_have_been_asked_for(chain: EvmChain, fake: FakeRpc) -> None:
    fake.behaviours = {"eth_getLogs": Says(lambda _: [LOG])}
    assert await chain.logs(USDC.address, [[AUTHORIZATION_USED, TRANSFER]], 0, 1)
    with pytest.raises(ChainUnavailableError, match="not asked for"):
        await chain.logs(USDC.address, [[AUTHORIZATION_USED, "0x" + "11" * 32]], 0, 1)


@pytest.mark.parametrize(
    ("method", "behaviour"),
    [
        ("eth_getBlockByNumber", _with(number="ten")),
        ("eth_getBlockByNumber", Says(lambda _: None)),
        ("eth_getBlockByNumber", Says(lambda _: [])),
        ("eth_getBlockByNumber", _with(number="0x7")),
        ("eth_getTransactionByHash", _with(hash="0x" + "22" * 32)),
        ("eth_getTransactionReceipt", _with(transactionHash="0x" + "22" * 32)),
        ("eth_getTransactionReceipt", _with(status=1)),
        ("eth_getTransactionReceipt", _with(logs=[{}])),
        ("eth_getTransactionReceipt", _with(logs=[LOG | {"transactionHash": "0x" + "22" * 32}])),
        ("eth_getLogs", Says(lambda _: "0x")),
        ("eth_call", Says(lambda _: "0x1")),
        ("eth_call", Says(lambda _: "0x")),
        ("eth_getBalance", Says(lambda _: "-0x1")),
        ("eth_getCode", Says(lambda _: 5)),
    ],
)
async def test_what_cannot_be_understood_is_as_good_as_not_answered(
    chain: EvmChain, fake: FakeRpc, anvil: Anvil, method: str, behaviour: Says
) -> None:
    mined = await anvil.send(USDC.address, call_data("mint(address,uint256)", SELLER, 9))
    fake.behaviours = {method: behaviour}
    asks: dict[str, Callable[[], Awaitable[object]]] = {
        "eth_getBlockByNumber": lambda: chain.block(1),
        "eth_getTransactionByHash": lambda: chain.transaction(mined["transactionHash"]),
        "eth_getTransactionReceipt": lambda: chain.receipt(mined["transactionHash"]),
        "eth_getLogs": lambda: chain.transfers(USDC.address, SELLER, 0, 1),
        "eth_call": lambda: chain.balance(USDC.address, SELLER),
        "eth_getBalance": lambda: chain.native_balance(SELLER),
        "eth_getCode": lambda: chain.code(SELLER),
    }
    with pytest.raises(ChainUnavailableError):
        await asks[method]()


async def test_a_log_of_a_block_that_was_dropped_does_not_count(chain: EvmChain, fake: FakeRpc, anvil: Anvil) -> None:
    await anvil.mint(SELLER, 5)
    fake.behaviours = {"eth_getLogs": Says(lambda logs: [{**log, "removed": True} for log in logs])}
    assert await chain.transfers(USDC.address, SELLER, 0, await chain.newest_block()) == []
