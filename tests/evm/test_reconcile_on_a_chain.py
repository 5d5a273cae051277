"""`obol reconcile --rpc`: every atomic unit on the chain and in the ledger is explained, or named."""

import contextlib
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from obol.adapters.clock import SystemClock
from obol.adapters.contracts.batcher import BatchedCall, run_data
from obol.adapters.ledger_sqlite import SqliteLedger
from obol.adapters.paths import ledger_file
from obol.adapters.signer_local import LocalSigner
from obol.cli.exit_codes import ExitCode
from obol.cli.receipt_rows import iso
from obol.core.ledger import Change
from obol.core.payment import Event
from obol.core.sale import ClaimKey, Delivery, NewSale
from obol.x402.authorization import parse_authorization
from obol.x402.client import sign_exact
from obol.x402.models import PaymentPayload
from obol.x402.permit2 import EXACT_PROXY_ADDRESS
from tests.adapters.payments import PRICE_ATOMIC, SELLER, account, pay, requirements
from tests.adapters.sales import a_new_sale
from tests.cli.program import Ended, obol
from tests.evm.anvil import USDC, Anvil, Moved
from tests.evm.authorizing import transfer_call
from tests.evm.contracts import OBOL, allow_permit2, call, deploy_batcher, place_obol, place_permit2, settle_call
from tests.fakes.rpc import Behaviour, Drops, Errors, Fails, FakeRpc, Says
from tests.gateway.many_tongues import SETTLED_A, on, say
from tests.gateway.shop import PRICE_ATOMIC as SHOP_PRICE_ATOMIC
from tests.gateway.shop import Shop, chat

ONE = account(1).address.lower()
BUYER = LocalSigner(bytes([1] * 32))
STRANGER = "0x" + "dd" * 20
LATER_S = 600
SERVED = (Event.SERVE, Event.OUTPUT, Event.SETTLE)


def a_new_sale_of(paid: PaymentPayload, *, later_s: float = 0) -> NewSale:
    """What a gateway claims for this payment, now or later."""
    authorization = parse_authorization(paid.payload)
    network, token = paid.accepted.network, paid.accepted.asset.lower()
    return replace(
        a_new_sale(ClaimKey(network, token, authorization.payer, authorization.nonce)),
        authorized_atomic=authorization.value_atomic,
        valid_before_s=authorization.valid_before_s,
        pay_to=SELLER,
        payload=msgspec.json.encode(paid),
        requirements=msgspec.json.encode(paid.accepted),
        created_s=SystemClock().now_s() + later_s,
    )


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

    async def sell(
        self,
        paid: PaymentPayload,
        *,
        change: Change,
        end: Sequence[Event] = (Event.SETTLED,),
        later_s: float = 0,
    ) -> str:
        """A sale of this payment, claimed now or later."""
        sale = a_new_sale_of(paid, later_s=later_s)
        async with self.opened() as ledger:
            await ledger.claim(sale)
            await ledger.record(sale.id, [*SERVED, *end], replace(change, delivery=Delivery.COMPLETE))
        return sale.id

    async def sell_for(self, moved: Moved, paid: PaymentPayload, *, log_index: int | None = None) -> str:
        """A settled sale of this payment that names a transfer."""
        change = Change(settled_atomic=PRICE_ATOMIC, transaction=moved.transaction, log_index=log_index)
        return await self.sell(paid, change=change)


@pytest.fixture
def books(tmp_path: Path) -> Books:
    return Books(tmp_path)


async def transfer(anvil: Anvil, payer: str, amount_atomic: int = PRICE_ATOMIC) -> Moved:
    """Money that nobody authorized: the payer sends it."""
    await anvil.mint(payer, amount_atomic)
    await sent(anvil, USDC.address, call("transfer(address,uint256)", SELLER, amount_atomic), payer)
    return (await anvil.transfers(SELLER))[-1]


