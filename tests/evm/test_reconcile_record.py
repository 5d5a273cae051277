"""`obol reconcile --record`: what was refused and moved all the same becomes owed or settled; nothing else does."""

import asyncio
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from obol.adapters.clock import SystemClock
from obol.adapters.contracts.batcher import BatchedCall, run_data
from obol.cli.exit_codes import ExitCode
from obol.core.ledger import Change, Redeeming, SaleFilter
from obol.core.payment import Event, State
from obol.core.sale import Delivery, Sale
from obol.gateway.ledgers import open_shared_ledger
from obol.x402.models import PaymentPayload
from obol.x402.witness import USED_BEFORE
from tests.adapters.payments import PRICE_ATOMIC, SELLER
from tests.cli.program import obol, started
from tests.evm.anvil import USDC, Anvil, Moved
from tests.evm.authorizing import transfer_call
from tests.evm.contracts import OBOL, call, deploy_batcher
from tests.evm.test_reconcile_on_a_chain import (
    BUYER,
    LATER_S,
    Books,
    a_new_sale_of,
    a_payment,
    a_payment_in_obol,
    account_of,
    counts,
    reconciled,
    sent,
    settle,
    settle_in_obol,
)
from tests.fakes.facilitator import RefuseVerify
from tests.gateway.many_tongues import REFUSED, it_is_served_once, on, say
from tests.gateway.shop import PRICE_ATOMIC as SHOP_PRICE_ATOMIC
from tests.gateway.shop import SELLER as SHOP_SELLER
from tests.gateway.shop import Shop, chat

KILLED_AMONG = 20
PATIENCE_S = 20
NO = [Event.SETTLE_FAILED]
REFUSAL = Change(settled_atomic=0, reason="insufficient_funds")


@pytest.fixture
def books(tmp_path: Path) -> Books:
    return Books(tmp_path)


async def recorded(folder: Path, rpc_url: str, code: int, *more: str) -> Any:
    """What `--record` says of the only account, ended as it should."""
    return account_of(await reconciled(folder, rpc_url, "--record", *more), code)


async def is_sound(folder: Path) -> bool:
    return (await obol("ledger", "check", "--data-dir", str(folder))).code == ExitCode.OK


async def sale_of(books: Books, sale_id: str) -> Sale:
    async with books.opened() as ledger:
        sale = await ledger.sale(sale_id)
    assert sale is not None
    return sale


async def sell_undelivered(books: Books, paid: PaymentPayload, *, change: Change = REFUSAL, later_s: float = 0) -> str:
    """A refused sale of which nothing was handed over."""
    sale = await books.sell(paid, change=change, end=NO, later_s=later_s)
    async with books.opened() as ledger:
        await ledger.record(sale, [], Change(Delivery.NONE))
    return sale


def place(finding: Any) -> tuple[str, int]:
    return finding["transaction"], finding["log_index"]


# -------------------------------------------------------------------------------------------------------- at a gateway


async def test_a_payment_that_a_facilitator_denies_is_served_once_after_it_is_recorded(
    tmp_path: Path, anvil: Anvil
) -> None:
    async with Shop(tmp_path, facilitator=True) as shop:
        await anvil.mint(shop.signer.address, SHOP_PRICE_ATOMIC)
        say(shop, REFUSED, move=on(anvil)).may_end.set()
        denied = await shop.pay(chat())
        assert denied.status == 402
        await shop.until_states("settle_failed")
        assert (await shop.again(denied.payment)).reason == "payment_used"
        await anvil.pass_time(LATER_S)
        rows = await shop.ledger_rows()

        named = account_of(await reconciled(tmp_path, anvil.url), ExitCode.REFUSED)
        assert (counts(named), named["recorded"]) == ({"unrecorded": 1}, [])
        assert await shop.ledger_rows() == rows

        found = await recorded(tmp_path, anvil.url, ExitCode.OK)
        (moved,) = await anvil.transfers(SHOP_SELLER)
        (finding,) = found["recorded"]
        assert (place(finding), finding["state"]) == ((moved.transaction, moved.log_index), "owed")
        assert (counts(found), found["findings"]) == ({"matched": 1}, [])
        receipt = await shop.receipt_in("owed", finding["sale"])
        assert (receipt["paid"], receipt["reason"], receipt["logIndex"]) == (True, "", moved.log_index)

        shop.facilitator.behaviour = RefuseVerify("invalid_exact_evm_nonce_already_used")
        await it_is_served_once(shop, denied.payment)
        receipt = await shop.receipt_in("settled", finding["sale"], delivery="complete")
        assert receipt["transaction"] == moved.transaction
    assert counts(account_of(await reconciled(tmp_path, anvil.url), ExitCode.OK)) == {"matched": 1}
    assert await is_sound(tmp_path)


