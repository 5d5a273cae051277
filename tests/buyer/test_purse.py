"""The purse alone: whatever happens to payments, no more is out than the budget pays for."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obol.buyer.payment import EXPIRY_MARGIN_S, Payment, PaymentStatus
from obol.buyer.purse import MAX_RECORDS, Purse, Signed, Terms, to_units
from obol.buyer.verdict import Verdict
from obol.core.networks import BASE_SEPOLIA, Asset
from obol.errors import BudgetExceededError, SettingsError, UnpayableError
from tests.fakes.seller import PAY_TO, USDC, requirements

_IDS = itertools.count(1)
VALID_S = 300
STATUSES = [PaymentStatus.PAID, PaymentStatus.UNPAID, PaymentStatus.UNKNOWN]


def sign(purse: Purse, amount_atomic: int, now_s: float, *, asset: Asset = USDC, purchase: str = "p") -> Signed:
    units = purse.reserve(asset, amount_atomic, now_s)
    payment = Payment(next(_IDS), "u", amount_atomic, asset, PAY_TO, int(now_s) + VALID_S, PaymentStatus.SENT)
    signed = Signed(Terms("o", requirements(asset, amount_atomic), 2), purchase, payment, units)
    purse.add(signed)
    return signed


def test_what_is_paid_stays_spent() -> None:
    purse = Purse("1")
    purse.conclude(sign(purse, 400_000, 0), Verdict(PaymentStatus.PAID, "0xab"))

    assert (purse.spent, purse.remaining(10**9)) == ("0.4", "0.6")


def test_what_is_unknown_stays_held_for_ever() -> None:
    purse = Purse("1")
    purse.conclude(sign(purse, 400_000, 0), Verdict(PaymentStatus.UNKNOWN))

    assert (purse.spent, purse.unknown, purse.unknown_count, purse.remaining(10**9)) == ("0", "0.4", 1, "0.6")


def test_what_is_unpaid_is_free_again_only_after_it_expired() -> None:
    purse = Purse("1")
    purse.conclude(sign(purse, 400_000, 0), Verdict(PaymentStatus.UNPAID))

    assert purse.remaining(VALID_S + EXPIRY_MARGIN_S) == "0.6"
    assert purse.remaining(VALID_S + EXPIRY_MARGIN_S + 1) == "1"


@pytest.mark.parametrize("later", STATUSES)
def test_what_is_known_to_be_paid_stays_known(later: PaymentStatus) -> None:
    purse = Purse("1")
    signed = sign(purse, 400_000, 0)
    purse.conclude(signed, Verdict(PaymentStatus.PAID, "0xab"), receipt_url="r")
    payment = purse.conclude(signed, Verdict(later, reason="x"))

    assert (payment.status, payment.transaction, payment.receipt_url) == (PaymentStatus.PAID, "0xab", "r")
    assert (purse.spent, purse.unknown) == ("0.4", "0")


def test_an_unknown_payment_never_becomes_unpaid() -> None:
    purse = Purse("1")
    signed = sign(purse, 400_000, 0)
    purse.conclude(signed, Verdict(PaymentStatus.UNKNOWN))
    purse.conclude(signed, Verdict(PaymentStatus.UNPAID))

    assert (purse.unknown, purse.remaining(10**9)) == ("0.4", "0.6")


def test_assets_of_other_decimals_count_by_their_value() -> None:
    purse = Purse("2")
    fine = Asset("FINE", BASE_SEPOLIA, "0x" + "3" * 40, 18, "Fine", "1")
    sign(purse, 10**18, 0, asset=fine)
    sign(purse, 10**6, 0)

    with pytest.raises(BudgetExceededError):
        sign(purse, 1, 0, asset=fine)


def test_an_asset_too_fine_to_count_is_unpayable() -> None:
    with pytest.raises(UnpayableError):
        to_units(Asset("X", BASE_SEPOLIA, "0x" + "3" * 40, 37, "X", "1"), 1)


def test_a_budget_that_is_no_amount_is_refused() -> None:
    with pytest.raises(SettingsError, match="budget"):
        Purse("0,5")


def test_an_unresolved_payment_is_given_to_one_taker_for_its_own_purchase() -> None:
    purse = Purse(None)
    signed = sign(purse, 1, 0, purchase="a")
    purse.keep(signed)

    assert purse.take_unresolved("b", 0) is None
    assert [purse.take_unresolved("a", 0), purse.take_unresolved("a", 0)] == [signed, None]


def test_an_unresolved_payment_is_not_presented_when_it_is_about_to_expire() -> None:
    purse = Purse(None)
    purse.keep(sign(purse, 1, 0, purchase="a"))

    assert purse.take_unresolved("a", VALID_S - 1) is None


def test_only_a_payment_that_was_declined_for_now_is_used_again() -> None:
    purse = Purse(None)
    refused, busy = sign(purse, 1, 0), sign(purse, 1, 0)
    purse.conclude(refused, Verdict(PaymentStatus.UNPAID))
    purse.conclude(busy, Verdict(PaymentStatus.UNPAID), is_reusable=True)

    assert [purse.take_resting(busy.terms, "q", 0), purse.take_resting(busy.terms, "q", 0)] == [busy, None]


def test_only_so_many_payments_are_remembered_and_the_sums_hold_all() -> None:
    purse = Purse(None)
    for _ in range(MAX_RECORDS + 5):
        purse.conclude(sign(purse, 1_000_000, 0), Verdict(PaymentStatus.PAID))

    assert (len(purse.payments), purse.spent) == (MAX_RECORDS, str(MAX_RECORDS + 5))


@given(
    st.lists(st.tuples(st.integers(1, 5), st.sampled_from(STATUSES), st.booleans(), st.integers(0, 400)), max_size=40)
)
def test_what_may_still_move_or_has_moved_never_passes_the_budget(
    steps: list[tuple[int, PaymentStatus, bool, int]],
) -> None:
    purse, now_s, out = Purse("0.00001"), 0, list[Signed]()
    for amount, status, is_reusable, passed_s in steps:
        now_s += passed_s
        try:
            signed = sign(purse, amount, now_s)
        except BudgetExceededError:
            continue
        out.append(signed)
        purse.conclude(signed, Verdict(status), is_reusable=is_reusable)
        exposed = sum(
            s.payment.amount_atomic
            for s in out
            if s.payment.status is not PaymentStatus.UNPAID or s.payment.valid_before_s >= now_s
        )
        assert exposed <= 10
