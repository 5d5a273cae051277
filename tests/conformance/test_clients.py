"""Official clients buy plain and streamed answers of a real llama.cpp server through our gateway."""

import asyncio
from pathlib import Path

import pytest
from eth_account.signers.local import LocalAccount

from obol import SettlementPolicy
from tests.conformance.buyers import BUYERS, V1_BUYERS
from tests.conformance.purchase import TOKENS, Order
from tests.conformance.shop import PRICE_ATOMIC, Shop, open_shop
from tests.fakes.model_answers import WORDS
from tests.fakes.model_server import Behaviour, FakeModelServer

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(90)]
CLIENTS = pytest.mark.parametrize("client", BUYERS)
MANY_TOKENS = 1000


@CLIENTS
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("policy", [SettlementPolicy.ON_OUTPUT, SettlementPolicy.BEFORE])
async def test_a_client_gets_its_answer_and_its_receipt_for_exactly_the_price(
    real_shops: dict[SettlementPolicy, Shop],
    scripts: Path,
    wallet: LocalAccount,
    client: str,
    policy: SettlementPolicy,
    stream: bool,
) -> None:
    shop = real_shops[policy]
    await shop.fund(wallet.address)
    outcome = await BUYERS[client](Order(shop.url, wallet, stream=stream), scripts)
    assert (outcome.status, outcome.error) == (200, "")
    assert len(outcome.words.strip()) > TOKENS / 2

    receipt = await shop.receipt(outcome.headers["x-obol-receipt"])
    (moved,) = await shop.payments_of(wallet.address)
    assert moved.amount_atomic == PRICE_ATOMIC
    assert (receipt["state"], receipt["delivery"], receipt["transaction"]) == ("settled", "complete", moved.transaction)
    assert (receipt["settledAtomic"], receipt["usage"]["outputTokens"]) == (str(PRICE_ATOMIC), TOKENS)

    is_known = policy is SettlementPolicy.BEFORE or not stream
    assert outcome.receipt is not None
    assert {name: value for name, value in outcome.receipt.items() if value is not None} == {
        "success": True,
        "transaction": moved.transaction if is_known else "",
        "network": "base-sepolia" if client in V1_BUYERS else "eip155:84532",
        "payer": wallet.address,
    }


@CLIENTS
async def test_the_first_chunk_of_a_real_stream_is_here_long_before_the_last(
    real_shops: dict[SettlementPolicy, Shop], scripts: Path, wallet: LocalAccount, client: str
) -> None:
    shop = real_shops[SettlementPolicy.ON_OUTPUT]
    await shop.fund(wallet.address)
    outcome = await BUYERS[client](Order(shop.url, wallet, stream=True, tokens=MANY_TOKENS), scripts)
    assert (outcome.status, outcome.error) == (200, "")
    assert outcome.last_s > 3 * outcome.first_s


@CLIENTS
@pytest.mark.parametrize("policy", [SettlementPolicy.ON_OUTPUT, SettlementPolicy.BEFORE])
async def test_the_first_chunk_is_here_while_the_upstream_still_generates(
    model_server: FakeModelServer,
    tmp_path: Path,
    scripts: Path,
    wallet: LocalAccount,
    client: str,
    policy: SettlementPolicy,
) -> None:
    go_on = asyncio.Event()
    seen: list[tuple[int, int]] = []
    model_server.behaviour = Behaviour(tokens=5, hold_between_tokens=go_on)

    def first_chunk() -> None:  # only now may the upstream go on: a buffered stream would never have got here
        seen.append((model_server.calls[-1].sent_tokens, model_server.in_flight))
        go_on.set()

    async with open_shop(model_server.url, tmp_path, settlement=policy) as shop, asyncio.timeout(30):
        await shop.fund(wallet.address)
        outcome = await BUYERS[client](Order(shop.url, wallet, stream=True, notify=first_chunk), scripts)
        assert len(await shop.payments_of(wallet.address)) == 1
    assert (outcome.status, outcome.words) == (200, "".join(WORDS[:5]))
    assert seen == [(1, 1)]
