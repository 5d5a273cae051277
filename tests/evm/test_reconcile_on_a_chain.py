"""`obol reconcile --rpc`: every atomic unit on the chain and in the ledger is explained, or named."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from obol.adapters.clock import SystemClock
from obol.adapters.contracts.batcher import BatchedCall, run_data
from obol.adapters.ledger_sqlite import SqliteLedger
from obol.adapters.paths import ledger_file
from obol.cli.exit_codes import ExitCode
from obol.core.ledger import Change
from obol.core.payment import Event
from obol.core.sale import ClaimKey, Delivery
from tests.adapters.payments import PRICE_ATOMIC, SELLER, account, pay, requirements
from tests.adapters.sales import a_key, a_new_sale
from tests.cli.program import Ended, obol
from tests.evm.anvil import USDC, Anvil, Moved
from tests.evm.authorizing import transfer_call
from tests.evm.contracts import call, deploy_batcher
from tests.fakes.rpc import Behaviour, Drops, Errors, Fails, FakeRpc, Says
from tests.gateway.many_tongues import SETTLED_A, on, say
from tests.gateway.shop import PRICE_ATOMIC as SHOP_PRICE_ATOMIC
from tests.gateway.shop import Shop, chat

ONE, TWO = (account(number).address.lower() for number in (1, 2))
STRANGER = "0x" + "dd" * 20
LATER_S = 600
SERVED = (Event.SERVE, Event.OUTPUT, Event.SETTLE)


class Books:
    """A ledger of sales to `SELLER` for the price, by whom and as what a test says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[SqliteLedger]:
        ledger = await SqliteLedger.open(ledger_file(self.folder), SystemClock())
        try:
            yield ledger
        finally:
            await ledger.close()

    async def sell(self, payer: str, *, change: Change, end: Sequence[Event] = (Event.SETTLED,)) -> str:
        key = ClaimKey(USDC.network.caip2, USDC.address.lower(), payer, a_key().nonce)
        sale = a_new_sale(key, authorized_atomic=PRICE_ATOMIC)
        sale = replace(sale, pay_to=SELLER, created_s=SystemClock().now_s())
        async with self.opened() as ledger:
            await ledger.claim(sale)
            await ledger.record(sale.id, [*SERVED, *end], replace(change, delivery=Delivery.COMPLETE))
        return sale.id

    async def sell_for(self, moved: Moved, *, payer: str = "", log_index: int | None = None) -> str:
        """A settled sale that names a transfer."""
        change = Change(settled_atomic=PRICE_ATOMIC, transaction=moved.transaction, log_index=log_index)
        return await self.sell(payer or moved.payer, change=change)


@pytest.fixture
def books(tmp_path: Path) -> Books:
    return Books(tmp_path)


async def transfer(anvil: Anvil, payer: str, amount_atomic: int = PRICE_ATOMIC) -> Moved:
    await anvil.mint(payer, amount_atomic)
    sent = await anvil.send(USDC.address, call("transfer(address,uint256)", SELLER, amount_atomic), sender=payer)
    assert sent["status"] == "0x1"
    return (await anvil.transfers(SELLER))[-1]


async def reconciled(folder: Path, rpc_url: str, *more: str) -> Ended:
    return await obol("reconcile", "--rpc", rpc_url, "--data-dir", str(folder), "--json", *more)


def account_of(ended: Ended, code: int) -> Any:
    """The only account of what it found, ended as it should."""
    assert ended.code == code, ended
    (found,) = ended.json
    assert found["explained"] is (code == 0)
    return found


def counts(found: Any) -> dict[str, int]:
    """How many of each kind, without those that there are none of."""
    return {kind: one["count"] for kind, one in found.items() if isinstance(one, dict) and one["count"]}


# --------------------------------------------------------------------------------------------------------- explained


