"""JSON-RPC over a real socket, in front of anvil: failover, and replies that are not to be believed."""

import asyncio
import itertools
from collections.abc import AsyncIterator

import pytest
import structlog

from obol.adapters.rpc_http import MAX_REPLY_BYTES, JsonRpc, RpcRefusedError
from obol.errors import ChainUnavailableError, SettingsError
from tests.evm.anvil import Anvil
from tests.fakes.rpc import Behaviour, Drops, Errors, Fails, FakeRpc, Says, Stalls, Where

BASE_SEPOLIA_ID = 84532


@pytest.fixture
async def fake(anvil: Anvil) -> AsyncIterator[FakeRpc]:
    async with FakeRpc(anvil.url) as fake:
        yield fake


@pytest.fixture
async def rpc(fake: FakeRpc, anvil: Anvil) -> AsyncIterator[JsonRpc]:
    """The hostile one first, a good one after it."""
    rpc = JsonRpc([fake.url, anvil.url], timeout_s=0.5)
    yield rpc
    await rpc.close()


async def test_a_result_is_returned_and_requests_are_counted(rpc: JsonRpc) -> None:
    assert int(await rpc.call("eth_blockNumber", []), 16) >= 1
    assert rpc.round_trips == 2  # the endpoint's chain id, once
    await rpc.call("eth_blockNumber", [])
    assert rpc.round_trips == 3


BROKEN: dict[str, Behaviour] = {
    "500": Fails(500),
    "429": Fails(429),
    "html": Fails(200, b"<html>"),
    "another answer": Fails(200, b'{"jsonrpc":"2.0","id":999999,"result":"0x1"}'),
    "no result": Fails(200, b'{"jsonrpc":"2.0","id":1}'),
    "too long": Fails(200, b" " * (MAX_REPLY_BYTES + 1)),
    "redirect": Fails(307),
    "dropped": Drops(),
    "dropped after": Drops(after=True),
    "stalled": Stalls(),
    "rate limit": Errors(-32005, "too many requests"),
}
BROKEN_ONES = pytest.mark.parametrize("behaviour", BROKEN.values(), ids=list(BROKEN))


@BROKEN_ONES
async def test_what_does_not_answer_is_passed_over_and_stays_so(
    rpc: JsonRpc, fake: FakeRpc, behaviour: Behaviour
) -> None:
    fake.behaviours = {"*": behaviour}
    assert int(await rpc.call("eth_blockNumber", []), 16) >= 1
    asked = fake.asked.total()
    await rpc.call("eth_blockNumber", [])
    assert fake.asked.total() == asked


@BROKEN_ONES
async def test_when_nobody_answers_the_chain_is_unavailable_and_no_key_is_shown(
    fake: FakeRpc, behaviour: Behaviour
) -> None:
    rpc = JsonRpc([fake.url], timeout_s=0.3)
    fake.behaviours = {"*": behaviour}
    with pytest.raises(ChainUnavailableError) as caught:
        await rpc.call("eth_blockNumber", [])
    assert "s3cret" not in str(caught.value)
    await rpc.close()


async def test_what_a_node_says_of_the_question_is_an_answer(rpc: JsonRpc, fake: FakeRpc) -> None:
    fake.behaviours = {"eth_call": Errors(3, "execution reverted", "0x1234")}
    with pytest.raises(RpcRefusedError) as caught:
        await rpc.call("eth_call", [{"to": "0x" + "11" * 20}, "latest"])
    assert (caught.value.code, caught.value.data) == (3, "0x1234")
    assert caught.value.is_last_word


