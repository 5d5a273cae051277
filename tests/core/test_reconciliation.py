from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obol.core.payment import PAID, State
from obol.core.reconciliation import CLOCK_SKEW_S, Reconciler
from obol.core.reconciliation_report import NOTHING_KNOWN, Kind, KnownTransfers, Report
from obol.core.sale import Sale
from obol.core.transfer import Transfer
from tests.core.booked_sales import PAY_TO, RECORDED, a_sale

LATER_S = 2e9
BY_PERMIT2 = b'{"scheme":"exact","extra":{"assetTransferMethod":"permit2"}}'


def paying(sale: Sale, *, log_index: int = 0, amount_atomic: int | None = None, transaction: str = "") -> Transfer:
    """The transfer that a sale tells of, where no authorization is known."""
    amount = sale.authorized_atomic if amount_atomic is None else amount_atomic
    return Transfer(transaction or sale.transaction, log_index, 1, sale.key.payer, PAY_TO, amount)


def by_its_authorization(sale: Sale, *, amount_atomic: int | None = None, transaction: str = "0x9") -> Transfer:
    return replace(paying(sale, amount_atomic=amount_atomic, transaction=transaction), nonce=sale.key.nonce)


def by_permit2(state: State, number: int = 1, *, transaction: str = "") -> Sale:
    sale = replace(a_sale(state, number), requirements=BY_PERMIT2)
    return replace(sale, transaction=transaction or sale.transaction)


def at(transfer: Transfer, time_s: float) -> Transfer:
    return replace(transfer, nonce="", time_s=time_s)


def reconcile(
    sales: Sequence[Sale],
    transfers: Sequence[Transfer],
    *,
    due_before_s: float = LATER_S,
    since_s: float | None = None,
    known: KnownTransfers = NOTHING_KNOWN,
) -> Report:
    reconciler = Reconciler(transfers, due_before_s=due_before_s, since_s=since_s, known=known)
    for sale in sales:
        reconciler.add(sale)
    return reconciler.report(reconciler.left())


def found(report: Report) -> list[tuple[Kind, str]]:
    return [(finding.kind, finding.sale) for finding in report.findings]


def kinds(report: Report) -> dict[Kind, int]:
    return {kind: count for kind, count in report.counts.items() if count}


def test_a_paid_sale_with_its_transfer_is_explained() -> None:
    report = reconcile([a_sale()], [paying(a_sale())])

    assert (kinds(report), report.is_explained, report.findings) == ({Kind.MATCHED: 1}, True, [])


def test_a_paid_sale_without_a_transfer_is_missing() -> None:
    report = reconcile([a_sale()], [])

    assert (kinds(report), report.is_explained) == ({Kind.MISSING: 1}, False)
    assert (report.ledger_atomic, report.chain_atomic) == (1000, 0)


def test_a_transfer_without_a_sale_is_unexplained() -> None:
    report = reconcile([], [paying(a_sale())])

    assert (kinds(report), report.is_explained, report.chain_atomic) == ({Kind.UNEXPLAINED: 1}, False, 1000)


def test_a_transfer_explains_one_sale_only() -> None:
    one, other = (replace(a_sale(number=n), transaction="0x1") for n in (1, 2))

    assert kinds(reconcile([one, other], [paying(one)])) == {Kind.MATCHED: 1, Kind.MISSING: 1}


def test_a_known_log_index_is_not_taken_by_a_sale_that_knows_none() -> None:
    vague, exact = (replace(a_sale(number=n), transaction="0x1") for n in (1, 2))
    exact = replace(exact, log_index=0)

    report = reconcile([vague, exact], [paying(exact, log_index=0)])

    assert [(finding.kind, finding.sale) for finding in report.findings] == [(Kind.MISSING, vague.id)]


def test_a_log_index_that_a_reorganisation_changed_is_matched_all_the_same() -> None:
    sale = replace(a_sale(), log_index=3)

    assert kinds(reconcile([sale], [paying(sale, log_index=7)])) == {Kind.MATCHED: 1}


def test_a_transaction_that_moved_another_amount_is_wrong_and_both_amounts_are_shown() -> None:
    report = reconcile([a_sale()], [paying(a_sale(), amount_atomic=1)])

    (finding,) = report.findings
    assert (finding.kind, finding.recorded_atomic, finding.transferred_atomic) == (Kind.WRONG, 1000, 1)


def test_an_unresolved_sale_that_the_chain_shows_as_paid_is_told() -> None:
    sale = a_sale(State.SETTLE_UNKNOWN)
    report = reconcile([sale], [paying(sale, transaction="0x9")])

    assert [(finding.kind, finding.sale) for finding in report.findings] == [(Kind.UNRECORDED, sale.id)]
    assert (report.is_explained, report.ledger_atomic, report.chain_atomic) == (False, 0, 1000)


