from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obol.core.payment import State
from obol.core.sale import Sale
from obol.core.totals import COLUMN_OF, By, Column, Totals, amount_of
from tests.core.booked_sales import a_sale, recorded_sales


def test_every_state_has_its_column() -> None:
    assert set(COLUMN_OF) == set(State)


@given(sales=st.lists(recorded_sales()), by=st.sampled_from(By))
def test_the_columns_of_all_lines_add_up_to_all_sales(sales: list[Sale], by: By) -> None:
    totals = Totals(by)
    for sale in sales:
        totals.add(sale)

    assert sum(total.count for _, total in totals.lines()) == len(sales)
    assert sum(sum(total.amounts_atomic.values()) for _, total in totals.lines()) == sum(map(amount_of, sales))


def test_amounts_of_different_assets_are_never_added() -> None:
    one = a_sale(State.SETTLED, 1)
    totals = Totals(By.OFFER)
    for sale in (one, replace(one, key=replace(one.key, asset="0x" + "11" * 20))):
        totals.add(sale)

    assert [total.amounts_atomic for _, total in totals.lines()] == [{Column.SETTLED: 1000}] * 2


@pytest.mark.parametrize(("created_s", "day"), [(1_799_999_999.9, "2027-01-15"), (1_800_057_600.0, "2027-01-16")])
def test_a_day_is_one_of_utc(created_s: float, day: str) -> None:
    totals = Totals(By.DAY)
    totals.add(replace(a_sale(), created_s=created_s))

    assert [line.name for line, _ in totals.lines()] == [day]
