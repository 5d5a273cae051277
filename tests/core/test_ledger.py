import dataclasses

from obol.core.ledger import NO_CHANGE, Change
from obol.core.sale import Sale


def test_a_change_that_says_nothing_changes_nothing() -> None:
    assert Change() == NO_CHANGE
    assert {getattr(NO_CHANGE, field.name) for field in dataclasses.fields(Change)} == {None}


def test_a_change_names_columns_of_a_sale() -> None:
    assert {field.name for field in dataclasses.fields(Change)} <= {field.name for field in dataclasses.fields(Sale)}