def test_a_settlement_that_is_under_way_is_no_alarm() -> None:
    sale = a_sale(State.SETTLING)
    report = reconcile([sale], [paying(sale, transaction="0x9")], due_before_s=sale.updated_s)

    assert (kinds(report), report.is_explained) == ({Kind.UNRECORDED: 1}, True)


def test_an_unresolved_sale_is_taken_before_a_refused_one() -> None:
    refused, unknown = a_sale(State.SETTLE_FAILED, 1), a_sale(State.SETTLE_UNKNOWN, 2)
    report = reconcile([refused, unknown], [paying(unknown, transaction="0x9")])

    assert [finding.sale for finding in report.findings] == [unknown.id]


def test_an_unknown_sale_whose_transaction_was_replaced_explains_the_transfer() -> None:
    sale = replace(a_sale(State.SETTLE_UNKNOWN), transaction="0x8")

    assert found(reconcile([sale], [paying(sale, transaction="0x9")])) == [(Kind.UNRECORDED, sale.id)]


def test_what_a_sale_has_heard_of_goes_before_what_is_only_like_it() -> None:
    heard, unheard = replace(a_sale(State.SETTLE_FAILED, 1), transaction="0x9"), a_sale(State.SETTLE_UNKNOWN, 2)

    assert found(reconcile([unheard, heard], [paying(heard)])) == [(Kind.UNRECORDED, heard.id)]


def test_a_paid_sale_whose_transaction_was_replaced_is_not_laid_at_the_door_of_another() -> None:
    refused, paid = a_sale(State.SETTLE_FAILED, 1), a_sale(number=2)

    assert found(reconcile([refused, paid], [paying(paid, transaction="0x9")])) == [(Kind.WRONG, paid.id)]


# ------------------------------------------------------------------------------------------- by the authorization


def test_a_sale_is_explained_by_its_own_authorization_whatever_transaction_it_names() -> None:
    report = reconcile([a_sale()], [by_its_authorization(a_sale())])

    assert (kinds(report), report.is_explained) == ({Kind.MATCHED: 1}, True)


@pytest.mark.parametrize("state", [State.SETTLING, State.SETTLE_UNKNOWN, State.SETTLE_FAILED])
def test_what_another_authorization_moved_explains_no_sale_of_that_payer(state: State) -> None:
    sale, other = a_sale(state, 1), a_sale(number=2)
    report = reconcile([sale], [by_its_authorization(other)])

    assert (found(report), report.is_explained) == ([(Kind.UNEXPLAINED, "")], False)


def test_what_was_sent_without_an_authorization_explains_no_sale_by_eip3009() -> None:
    sale = a_sale(State.SETTLE_UNKNOWN)

    assert found(reconcile([sale], [at(paying(sale, transaction="0x9"), sale.created_s)])) == [(Kind.UNEXPLAINED, "")]


def test_a_sale_that_names_what_was_sent_without_its_authorization_is_wrong() -> None:
    assert found(reconcile([a_sale()], [at(paying(a_sale()), 1.8e9)])) == [(Kind.WRONG, a_sale().id)]


@pytest.mark.parametrize("state", [State.RELEASED, State.CLAIMED, State.SERVING, State.SERVED, State.WAIVED])
def test_money_that_was_never_asked_for_is_told_of_the_sale_whose_authorization_moved_it(state: State) -> None:
    report = reconcile([a_sale(state)], [by_its_authorization(a_sale(state))])

    assert (found(report), report.is_explained) == ([(Kind.UNRECORDED, a_sale().id)], False)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize(("state", "kind"), [(State.SETTLED, Kind.MATCHED), (State.SETTLE_UNKNOWN, Kind.UNRECORDED)])
def test_a_released_sale_gives_way_to_the_one_that_has_its_authorization(
    state: State, kind: Kind, order: tuple[int, int]
) -> None:
    holder = a_sale(state)
    sales = [replace(a_sale(State.RELEASED), id="released"), holder]
    report = reconcile([sales[place] for place in order], [by_its_authorization(holder)])

    assert kinds(report) == {kind: 1}
    assert found(report) == ([] if kind is Kind.MATCHED else [(kind, holder.id)])


def test_an_authorization_that_moved_another_amount_than_the_sale_says_is_wrong() -> None:
    (finding,) = reconcile([a_sale()], [by_its_authorization(a_sale(), amount_atomic=1)]).findings

    assert (finding.kind, finding.recorded_atomic, finding.transferred_atomic) == (Kind.WRONG, 1000, 1)


# -------------------------------------------------------------------------------------------------- to be recorded


def recordable(report: Report) -> list[str]:
    return [finding.sale for finding in report.findings if finding.is_recordable]


def refused_and_paid() -> tuple[Sale, Transfer]:
    sale = a_sale(State.SETTLE_FAILED)
    return sale, replace(by_its_authorization(sale), time_s=sale.created_s)