# ------------------------------------------------------------------------------------------------------------ recorded


async def test_what_was_handed_over_and_is_paid_all_the_same_is_settled(books: Books, anvil: Anvil) -> None:
    paid = a_payment()
    sale = await books.sell(paid, change=REFUSAL, end=NO)
    moved = await settle(anvil, paid)
    await anvil.pass_time(LATER_S)

    found = await recorded(books.folder, anvil.url, ExitCode.OK)

    assert [one["state"] for one in found["recorded"]] == ["settled"]
    now = await sale_of(books, sale)
    assert (now.settled_atomic, now.transaction, now.log_index, now.reason) == (
        PRICE_ATOMIC,
        moved.transaction,
        moved.log_index,
        "",
    )
    assert await is_sound(books.folder)
    again = await recorded(books.folder, anvil.url, ExitCode.OK)
    assert (again["recorded"], await sale_of(books, sale)) == ([], now)


async def test_of_one_transaction_each_sale_gets_its_own_transfer(books: Books, anvil: Anvil) -> None:
    paid = [a_payment(1), a_payment(2), a_payment(1)]
    sales = [await sell_undelivered(books, one) for one in paid]
    moved = await batched(anvil, paid)
    await anvil.pass_time(LATER_S)

    found = await recorded(books.folder, anvil.url, ExitCode.OK)

    assert {one["sale"]: place(one) for one in found["recorded"]} == {
        sale: (one.transaction, one.log_index) for sale, one in zip(sales, moved, strict=True)
    }
    assert await is_sound(books.folder)


async def test_of_permit2_payments_that_are_alike_the_one_that_moved_is_recorded(books: Books, anvil: Anvil) -> None:
    """The report alone would take the older."""
    unpaid, paid = a_payment_in_obol(), a_payment_in_obol()
    sales = [await sell_undelivered(books, one) for one in (unpaid, paid)]
    moved = await settle_in_obol(anvil, paid)
    await anvil.pass_time(LATER_S)
    named = account_of(await reconciled(books.folder, anvil.url), ExitCode.REFUSED)
    assert [one["sale"] for one in named["findings"]] == sales[:1]

    found = await recorded(books.folder, anvil.url, ExitCode.OK)

    assert [(one["sale"], place(one)) for one in found["recorded"]] == [
        (sales[1], (moved.transaction, moved.log_index))
    ]
    assert [(await sale_of(books, sale)).state.value for sale in sales] == ["settle_failed", "owed"]
    assert await is_sound(books.folder)


async def batched(anvil: Anvil, paid: Sequence[PaymentPayload]) -> list[Moved]:
    """All of these payments in one transaction."""
    batcher = await deploy_batcher(anvil)
    for one in paid:
        await anvil.mint(one.payer, PRICE_ATOMIC)
    await anvil.send(batcher, run_data([BatchedCall(USDC.address, transfer_call(one), 150_000) for one in paid]))
    return await anvil.transfers(SELLER)


async def test_kill_9_in_the_middle_leaves_every_sale_as_it_was_or_as_it_is_to_be(books: Books, anvil: Anvil) -> None:
    paid = [a_payment(1) for _ in range(KILLED_AMONG)]
    sales = [await sell_undelivered(books, one) for one in paid]
    await batched(anvil, paid)
    await anvil.pass_time(LATER_S)
    before = {sale: await sale_of(books, sale) for sale in sales}
    command = ("reconcile", "--rpc", anvil.url, "--data-dir", str(books.folder), "--json", "--record")
    async with books.opened() as ledger, started(*command) as program:
        async with asyncio.timeout(PATIENCE_S):
            while not (await ledger.page(SaleFilter(states=frozenset({State.OWED})))).sales:
                pass
        program.terminate(signal.SIGKILL)
        await program.ended()

    for sale, was in before.items():
        now = await sale_of(books, sale)
        assert now == was or (now.state, now.settled_atomic, now.reason) == (State.OWED, PRICE_ATOMIC, "")
    assert await is_sound(books.folder)
    await recorded(books.folder, anvil.url, ExitCode.OK)
    assert {(await sale_of(books, sale)).state for sale in sales} == {State.OWED}