QUESTIONS: dict[str, list[object]] = {
    "eth_blockNumber": [],
    "eth_getBlockByNumber": ["latest", False],
    "eth_getTransactionReceipt": ["0x" + "11" * 32],
    "eth_getTransactionByHash": ["0x" + "11" * 32],
    "eth_getTransactionCount": ["0x" + "11" * 20, "latest"],
    "eth_getBalance": ["0x" + "11" * 20, "latest"],
    "eth_getCode": ["0x" + "11" * 20, "latest"],
    "eth_call": [{"to": "0x" + "11" * 20}, "latest"],
    "eth_getLogs": [{"fromBlock": "0x0", "toBlock": "0x1"}],
}
NODES_ERRORS = {
    "limit": Errors(-32007, "50/second request limit reached"),
    "limit exceeded": Errors(-32005, "daily request count exceeded, request rate limited"),
    "unauthorized": Errors(-32001, "Unauthorized"),
    "key": Errors(-32000, "invalid API key"),
    "method": Errors(-32601, "the method does not exist or is not available"),
    "behind": Errors(-32000, "header not found"),
    "pruned": Errors(-32000, "unknown block"),
    "ahead of it": Errors(-32602, "block range extends beyond current head block"),
    "bug": Errors(-32603, "internal error"),
}


@pytest.mark.parametrize("error", NODES_ERRORS.values(), ids=list(NODES_ERRORS))
async def test_where_a_node_answers_an_error_of_its_own_the_next_one_is_asked(
    rpc: JsonRpc, fake: FakeRpc, error: Errors
) -> None:
    for method, params in QUESTIONS.items():
        fake.behaviours = {method: error}
        await rpc.call(method, params)
        assert fake.asked[method] == 1
        rpc._preferred = 0


async def test_a_node_that_will_not_say_its_chain_is_passed_over(rpc: JsonRpc, fake: FakeRpc) -> None:
    fake.behaviours = {"eth_chainId": NODES_ERRORS["unauthorized"]}
    assert await rpc.chain_id() == BASE_SEPOLIA_ID
    assert int(await rpc.call("eth_blockNumber", []), 16) >= 1


@pytest.mark.parametrize("status", [401, 429])
async def test_an_error_under_a_status_of_the_hosts_is_the_hosts(rpc: JsonRpc, fake: FakeRpc, status: int) -> None:
    await rpc.call("eth_blockNumber", [])
    body = b'{"jsonrpc":"2.0","id":3,"error":{"code":15,"message":"not now"}}'  # after the chain id and the block
    fake.behaviours = {"eth_getLogs": Fails(status, body)}
    assert await rpc.call("eth_getLogs", QUESTIONS["eth_getLogs"]) is not None


@pytest.mark.parametrize(
    ("method", "error"),
    [
        ("eth_call", Errors(-32000, "execution reverted: ERC20")),
        ("eth_call", Errors(-32603, "reverted", "0x08c379a0")),
        ("eth_call", Errors(-32015, "VM execution error.", "Reverted 0x")),
        ("eth_call", Errors(-32000, "out of gas")),
        ("eth_call", Errors(-32603, "EVM error OutOfGas")),
        ("eth_call", Errors(-32000, "failed", {"data": "0x08c379a0"})),
        ("eth_getLogs", Errors(-32005, "query returned more than 10000 results")),
        ("eth_getLogs", Errors(-32600, "up to a 10 block range is allowed")),
        ("eth_getLogs", Errors(-32000, "something that nobody knows")),
        ("eth_sendRawTransaction", Errors(-32000, "nonce too low")),
        ("eth_sendRawTransaction", Errors(-32000, "something that nobody knows")),
        ("eth_sendRawTransaction", Errors(-32603, "insufficient funds")),
    ],
)
async def test_what_cannot_be_is_not_asked_of_another(rpc: JsonRpc, fake: FakeRpc, method: str, error: Errors) -> None:
    fake.behaviours = {method: error}
    with pytest.raises(RpcRefusedError):
        await rpc.call(method, QUESTIONS.get(method, ["0x00"]))


async def test_a_refusal_after_one_that_did_not_answer_is_not_the_last_word(rpc: JsonRpc, fake: FakeRpc) -> None:
    fake.behaviours = {"eth_sendRawTransaction": Drops(after=True)}
    with pytest.raises(RpcRefusedError) as caught:
        await rpc.call("eth_sendRawTransaction", ["0x00"])
    assert not caught.value.is_last_word


async def test_null_is_a_result(rpc: JsonRpc) -> None:
    assert await rpc.call("eth_getTransactionReceipt", ["0x" + "11" * 32]) is None