async def settle(anvil: Anvil, paid: PaymentPayload) -> Moved:
    """What an authorization moves, whoever hands it in."""
    await anvil.mint(parse_authorization(paid.payload).payer, PRICE_ATOMIC)
    await sent(anvil, USDC.address, transfer_call(paid))
    return (await anvil.transfers(SELLER))[-1]


async def settle_in_obol(anvil: Anvil, paid: PaymentPayload) -> Moved:
    """The same by Permit2."""
    await place_permit2(anvil)
    await place_obol(anvil)
    await anvil.mint(BUYER.address, PRICE_ATOMIC, OBOL.address)
    await allow_permit2(anvil, BUYER.address)
    await sent(anvil, EXACT_PROXY_ADDRESS, settle_call(msgspec.to_builtins(paid.payload)))
    return (await anvil.transfers(SELLER, OBOL.address))[-1]


def a_payment_in_obol(*, later_s: float = 0) -> PaymentPayload:
    """Signed now, or later."""
    wanted = requirements(PRICE_ATOMIC, OBOL, extra={"assetTransferMethod": "permit2"})
    now_s = SystemClock().now_s() + later_s
    return sign_exact(BUYER, wanted, OBOL, now_s=now_s, nonce=secrets.token_bytes(32), version=2)


async def sent(anvil: Anvil, to: str, data: bytes, sender: str = STRANGER) -> None:
    assert (await anvil.send(to, data, sender=sender))["status"] == "0x1"


def a_payment(wallet: int = 1) -> PaymentPayload:
    return pay(requirements(), account(wallet))


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
    paid = [a_payment(wallet) for wallet in (1, 2, 1)]
    first, second, third = await batched(anvil, paid)
    await books.sell_for(third, paid[2], log_index=third.log_index)
    await books.sell_for(second, paid[1])
    found = account_of(await reconciled(books.folder, anvil.url), ExitCode.REFUSED)
    assert counts(found) == {"matched": 2, "unexplained": 1}
    (left,) = found["findings"]
    assert (left["transaction"], left["log_index"], left["chain_atomic"]) == (
        first.transaction,
        first.log_index,
        str(PRICE_ATOMIC),
    )
    await books.sell_for(first, paid[0], log_index=first.log_index)
    assert counts(account_of(await reconciled(books.folder, anvil.url), ExitCode.OK)) == {"matched": 3}


async def test_a_sale_that_names_anothers_transfer_of_the_same_transaction_is_wrong(books: Books, anvil: Anvil) -> None:
    paid = [a_payment(1), a_payment(2)]
    first, second = await batched(anvil, paid)
    await books.sell_for(first, paid[0], log_index=first.log_index)
    sale = await books.sell_for(second, a_payment(3), log_index=second.log_index)
    found = account_of(await reconciled(books.folder, anvil.url), ExitCode.REFUSED)
    assert counts(found) == {"matched": 1, "wrong": 1}
    (wrong,) = found["findings"]
    assert (wrong["sale"], wrong["transaction"], wrong["payer"]) == (sale, second.transaction, account(2).address)


async def batched(anvil: Anvil, paid: Sequence[PaymentPayload]) -> list[Moved]:
    """All of these payments in one transaction."""
    batcher = await deploy_batcher(anvil)
    payers = [parse_authorization(one.payload).payer for one in paid]
    for payer in payers:
        await anvil.mint(payer, PRICE_ATOMIC)
    await anvil.send(batcher, run_data([BatchedCall(USDC.address, transfer_call(one), 150_000) for one in paid]))
    moved = await anvil.transfers(SELLER)
    assert len({one.transaction for one in moved}) == 1
    assert [one.payer for one in moved] == payers
    return moved


