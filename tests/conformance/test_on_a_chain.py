"""Our gateway, settling on a real chain by our own or the official facilitator, sells to the official clients."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio
from eth_account.signers.local import LocalAccount

from obol.adapters.clock import SystemClock
from obol.x402.client import payment_headers
from tests.adapters.payments import pay, requirements
from tests.cli.program import obol
from tests.conformance.buyers import BUYERS, V1_BUYERS, buy_with_python
from tests.conformance.chain_shop import ChainShop, open_chain_shop
from tests.conformance.facilitators import (
    OFFICIAL_GAS_KEY,
    PROGRAM_GAS_KEY,
    address_of,
    official_facilitator,
    our_facilitator,
    our_facilitator_program,
)
from tests.conformance.purchase import PATH, Order
from tests.conformance.shop import PRICE_ATOMIC
from tests.evm.anvil import Anvil
from tests.evm.facilitating import GAS_KEY
from tests.fakes.model_answers import WORDS
from tests.fakes.model_server import FakeModelServer

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(90)]
GAS_KEYS = {"ours": GAS_KEY, "program": PROGRAM_GAS_KEY, "official": OFFICIAL_GAS_KEY}
"""Who settles: ours in this process, ours as people start it, the official one; and the key that pays its gas."""
FACILITATORS = pytest.mark.parametrize("facilitator", GAS_KEYS)
CLIENTS = ["x402", "@x402/fetch", "x402-fetch"]
TIMES = 10


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def chain() -> AsyncIterator[Anvil]:
    async with Anvil() as anvil:
        yield anvil


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shops(chain: Anvil, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, ChainShop]]:
    """By the facilitator that settles for them."""
    folders = {name: tmp_path_factory.mktemp(name) for name in GAS_KEYS}
    facilitators = {
        "ours": our_facilitator(chain, tmp_path_factory.mktemp("facilitator")),
        "program": our_facilitator_program(chain, tmp_path_factory.mktemp("facilitator")),
        "official": official_facilitator(chain),
    }
    async with FakeModelServer() as model_server, AsyncExitStack() as stack:
        enter = stack.enter_async_context
        urls = {name: await enter(facilitator) for name, facilitator in facilitators.items()}
        yield {
            name: await enter(open_chain_shop(model_server.url, chain, url, folders[name]))
            for name, url in urls.items()
        }


@FACILITATORS
@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_an_answer_costs_one_transfer_that_the_receipt_names(
    shops: dict[str, ChainShop], scripts: Path, wallet: LocalAccount, facilitator: str, client: str, stream: bool
) -> None:
    shop = shops[facilitator]
    await shop.fund(wallet.address)
    outcome = await BUYERS[client](Order(shop.url, wallet, stream=stream), scripts)
    assert (outcome.status, outcome.error, outcome.words) == (200, "", "".join(WORDS[:5]))

    receipt = await shop.receipt(outcome.headers["x-obol-receipt"])
    (moved,) = await shop.payments_of(wallet.address)
    assert moved.amount_atomic == PRICE_ATOMIC
    assert (receipt["state"], receipt["delivery"], receipt["settledAtomic"]) == ("settled", "complete", "1000")
    assert (receipt["transaction"], receipt["logIndex"]) == (moved.transaction, moved.log_index)

    assert outcome.receipt is not None
    assert {name: value for name, value in outcome.receipt.items() if value is not None} == {
        "success": True,
        "transaction": "" if stream else moved.transaction,
        "network": "base-sepolia" if client in V1_BUYERS else "eip155:84532",
        "payer": wallet.address,
    }


async def transaction_count(chain: Anvil, sender: str) -> int:
    return int(await chain.rpc("eth_getTransactionCount", sender, "latest"), 16)


async def sent_at_once(shop: ChainShop, wallet: LocalAccount, times: int) -> list[int]:
    """The statuses of the answers to one payment, sent so often."""
    valid_before_s = int(SystemClock().now_s()) + 300
    headers = payment_headers(pay(requirements(pay_to=shop.seller), wallet, validBefore=valid_before_s), 2)
    body = Order(shop.url, wallet).body

    async def send() -> int:
        async with shop.http.post(shop.url + PATH, json=body, headers=headers) as answer:
            await answer.read()
            return answer.status

    async with asyncio.TaskGroup() as group:
        sending = [group.create_task(send()) for _ in range(times)]
    return [sent.result() for sent in sending]


@FACILITATORS
async def test_one_payment_sent_ten_times_at_once_buys_one_answer_with_one_transaction(
    shops: dict[str, ChainShop], chain: Anvil, wallet: LocalAccount, facilitator: str
) -> None:
    shop, sender = shops[facilitator], address_of(GAS_KEYS[facilitator])
    await shop.fund(wallet.address)
    before = await transaction_count(chain, sender)
    statuses = await sent_at_once(shop, wallet, TIMES)
    assert sorted(statuses) == [200, *[409] * (TIMES - 1)]
    assert [moved.amount_atomic for moved in await shop.payments_of(wallet.address)] == [PRICE_ATOMIC]
    assert await transaction_count(chain, sender) == before + 1


@FACILITATORS
async def test_the_ledger_and_the_chain_agree_to_the_last_unit(
    shops: dict[str, ChainShop], wallet: LocalAccount, facilitator: str
) -> None:
    shop = shops[facilitator]
    await shop.fund(wallet.address)
    bought = await buy_with_python(Order(shop.url, wallet), Path())
    await shop.receipt(bought.headers["x-obol-receipt"])
    told = await obol("reconcile", "--rpc", shop.anvil.url, "--data-dir", str(shop.folder), "--json")
    assert told.code == 0, told
    (account,) = told.json
    moved = await shop.anvil.transfers(shop.seller)
    assert account["ledger_atomic"] == account["chain_atomic"] == str(sum(move.amount_atomic for move in moved))