def test_a_refused_sale_whose_own_authorization_moved_can_be_recorded() -> None:
    sale, moved = refused_and_paid()

    assert recordable(reconcile([sale], [moved])) == [sale.id]


@pytest.mark.parametrize("state", [state for state in RECORDED if state is not State.SETTLE_FAILED])
def test_only_what_was_refused_can_be_recorded(state: State) -> None:
    _, moved = refused_and_paid()

    assert recordable(reconcile([a_sale(state)], [moved])) == []


@pytest.mark.parametrize(
    "change",
    [
        {"nonce": f"0x{2:064x}"},
        {"nonce": None},
        {"nonce": ""},
        {"amount_atomic": 999},
        {"payer": "0x" + "cd" * 20},
        {"pay_to": "0x" + "cd" * 20},
        {"time_s": None},
        {"time_s": 1_800_000_001.0 - CLOCK_SKEW_S - 1},
    ],
    ids=str,
)
def test_what_is_not_surely_the_payment_of_a_sale_can_not_be_recorded(change: dict[str, Any]) -> None:
    sale, moved = refused_and_paid()

    assert recordable(reconcile([sale], [replace(moved, **change)])) == []


def test_what_is_guessed_of_permit2_can_not_be_recorded() -> None:
    sale = replace(by_permit2(State.SETTLE_FAILED), transaction="0x9")
    report = reconcile([sale], [at(paying(sale), sale.created_s)])

    assert (found(report), recordable(report)) == ([(Kind.UNRECORDED, sale.id)], [])


def test_what_the_seller_has_looked_into_can_not_be_recorded() -> None:
    sale, moved = refused_and_paid()

    assert recordable(reconcile([sale], [moved], known=KnownTransfers(transactions={moved.transaction}))) == []


def test_what_was_refused_a_moment_ago_can_not_be_recorded() -> None:
    """How its answer ended may still have to be written down."""
    sale, moved = refused_and_paid()

    assert recordable(reconcile([sale], [moved], due_before_s=sale.updated_s)) == []


# ---------------------------------------------------------------------------------------------------------- by time


@pytest.mark.parametrize(
    ("after_claim_s", "kind"),
    [
        (-CLOCK_SKEW_S - 1, Kind.UNEXPLAINED),
        (-CLOCK_SKEW_S, Kind.UNRECORDED),
        (0, Kind.UNRECORDED),
        (299, Kind.UNRECORDED),
        (300, Kind.UNEXPLAINED),
    ],
)
def test_a_permit2_payment_is_one_that_was_made_while_its_authorization_could_be_used(
    after_claim_s: float, kind: Kind
) -> None:
    sale = by_permit2(State.SETTLE_UNKNOWN)
    assert sale.valid_before_s == sale.created_s + 299
    moved = at(paying(sale, transaction="0x9"), sale.created_s + after_claim_s)

    assert [finding.kind for finding in reconcile([sale], [moved]).findings] == [kind]


def test_permit2_payments_are_matched_by_the_transaction_that_the_sale_names() -> None:
    sale = by_permit2(State.SETTLED)

    assert kinds(reconcile([sale], [at(paying(sale), sale.created_s - 1e6)])) == {Kind.MATCHED: 1}


def test_what_an_authorization_moved_explains_no_sale_by_permit2() -> None:
    sale = by_permit2(State.SETTLE_UNKNOWN)

    assert found(reconcile([sale], [by_its_authorization(sale)])) == [(Kind.UNEXPLAINED, "")]


def test_only_what_is_not_sure_is_left_to_be_dated() -> None:
    sure, unsure = a_sale(number=1), a_sale(number=2)
    stray = paying(unsure, transaction="0x9")
    reconciler = Reconciler([paying(sure), stray], due_before_s=LATER_S)
    reconciler.add(sure)

    assert reconciler.left() == [stray]
    (finding,) = reconciler.report([replace(stray, time_s=7.0)]).findings
    assert (finding.block, finding.time_s, finding.log_index) == (stray.block, 7.0, 0)


# ------------------------------------------------------------------------------------------------------------ known


_DUST = Transfer("0xAB", 3, 1, "0x" + "cd" * 20, PAY_TO, 1)


@pytest.mark.parametrize(
    ("known", "kind"),
    [
        (KnownTransfers(transactions={"0xab"}), Kind.KNOWN),
        (KnownTransfers(transfers={("0xab", 3)}), Kind.KNOWN),
        (KnownTransfers(transfers={("0xab", 4)}), Kind.UNEXPLAINED),
    ],
)
def test_a_transfer_that_the_seller_knows_is_no_alarm(known: KnownTransfers, kind: Kind) -> None:
    report = reconcile([], [_DUST], known=known)

    assert (kinds(report), report.is_explained) == ({kind: 1}, kind is Kind.KNOWN)
    assert report.chain_atomic == 1


