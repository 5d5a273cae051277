from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given

from obol.core.integrity import Checker
from obol.core.payment import State
from obol.core.sale import Delivery, Sale
from tests.core.booked_sales import a_sale, recorded_sales


@given(recorded_sales())
def test_no_row_that_a_gateway_leaves_behind_is_called_wrong(sale: Sale) -> None:
    assert Checker().check(sale) == []


@pytest.mark.parametrize(
    ("state", "change"),
    [
        (State.SETTLED, {"state": State.VERIFIED}),
        (State.SETTLED, {"transaction": ""}),
        (State.SETTLED, {"settled_atomic": 999}),
        (State.SETTLED, {"settled_atomic": None}),
        (State.SETTLED, {"delivery": Delivery.NONE}),
        (State.SETTLED, {"log_index": -1}),
        (State.SETTLED, {"attempt": ""}),
        (State.SETTLED, {"requirements": b'{"amount":"999"}'}),
        (State.SETTLED, {"requirements": b'{"payTo":"0x01"}'}),
        (State.SETTLED, {"requirements": b"\xff"}),
        (State.SETTLED, {"authorized_atomic": 0, "settled_atomic": 0}),
        (State.OWED, {"delivery": Delivery.COMPLETE}),
        (State.SETTLE_FAILED, {"settled_atomic": 1000}),
        (State.SETTLE_FAILED, {"settled_atomic": None}),
        (State.SETTLE_FAILED, {"log_index": 1, "transaction": "0x1"}),
        (State.RELEASED, {"settled_atomic": 0}),
        (State.RELEASED, {"transaction": "0x1"}),
        (State.RELEASED, {"delivery": Delivery.STARTED}),
        (State.CLAIMED, {"transaction": "0x1"}),
        (State.SETTLING, {"transaction": "0x1"}),
        (State.SERVED, {"attempt": "another"}),
        (State.WAIVED, {"settled_atomic": 1000}),
    ],
)
def test_what_cannot_be_true_is_one_flaw_of_that_sale(state: State, change: dict[str, Any]) -> None:
    flaws = Checker().check(replace(a_sale(state), **change))

    assert [flaw.sale for flaw in flaws][:1] == ["sale-1"]


def test_a_payer_in_capitals_is_a_flaw() -> None:
    sale = a_sale()

    assert Checker().check(replace(sale, key=replace(sale.key, payer="0xAB")))


def test_one_transfer_that_pays_two_sales_is_a_flaw_of_the_second() -> None:
    one = replace(a_sale(number=1), transaction="0x1", log_index=3)
    checker = Checker()

    assert checker.check(one) == []
    assert [flaw.sale for flaw in checker.check(replace(one, id="b", attempt="b"))] == ["b"]


@pytest.mark.parametrize("log_index", [None, 4])
def test_several_sales_may_share_a_transaction(log_index: int | None) -> None:
    one = replace(a_sale(), transaction="0x1", log_index=log_index and 3)
    checker = Checker()
    checker.check(one)

    assert checker.check(replace(one, id="b", attempt="b", log_index=log_index)) == []


def test_a_flaw_never_tells_the_signed_payload() -> None:
    flaws = Checker().check(replace(a_sale(), requirements=b"secret", transaction=""))

    assert flaws
    assert "secret" not in str(flaws)