async def test_an_endpoint_of_another_chain_is_not_believed(rpc: JsonRpc, fake: FakeRpc) -> None:
    rpc.expect(BASE_SEPOLIA_ID)
    fake.behaviours = {"eth_chainId": Says(lambda _: "0x1"), "eth_blockNumber": Says(lambda _: "0xdead")}
    assert await rpc.call("eth_blockNumber", []) != "0xdead"


async def test_endpoints_of_two_chains_are_refused(rpc: JsonRpc, fake: FakeRpc) -> None:
    fake.behaviours = {"eth_chainId": Says(lambda _: "0x1")}
    with pytest.raises(SettingsError, match=r"--rpc: .*1 and 84532"):
        await rpc.chain_id()


async def test_the_chain_id_is_that_of_whoever_answers(rpc: JsonRpc, fake: FakeRpc) -> None:
    fake.behaviours = {"*": Drops()}
    assert await rpc.chain_id() == BASE_SEPOLIA_ID


async def test_nobody_who_says_of_which_chain_it_is(fake: FakeRpc) -> None:
    rpc = JsonRpc([fake.url])
    fake.behaviours = {"*": Drops()}
    with pytest.raises(ChainUnavailableError):
        await rpc.chain_id()
    await rpc.close()


@pytest.mark.parametrize("url", ["http://rpc.example", "ftp://rpc.example", "rpc.example", "https://", "http://[::1"])
def test_other_addresses_than_https_or_this_machine_are_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="--rpc"):
        JsonRpc([url])


def test_a_url_may_hold_a_key() -> None:
    JsonRpc(["https://rpc.example/v2/key?token=1"])


def test_no_url_at_all_is_refused() -> None:
    with pytest.raises(SettingsError, match="--rpc"):
        JsonRpc([])


async def test_closing_twice_is_harmless(rpc: JsonRpc) -> None:
    await rpc.close()
    await rpc.close()


async def test_many_that_meet_a_dead_endpoint_at_once_all_find_the_next(rpc: JsonRpc, fake: FakeRpc) -> None:
    await rpc.chain_id()
    waiting = itertools.count(1)

    async def late(_: object) -> Drops:
        await asyncio.sleep(0.03 * next(waiting))
        return Drops()

    fake.behaviours = {"eth_blockNumber": Where(late)}
    numbers = await asyncio.gather(*(rpc.call("eth_blockNumber", []) for _ in range(4)))
    assert len(set(numbers)) == 1


async def test_what_a_node_repeats_of_its_url_is_not_shown(fake: FakeRpc) -> None:
    rpc = JsonRpc([fake.url + "v2/TopSecretKey?token=another-secret"], timeout_s=0.5)
    await rpc.call("eth_blockNumber", [])
    for code in (-32005, 3):
        fake.behaviours = {"eth_call": Errors(code, "limit of TopSecretKey, of another-secret")}
        with pytest.raises((ChainUnavailableError, RpcRefusedError)) as caught:
            await rpc.call("eth_call", [{}, "latest"])
        assert "limit of ***, of ***" in str(caught.value)
    await rpc.close()


async def test_an_endpoint_that_stops_answering_is_told_of_once_and_again_when_it_answers(
    fake: FakeRpc, anvil: Anvil
) -> None:
    logged: list[dict[str, object]] = []

    def note(_: object, __: str, entry: structlog.typing.EventDict) -> structlog.typing.EventDict:
        logged.append(dict(entry))
        raise structlog.DropEvent

    log = structlog.wrap_logger(None, processors=[note])
    rpc = JsonRpc([fake.url, anvil.url], timeout_s=0.5, log=log)
    await rpc.call("eth_blockNumber", [])
    fake.behaviours = {"*": Drops()}
    for _ in range(3):
        rpc._preferred = 0
        await rpc.call("eth_blockNumber", [])
    fake.behaviours = {}
    rpc._preferred = 0
    await rpc.call("eth_blockNumber", [])
    await rpc.close()
    assert [(entry["event"], entry["endpoint"]) for entry in logged] == [
        ("rpc_endpoint_down", 1),
        ("rpc_endpoint_up", 1),
    ]
    assert {entry["host"] for entry in logged} == {"127.0.0.1"}