def test_whatever_is_said_of_a_known_transaction_is_no_alarm() -> None:
    missing, failed = a_sale(number=1), a_sale(State.SETTLE_FAILED, 2)
    known = KnownTransfers(transactions={missing.transaction, "0x9"})
    report = reconcile([missing, failed], [by_its_authorization(failed)], known=known)

    assert (kinds(report), report.is_explained) == ({Kind.KNOWN: 2}, True)
    assert (report.ledger_atomic, report.chain_atomic) == (1000, 1000)


def test_a_known_transfer_is_guessed_to_be_no_sales() -> None:
    sale = a_sale(State.SETTLE_UNKNOWN)
    known, other = paying(sale, transaction="0x8"), paying(sale, transaction="0x9")
    report = reconcile([sale], [known, other], known=KnownTransfers(transactions={"0x8"}))

    assert found(report) == [(Kind.UNRECORDED, sale.id), (Kind.KNOWN, "")]


def test_what_is_known_and_matches_is_matched() -> None:
    known = KnownTransfers(transactions={a_sale().transaction})

    assert kinds(reconcile([a_sale()], [paying(a_sale())], known=known)) == {Kind.MATCHED: 1}


# ------------------------------------------------------------------------------------------------------------- when


def test_a_sale_that_is_younger_than_the_chain_was_read_is_not_due() -> None:
    report = reconcile([a_sale()], [], due_before_s=a_sale().updated_s)

    assert (kinds(report), report.is_explained, report.ledger_atomic) == ({Kind.NOT_DUE: 1}, True, 1000)


def test_an_older_sale_explains_a_transfer_and_is_not_missed() -> None:
    found, gone = a_sale(number=1), a_sale(number=2)
    report = reconcile([found, gone], [paying(found)], since_s=gone.created_s + 1)

    assert (kinds(report), report.is_explained) == ({Kind.MATCHED: 1}, True)


_SALES = st.builds(
    lambda state, transaction, log_index, amount, requirements, number: replace(
        a_sale(state, number, amount_atomic=amount),
        requirements=requirements,
        transaction=transaction if state in PAID else "",
        log_index=log_index if state in PAID else None,
    ),
    st.sampled_from([State.SETTLED, State.OWED, State.SETTLING, State.SETTLE_FAILED, State.RELEASED]),
    st.sampled_from(["0x1", "0x2"]),
    st.none() | st.integers(0, 2),
    st.integers(1, 3),
    st.sampled_from([BY_PERMIT2, b"{}"]),
    st.integers(1, 9),
)
_BOOKS = st.lists(_SALES, max_size=8, unique_by=lambda sale: sale.key)
_KNOWN = st.builds(
    KnownTransfers, st.sets(st.sampled_from(["0x1", "0x3"])), st.sets(st.tuples(st.just("0x2"), st.integers(0, 2)))
)
_TRANSFERS = st.lists(
    st.builds(
        Transfer,
        st.sampled_from(["0x1", "0x2", "0x3"]),
        st.integers(0, 2),
        st.just(1),
        st.sampled_from(["0x" + "ab" * 20, "0x" + "cd" * 20]),
        st.just(PAY_TO),
        st.integers(1, 3),
        st.sampled_from([None, "", *(f"0x{number:064x}" for number in (1, 2, 3))]),
        st.none() | st.sampled_from([1_799_999_000.0, 1_800_000_001.0]),
    ),
    unique_by=lambda one: (one.transaction, one.log_index),
)


@given(sales=_BOOKS, transfers=_TRANSFERS, known=_KNOWN)
def test_the_sums_add_up_to_the_last_unit(sales: list[Sale], transfers: list[Transfer], known: KnownTransfers) -> None:
    report = reconcile(sales, transfers, known=known)
    recorded, transferred = report.recorded_atomic, report.transferred_atomic

    assert report.chain_atomic == sum(one.amount_atomic for one in transfers)
    assert report.ledger_atomic == sum(sale.authorized_atomic for sale in sales if sale.state in PAID)
    assert recorded[Kind.MATCHED] == transferred[Kind.MATCHED]
    assert (recorded[Kind.UNRECORDED], recorded[Kind.UNEXPLAINED], transferred[Kind.MISSING]) == (0, 0, 0)
    assert report.counts[Kind.MATCHED] + len(report.findings) == sum(report.counts.values())


@given(sales=_BOOKS, transfers=_TRANSFERS, data=st.data())
def test_the_order_of_sales_changes_no_sum(sales: list[Sale], transfers: list[Transfer], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(sales))

    assert (
        reconcile(shuffled, transfers).recorded_atomic[Kind.MATCHED]
        == (reconcile(sales, transfers).recorded_atomic[Kind.MATCHED])
    )