async def test_it_is_recorded_in_a_shared_ledger(database_url: str, anvil: Anvil) -> None:
    paid = a_payment()
    ledger = await open_shared_ledger(database_url, SystemClock())
    try:
        sale = a_new_sale_of(paid)
        await ledger.claim(sale)
        await ledger.record(sale.id, [Event.SETTLE, *NO], REFUSAL)
        await settle(anvil, paid)
        await anvil.pass_time(LATER_S)
        at = {"LEDGER": database_url}

        ended = await obol("reconcile", "--rpc", anvil.url, "--ledger-env", "LEDGER", "--json", "--record", environ=at)

        found = account_of(ended, ExitCode.OK)
        assert [(one["sale"], one["state"]) for one in found["recorded"]] == [(sale.id, "owed")]
        assert isinstance(await ledger.claim(replace(sale, id="again")), Redeeming)
    finally:
        await ledger.close()
    assert (await obol("ledger", "check", "--ledger-env", "LEDGER", environ=at)).code == ExitCode.OK


# -------------------------------------------------------------------------------------------------------- not recorded


async def nothing_is_recorded(books: Books, anvil: Anvil, sale: str, code: int, *more: str) -> Any:
    before = await sale_of(books, sale)
    found = await recorded(books.folder, anvil.url, code, *more)
    assert (found["recorded"], await sale_of(books, sale)) == ([], before)
    return found


async def test_another_payment_of_the_same_payer_and_amount_records_nothing(books: Books, anvil: Anvil) -> None:
    sale = await sell_undelivered(books, a_payment())
    await settle(anvil, a_payment())
    await anvil.pass_time(LATER_S)

    found = await nothing_is_recorded(books, anvil, sale, ExitCode.REFUSED)

    assert counts(found) == {"unexplained": 1}


async def test_what_only_may_be_the_permit2_payment_records_nothing(books: Books, anvil: Anvil) -> None:
    """The payer sent the amount by itself; then by another nonce."""
    sale = await sell_undelivered(books, a_payment_in_obol())
    await settle_in_obol(anvil, a_payment_in_obol())
    await anvil.mint(BUYER.address, PRICE_ATOMIC, OBOL.address)
    await sent(anvil, OBOL.address, call("transfer(address,uint256)", SELLER, PRICE_ATOMIC), BUYER.address)
    await anvil.pass_time(LATER_S)

    found = await nothing_is_recorded(books, anvil, sale, ExitCode.REFUSED)

    assert counts(found) == {"unrecorded": 1, "unexplained": 1}


async def test_what_moved_before_the_sale_was_made_records_nothing(books: Books, anvil: Anvil) -> None:
    """It has paid for something else, such as at another gateway with a ledger of its own."""
    paid = a_payment()
    await settle(anvil, paid)
    sale = await sell_undelivered(books, paid, later_s=LATER_S)
    await anvil.pass_time(3 * LATER_S)

    await nothing_is_recorded(books, anvil, sale, ExitCode.REFUSED, "--since", "1h")


async def test_what_a_gateway_saw_moved_before_the_sale_records_nothing(books: Books, anvil: Anvil) -> None:
    paid = a_payment()
    sale = await sell_undelivered(books, paid, change=Change(settled_atomic=0, reason=USED_BEFORE))
    await settle(anvil, paid)
    await anvil.pass_time(LATER_S)

    await nothing_is_recorded(books, anvil, sale, ExitCode.REFUSED)


async def test_what_is_not_deep_enough_records_nothing_yet(books: Books, anvil: Anvil) -> None:
    paid = a_payment()
    sale = await sell_undelivered(books, paid)
    await anvil.pass_time(LATER_S)
    await settle(anvil, paid)

    await nothing_is_recorded(books, anvil, sale, ExitCode.OK, "--confirmations", "3")

    await anvil.mine(2)
    found = await recorded(books.folder, anvil.url, ExitCode.OK, "--confirmations", "3")
    assert [one["sale"] for one in found["recorded"]] == [sale]


async def test_what_the_seller_has_looked_into_records_nothing(books: Books, anvil: Anvil, tmp_path: Path) -> None:
    """Such as what was paid back."""
    paid = a_payment()
    sale = await sell_undelivered(books, paid)
    moved = await settle(anvil, paid)
    await anvil.pass_time(LATER_S)
    (tmp_path / "known").write_text(moved.transaction)

    found = await nothing_is_recorded(books, anvil, sale, ExitCode.OK, "--known", str(tmp_path / "known"))

    assert counts(found) == {"known": 1}


async def test_what_is_still_asked_about_is_left_to_its_gateway(books: Books, anvil: Anvil) -> None:
    paid = a_payment()
    sale = await books.sell(paid, change=Change(), end=[Event.SETTLE_UNKNOWN])
    await settle(anvil, paid)
    await anvil.pass_time(LATER_S)

    assert counts(await nothing_is_recorded(books, anvil, sale, ExitCode.REFUSED)) == {"unrecorded": 1}
