from dataclasses import replace
from typing import Any

import msgspec
import pytest

from obol.core.networks import BASE_SEPOLIA, DEFAULT_CATALOGUE
from obol.core.sale import ClaimKey, NewSale, Sale
from obol.x402.authorization import Authorization, Permit, parse_authorization
from obol.x402.claimed_payment import payment_flaws
from obol.x402.models import PaymentPayload
from obol.x402.permit2 import EXACT_PROXY_ADDRESS
from obol.x402.wire_form import wire_form
from tests.adapters.payments import pay, requirements
from tests.adapters.sales import a_new_sale, as_claimed

OBOL = DEFAULT_CATALOGUE.asset(BASE_SEPOLIA, "obol")


def by_permit2() -> PaymentPayload:
    wanted = requirements(token=OBOL, extra={"assetTransferMethod": "permit2"})
    permit = Permit(OBOL.address, EXACT_PROXY_ADDRESS)
    nonce = f"0x{77:064x}"
    return PaymentPayload(
        wanted, wire_form(Authorization("0x" + "ab" * 20, wanted.pay_to, 1000, 0, 99, nonce, permit), bytes(65))
    )


def sold_for(paid: PaymentPayload) -> Sale:
    """The row of a gateway that was paid so."""
    authorization = parse_authorization(paid.payload)
    key = ClaimKey(paid.accepted.network, paid.accepted.asset.lower(), authorization.payer, authorization.nonce)
    new: NewSale = replace(
        a_new_sale(key),
        pay_to=paid.accepted.pay_to,
        authorized_atomic=authorization.value_atomic,
        valid_before_s=authorization.valid_before_s,
        payload=msgspec.json.encode(paid),
        requirements=msgspec.json.encode(paid.accepted),
    )
    return as_claimed(new, 0)


@pytest.fixture(params=["eip3009", "permit2"])
def sale(request: pytest.FixtureRequest) -> Sale:
    return sold_for(by_permit2() if request.param == "permit2" else pay(requirements()))


def test_a_sale_that_tells_of_its_payment_has_no_flaw(sale: Sale) -> None:
    assert list(payment_flaws(sale)) == []


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"authorized_atomic": 1001}, "amount"),
        ({"pay_to": "0x" + "de" * 20}, "payTo"),
        ({"valid_before_s": 1}, "end of the window"),
    ],
)
def test_what_the_payment_does_not_authorize_is_named(sale: Sale, change: dict[str, Any], name: str) -> None:
    assert list(payment_flaws(replace(sale, **change))) == [f"its payment authorizes another {name}"]


@pytest.mark.parametrize("name", ["payer", "nonce"])
def test_so_is_an_authorization_that_is_another(sale: Sale, name: str) -> None:
    other = replace(sale.key, **{name: "0x" + "de" * 20})

    assert list(payment_flaws(replace(sale, key=other))) == [f"its payment authorizes another {name}"]


def test_permit2_authorizes_one_token() -> None:
    sale = sold_for(by_permit2())
    other = replace(sale.key, asset="0x" + "de" * 20)

    assert list(payment_flaws(replace(sale, key=other))) == ["its payment authorizes another asset"]


@pytest.mark.parametrize("payload", [b"\0", b"", b"{}", b'{"x402Version":2}', b"[]"])
def test_a_payment_that_cannot_be_read_could_not_be_settled(sale: Sale, payload: bytes) -> None:
    assert list(payment_flaws(replace(sale, payload=payload))) == [
        "its payment cannot be read: it could not be settled"
    ]


def test_a_number_that_is_not_canonical_cannot_be_read() -> None:
    paid = pay(requirements())
    spoiled = msgspec.json.encode(paid).replace(b'"value":"1000"', b'"value":"0x3e8"')

    assert len(list(payment_flaws(replace(sold_for(paid), payload=spoiled)))) == 1


def test_requirements_that_are_others_than_were_accepted_are_a_flaw(sale: Sale) -> None:
    others = msgspec.json.encode(requirements(max_timeout_seconds=1))

    assert list(payment_flaws(replace(sale, requirements=others))) == ["its payment was made for other requirements"]


def test_requirements_that_are_not_complete_are_a_flaw(sale: Sale) -> None:
    assert len(list(payment_flaws(replace(sale, requirements=b"{}")))) == 1


def test_a_flaw_never_tells_the_signature(sale: Sale) -> None:
    spoiled = replace(sale, authorized_atomic=1, pay_to="0x", requirements=b"{}", valid_before_s=0)

    assert "0x" not in " ".join(payment_flaws(spoiled))