async def test_a_transfer_counts_once_it_is_deep_enough(books: Books, anvil: Anvil) -> None:
    paid = a_payment()
    await books.sell_for(await settle(anvil, paid), paid)
    young = account_of(await reconciled(books.folder, anvil.url, "--confirmations", "3"), ExitCode.OK)
    assert counts(young) == {"not_due": 1}
    await anvil.mine(2)
    deep = account_of(await reconciled(books.folder, anvil.url, "--confirmations", "3"), ExitCode.OK)
    assert counts(deep) == {"matched": 1}


async def test_a_sale_by_permit2_is_matched_by_the_transaction_that_it_names(books: Books, anvil: Anvil) -> None:
    paid = a_payment_in_obol()
    await books.sell_for(await settle_in_obol(anvil, paid), paid)
    assert counts(account_of(await reconciled(books.folder, anvil.url), ExitCode.OK)) == {"matched": 1}


# ------------------------------------------------------------------------------------------------------ not explained


async def test_money_that_no_sale_names_is_listed_with_its_place_and_time(books: Books, anvil: Anvil) -> None:
    paid = a_payment()
    await books.sell_for(await settle(anvil, paid), paid)
    gift = await transfer(anvil, STRANGER, 77)
    found = account_of(await reconciled(books.folder, anvil.url), ExitCode.REFUSED)
    (finding,) = found["findings"]
    block = await anvil.rpc("eth_getBlockByNumber", "latest", False)
    assert (finding["what"], finding["sale"], finding["ledger_atomic"]) == ("unexplained", "", None)
    assert (finding["transaction"], finding["log_index"]) == (gift.transaction, gift.log_index)
    assert (finding["payer"].lower(), finding["chain_atomic"]) == (STRANGER, "77")
    assert (finding["block"], finding["time"]) == (int(block["number"], 16), iso(int(block["timestamp"], 16)))
    assert (found["ledger_atomic"], found["chain_atomic"]) == (str(PRICE_ATOMIC), str(PRICE_ATOMIC + 77))


async def test_what_the_seller_has_looked_into_is_no_alarm(books: Books, anvil: Anvil, tmp_path: Path) -> None:
    paid = a_payment()
    await books.sell_for(await settle(anvil, paid), paid)
    gift = await transfer(anvil, STRANGER, 77)
    known = tmp_path / "known"
    known.write_text(f"{gift.transaction}:{gift.log_index}  # dust")
    found = account_of(await reconciled(books.folder, anvil.url, "--known", str(known)), ExitCode.OK)
    assert counts(found) == {"matched": 1, "known": 1}


@pytest.mark.parametrize("end", [Event.SETTLE_FAILED, Event.SETTLE_UNKNOWN])
async def test_a_payment_explains_no_other_sale_of_its_payer_at_the_same_price(
    books: Books, anvil: Anvil, end: Event
) -> None:
    """Such as one of another ledger, or one that this ledger has lost."""
    moved = await settle(anvil, a_payment())
    await books.sell(a_payment(), change=Change(), end=[end])
    await anvil.pass_time(LATER_S)
    found = account_of(await reconciled(books.folder, anvil.url), ExitCode.REFUSED)
    assert counts(found) == {"unexplained": 1}
    assert found["findings"][0]["transaction"] == moved.transaction


async def test_a_sale_that_names_money_that_its_authorization_did_not_move_is_wrong(books: Books, anvil: Anvil) -> None:
    """The payer sent the same amount by itself, or a facilitator names what it has seen."""
    sale = await books.sell_for(await transfer(anvil, ONE), a_payment())
    found = account_of(await reconciled(books.folder, anvil.url), ExitCode.REFUSED)
    assert counts(found) == {"wrong": 1}
    assert found["findings"][0]["sale"] == sale