async def test_what_a_gateway_sold_is_explained_while_it_runs(tmp_path: Path, anvil: Anvil) -> None:
    async with Shop(tmp_path, facilitator=True, rpc_urls=(anvil.url,)) as shop:
        await anvil.mint(shop.signer.address, 2 * SHOP_PRICE_ATOMIC)
        for stream in (False, True):
            say(shop, SETTLED_A, move=on(anvil)).may_end.set()
            assert (await shop.pay(chat(stream=stream))).status == 200
        await shop.until_finished()
        found = account_of(await reconciled(tmp_path, anvil.url), ExitCode.OK)
    total = str(2 * SHOP_PRICE_ATOMIC)
    assert found["matched"] == {"count": 2, "ledger_atomic": total, "chain_atomic": total}
    assert (found["ledger_atomic"], found["chain_atomic"], found["findings"]) == (total, total, [])


async def test_payments_of_one_transaction_are_told_apart(books: Books, anvil: Anvil) -> None:
    """Batched: the same seller and price three times, twice from one payer. One sale does not know its log index."""
    first, second, third = await batched(anvil, 1, 2, 1)
    await books.sell_for(third, log_index=third.log_index)
    await books.sell_for(second)
    found = account_of(await reconciled(books.folder, anvil.url), ExitCode.REFUSED)
    assert counts(found) == {"matched": 2, "unexplained": 1}
    (left,) = found["findings"]
    assert (left["transaction"], left["payer"], left["chain_atomic"]) == (first.transaction, ONE, str(PRICE_ATOMIC))
    await books.sell_for(first, log_index=first.log_index)
    assert counts(account_of(await reconciled(books.folder, anvil.url), ExitCode.OK)) == {"matched": 3}


async def test_a_sale_that_names_anothers_transfer_of_the_same_transaction_is_wrong(books: Books, anvil: Anvil) -> None:
    first, second = await batched(anvil, 1, 2)
    await books.sell_for(first, log_index=first.log_index)
    sale = await books.sell_for(second, payer=STRANGER, log_index=second.log_index)
    found = account_of(await reconciled(books.folder, anvil.url), ExitCode.REFUSED)
    assert counts(found) == {"matched": 1, "wrong": 1}
    (wrong,) = found["findings"]
    assert (wrong["sale"], wrong["transaction"], wrong["payer"]) == (sale, second.transaction, TWO)


async def batched(anvil: Anvil, *wallets: int) -> list[Moved]:
    """A payment of each of these wallets, all in one transaction."""
    batcher = await deploy_batcher(anvil)
    paid = [pay(requirements(), account(wallet)) for wallet in wallets]
    for wallet in wallets:
        await anvil.mint(account(wallet).address, PRICE_ATOMIC)
    await anvil.send(batcher, run_data([BatchedCall(USDC.address, transfer_call(one), 150_000) for one in paid]))
    moved = await anvil.transfers(SELLER)
    assert len({one.transaction for one in moved}) == 1
    assert [one.payer for one in moved] == [account(wallet).address.lower() for wallet in wallets]
    return moved


async def test_a_transfer_counts_once_it_is_deep_enough(books: Books, anvil: Anvil) -> None:
    await books.sell_for(await transfer(anvil, ONE))
    young = account_of(await reconciled(books.folder, anvil.url, "--confirmations", "3"), ExitCode.OK)
    assert counts(young) == {"not_due": 1}
    await anvil.mine(2)
    deep = account_of(await reconciled(books.folder, anvil.url, "--confirmations", "3"), ExitCode.OK)
    assert counts(deep) == {"matched": 1}


# ------------------------------------------------------------------------------------------------------ not explained


async def test_money_that_no_sale_names_is_listed(books: Books, anvil: Anvil) -> None:
    await books.sell_for(await transfer(anvil, ONE))
    gift = await transfer(anvil, STRANGER, 77)
    found = account_of(await reconciled(books.folder, anvil.url), ExitCode.REFUSED)
    (finding,) = found["findings"]
    assert (finding["what"], finding["sale"], finding["ledger_atomic"]) == ("unexplained", "", "")
    assert (finding["transaction"], finding["payer"], finding["chain_atomic"]) == (gift.transaction, STRANGER, "77")
    assert (found["ledger_atomic"], found["chain_atomic"]) == (str(PRICE_ATOMIC), str(PRICE_ATOMIC + 77))


