from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from obol.core.payment import PAID, State
from obol.core.reconciliation import Kind, Reconciler, Report
from obol.core.sale import Sale
from obol.core.transfer import Transfer
from tests.core.booked_sales import PAY_TO, a_sale

LATER_S = 2e9


def paying(sale: Sale, *, log_index: int = 0, amount_atomic: int | None = None, transaction: str = "") -> Transfer:
    """The transfer that a sale tells of."""
    amount = sale.authorized_atomic if amount_atomic is None else amount_atomic
    return Transfer(transaction or sale.transaction, log_index, 1, sale.key.payer, PAY_TO, amount)


def reconcile(
    sales: Sequence[Sale], transfers: Sequence[Transfer], *, due_before_s: float = LATER_S, since_s: float | None = None
) -> Report:
    reconciler = Reconciler(transfers, due_before_s=due_before_s, since_s=since_s)
    for sale in sales:
        reconciler.add(sale)
    return reconciler.report()


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


def test_a_sale_that_named_its_transaction_is_not_explained_by_another() -> None:
    sale = replace(a_sale(State.SETTLE_UNKNOWN), transaction="0x8")

    assert kinds(reconcile([sale], [paying(sale, transaction="0x9")])) == {Kind.UNEXPLAINED: 1}


def test_a_sale_that_is_younger_than_the_chain_was_read_is_not_due() -> None:
    report = reconcile([a_sale()], [], due_before_s=a_sale().updated_s)

    assert (kinds(report), report.is_explained, report.ledger_atomic) == ({Kind.NOT_DUE: 1}, True, 1000)


def test_an_older_sale_explains_a_transfer_and_is_not_missed() -> None:
    found, gone = a_sale(number=1), a_sale(number=2)
    report = reconcile([found, gone], [paying(found)], since_s=gone.created_s + 1)

    assert (kinds(report), report.is_explained) == ({Kind.MATCHED: 1}, True)


_SALES = st.builds(
    lambda state, transaction, log_index, amount: replace(
        a_sale(state, amount_atomic=amount),
        transaction=transaction if state in PAID else "",
        log_index=log_index if state in PAID else None,
    ),
    st.sampled_from([State.SETTLED, State.OWED, State.SETTLING, State.SETTLE_FAILED, State.RELEASED]),
    st.sampled_from(["0x1", "0x2"]),
    st.none() | st.integers(0, 2),
    st.integers(1, 3),
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
    ),
    unique_by=lambda one: (one.transaction, one.log_index),
)


@given(sales=st.lists(_SALES, max_size=8), transfers=_TRANSFERS)
def test_the_sums_add_up_to_the_last_unit(sales: list[Sale], transfers: list[Transfer]) -> None:
    report = reconcile(sales, transfers)
    recorded, transferred = report.recorded_atomic, report.transferred_atomic

    assert report.chain_atomic == sum(one.amount_atomic for one in transfers)
    assert report.ledger_atomic == sum(sale.authorized_atomic for sale in sales if sale.state in PAID)
    assert recorded[Kind.MATCHED] == transferred[Kind.MATCHED]
    assert (recorded[Kind.UNRECORDED], recorded[Kind.UNEXPLAINED], transferred[Kind.MISSING]) == (0, 0, 0)
    assert report.counts[Kind.MATCHED] + len(report.findings) == sum(report.counts.values())


@given(sales=st.lists(_SALES, max_size=8), transfers=_TRANSFERS, data=st.data())
def test_the_order_of_sales_changes_no_sum(sales: list[Sale], transfers: list[Transfer], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(sales))

    assert (
        reconcile(shuffled, transfers).recorded_atomic[Kind.MATCHED]
        == (reconcile(sales, transfers).recorded_atomic[Kind.MATCHED])
    )