async def test_a_permit2_payment_is_of_no_sale_that_was_claimed_later(books: Books, anvil: Anvil) -> None:
    """No log tells its nonce, and repeat buyers pay the same price."""
    paid = a_payment_in_obol()
    await settle_in_obol(anvil, paid)
    unknown, since = [Event.SETTLE_UNKNOWN], ("--since", "1h")
    late = a_payment_in_obol(later_s=LATER_S)
    await books.sell(late, change=Change(), end=unknown, later_s=LATER_S)
    assert counts(account_of(await reconciled(books.folder, anvil.url, *since), ExitCode.REFUSED)) == {"unexplained": 1}
    sale = await books.sell(paid, change=Change(), end=unknown)
    await anvil.pass_time(LATER_S)
    found = account_of(await reconciled(books.folder, anvil.url, *since), ExitCode.REFUSED)
    assert counts(found) == {"unrecorded": 1}
    assert found["findings"][0]["sale"] == sale


async def test_money_to_an_address_without_sales_is_listed(books: Books, anvil: Anvil) -> None:
    async with books.opened():
        pass
    await transfer(anvil, STRANGER, 77)
    asked = ("--pay-to", SELLER, "--asset", USDC.address)
    assert (await reconciled(books.folder, anvil.url, *asked)).code == ExitCode.USAGE
    found = account_of(await reconciled(books.folder, anvil.url, *asked, "--since", "1h"), ExitCode.REFUSED)
    assert counts(found) == {"unexplained": 1}
    assert found["pay_to"] == [SELLER]


async def test_a_sale_whose_transaction_a_reorganisation_took_back_is_missing(books: Books, anvil: Anvil) -> None:
    first, second = a_payment(2), a_payment(1)
    kept = await settle(anvil, first)
    before = await anvil.snapshot()
    gone = await settle(anvil, second)
    await anvil.revert(before)
    await books.sell_for(kept, first, log_index=kept.log_index)
    sale = await books.sell_for(gone, second, log_index=gone.log_index)
    recent = account_of(await reconciled(books.folder, anvil.url), ExitCode.OK)
    assert counts(recent) == {"matched": 1, "not_due": 1}  # its block may not have been read yet
    await anvil.pass_time(LATER_S)
    found = account_of(await reconciled(books.folder, anvil.url), ExitCode.REFUSED)
    assert counts(found) == {"matched": 1, "missing": 1}
    (missing,) = found["findings"]
    assert (missing["what"], missing["sale"], missing["state"]) == ("missing", sale, "settled")
    assert (missing["transaction"], missing["ledger_atomic"]) == (gone.transaction, str(PRICE_ATOMIC))
    again = await settle(anvil, second)
    assert again.transaction != gone.transaction
    assert counts(account_of(await reconciled(books.folder, anvil.url), ExitCode.OK)) == {"matched": 2}


@pytest.mark.parametrize("end", [Event.SETTLE_FAILED, Event.SETTLE_UNKNOWN])
async def test_money_of_a_sale_that_does_not_say_paid_is_named_with_it(books: Books, anvil: Anvil, end: Event) -> None:
    """Such as of a facilitator that refused, and then settled."""
    paid = a_payment()
    sale = await books.sell(paid, change=Change(reason="insufficient_funds"), end=[end])
    moved = await settle(anvil, paid)
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
    "has an error of its own": {"eth_getBlockByNumber": Errors(-32123, "not today")},
    "says not even its chain": {"eth_chainId": Errors(-32123, "not today")},
    "talks nonsense": {"eth_getLogs": Says(lambda _: "many")},
}


@pytest.mark.parametrize("how", UNHEARD)
async def test_what_could_not_be_found_out_is_neither_a_yes_nor_a_no(books: Books, anvil: Anvil, how: str) -> None:
    paid = a_payment()
    await books.sell_for(await settle(anvil, paid), paid)
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
    paid = a_payment()
    await books.sell_for(await settle(anvil, paid), paid)
    ended = await reconciled(books.folder, anvil.url, "--network", "base")
    assert (ended.code, ended.out) == (ExitCode.USAGE, "")
    assert "--rpc: is of chain eip155:84532" in " ".join(ended.err.split())