async def test_a_sale_whose_transaction_a_reorganisation_took_back_is_missing(books: Books, anvil: Anvil) -> None:
    kept = await transfer(anvil, TWO)
    before = await anvil.snapshot()
    gone = await transfer(anvil, ONE)
    await anvil.revert(before)
    await books.sell_for(kept, log_index=kept.log_index)
    sale = await books.sell_for(gone, log_index=gone.log_index)
    recent = account_of(await reconciled(books.folder, anvil.url), ExitCode.OK)
    assert counts(recent) == {"matched": 1, "not_due": 1}  # its block may not have been read yet
    await anvil.pass_time(LATER_S)
    found = account_of(await reconciled(books.folder, anvil.url), ExitCode.REFUSED)
    assert counts(found) == {"matched": 1, "missing": 1}
    (missing,) = found["findings"]
    assert (missing["what"], missing["sale"], missing["state"]) == ("missing", sale, "settled")
    assert (missing["transaction"], missing["ledger_atomic"]) == (gone.transaction, str(PRICE_ATOMIC))


@pytest.mark.parametrize("end", [Event.SETTLE_FAILED, Event.SETTLE_UNKNOWN])
async def test_money_of_a_sale_that_does_not_say_paid_is_named_with_it(books: Books, anvil: Anvil, end: Event) -> None:
    """Such as of a facilitator that refused, and then settled."""
    sale = await books.sell(ONE, change=Change(reason="insufficient_funds"), end=[end])
    moved = await transfer(anvil, ONE)
    await anvil.pass_time(LATER_S)
    found = account_of(await reconciled(books.folder, anvil.url), ExitCode.REFUSED)
    assert counts(found) == {"unrecorded": 1}
    (finding,) = found["findings"]
    assert (finding["sale"], finding["transaction"]) == (sale, moved.transaction)
    assert (finding["state"], finding["chain_atomic"]) == (end.value, str(PRICE_ATOMIC))


# -------------------------------------------------------------------------------------------------- could not find out


UNHEARD: dict[str, dict[str, Behaviour]] = {
    "fails": {"*": Fails()},
    "breaks off in the middle": {"eth_getLogs": Drops()},
    "gives no logs": {"eth_getLogs": Errors(-32601, "the method eth_getLogs does not exist")},
    "has no such block": {"eth_getBlockByNumber": Says(lambda _: None)},
    "talks nonsense": {"eth_getLogs": Says(lambda _: "many")},
}


@pytest.mark.parametrize("how", UNHEARD)
async def test_what_could_not_be_found_out_is_neither_a_yes_nor_a_no(books: Books, anvil: Anvil, how: str) -> None:
    await books.sell_for(await transfer(anvil, ONE))
    async with FakeRpc(anvil.url) as fake:
        fake.behaviours = UNHEARD[how]
        ended = await reconciled(books.folder, fake.url)
    assert (ended.code, ended.out) == (ExitCode.CONNECTION, "")
    assert "s3cret" not in ended.err


async def test_without_a_node_nothing_is_said(books: Books) -> None:
    async with books.opened():
        pass
    ended = await reconciled(books.folder, "http://127.0.0.1:1")
    assert (ended.code, ended.out) == (ExitCode.CONNECTION, "")


async def test_a_node_of_another_chain_is_refused(books: Books, anvil: Anvil) -> None:
    await books.sell_for(await transfer(anvil, ONE))
    ended = await reconciled(books.folder, anvil.url, "--network", "base")
    assert (ended.code, ended.out) == (ExitCode.USAGE, "")
    assert "--rpc: is of chain eip155:84532" in " ".join(ended.err.split())
