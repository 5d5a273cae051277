"""`obol pay` buys for OBOL from our gateway without gas or allowance; our facilitator settles, or the official one."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from obol.adapters.signer_local import LocalSigner
from tests.cli.program import obol
from tests.conformance.chain_shop import open_chain_shop
from tests.conformance.facilitators import official_facilitator, our_facilitator_program
from tests.conformance.purchase import PATH
from tests.conformance.shop import MODEL
from tests.evm.anvil import Anvil
from tests.evm.contracts import OBOL, place_obol, place_permit2
from tests.fakes.model_server import FakeModelServer

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(90)]
PRICE_ATOMIC = 5 * 10**16


@pytest_asyncio.fixture(loop_scope="session")
async def chain() -> AsyncIterator[Anvil]:
    async with Anvil() as anvil:
        await place_permit2(anvil)
        await place_obol(anvil)
        yield anvil


@pytest.mark.parametrize("facilitator", ["program", "official"])
async def test_a_fresh_wallet_buys_twice(chain: Anvil, tmp_path: Path, facilitator: str) -> None:
    buyer, folder = LocalSigner.generate(), tmp_path / "facilitator"
    folder.mkdir()
    buyer.write_key_file(tmp_path / "key")
    await chain.mint(buyer.address, 2 * PRICE_ATOMIC, OBOL.address)
    settling = our_facilitator_program(chain, folder) if facilitator == "program" else official_facilitator(chain)
    async with (
        FakeModelServer() as model_server,
        settling as url,
        open_chain_shop(model_server.url, chain, url, tmp_path, price="0.05", payment_asset="obol") as shop,
    ):
        words = ("--model", MODEL, "--prompt", "hi", "--key-file", str(tmp_path / "key"), "--rpc", chain.url)
        for _ in range(2):
            ended = await obol("pay", shop.url + PATH, *words)
            assert (ended.code, "paid 0.05 OBOL" in ended.err) == (0, True), ended
        moved = await chain.transfers(shop.seller, OBOL.address)
    assert [(move.payer, move.amount_atomic) for move in moved] == [(buyer.address.lower(), PRICE_ATOMIC)] * 2
    assert await chain.balance(buyer.address, OBOL.address) == 0
