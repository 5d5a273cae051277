import dataclasses

import pytest

from obol.core.payment import PAID, State
from obol.core.sale import ClaimKey, Delivery, NewSale, Receipt, Sale, receipt_of
from obol.core.usage import UNKNOWN_USAGE, Usage

SECRET = b'{"signature":"0xsecret"}'
SALE = Sale(
    id="sale-1",
    key=ClaimKey("eip155:8453", "0x" + "a" * 40, "0x" + "b" * 40, "0x" + "c" * 64),
    offer="qwen",
    pay_to="0x" + "d" * 40,
    authorized_atomic=2**256 - 1,
    valid_before_s=1_800_000_300,
    api="chat",
    model="qwen36-fast",
    payload=SECRET,
    requirements=b"{}",
    created_s=1.0,
    state=State.SETTLED,
    delivery=Delivery.COMPLETE,
    settled_atomic=1_000,
    transaction="0x12",
    reason="why",
    usage=Usage(3, 4),
    updated_s=2.0,
)


def test_a_receipt_says_everything_of_the_sale_but_what_is_signed() -> None:
    receipt = receipt_of(SALE)

    shown = {field.name: getattr(receipt, field.name) for field in dataclasses.fields(receipt)}
    recorded = {field.name: getattr(SALE, field.name) for field in dataclasses.fields(SALE)}
    for hidden in ("payload", "requirements", "key", "api", "valid_before_s", "attempt"):
        del recorded[hidden]
    assert shown == recorded | {"network": SALE.key.network, "asset": SALE.key.asset, "payer": SALE.key.payer}


def test_the_payload_is_never_in_a_receipt() -> None:
    assert "payload" not in {field.name for field in dataclasses.fields(Receipt)}
    assert "secret" not in repr(receipt_of(SALE))
    assert SALE.key.nonce not in repr(receipt_of(SALE))


def test_the_payload_is_not_shown_by_repr() -> None:
    given = {field.name: getattr(SALE, field.name) for field in dataclasses.fields(NewSale)}

    assert "secret" not in repr(SALE)
    assert "secret" not in repr(NewSale(**given))


@pytest.mark.parametrize("state", State)
def test_a_receipt_is_paid_where_money_has_moved(state: State) -> None:
    assert receipt_of(dataclasses.replace(SALE, state=state)).is_paid == (state in PAID)


def test_what_is_not_known_is_not_zero() -> None:
    fresh = dataclasses.replace(SALE, settled_atomic=None, usage=UNKNOWN_USAGE)

    assert receipt_of(fresh).settled_atomic is None
    assert receipt_of(fresh).usage == Usage(None, None)
    assert Usage(0, 0) != UNKNOWN_USAGE
