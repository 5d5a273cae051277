from dataclasses import replace
from typing import Any

import msgspec
import pytest

from obol.x402.authorization import Permit, parse_authorization
from obol.x402.facilitator import Refused
from obol.x402.gas_sponsoring import declare_gas_sponsoring, sign_token_permit, write_token_permit
from obol.x402.models import ExactPayload, PaymentPayload, PaymentRequirements
from obol.x402.permit2 import EXACT_PROXY
from obol.x402.reasons import Reason
from obol.x402.transfer_order import TransferOrder, read_order
from obol.x402.wire_form import wire_form
from tests.x402.samples import BUYER, OBOL, OBOL_REQUIREMENTS, REQUIREMENTS, USDC, pay, pay_obol

ASSETS = (USDC, OBOL)
STRANGER = "0x" + "77" * 20
AUTHORIZATION = parse_authorization(pay_obol().payload)
PERMIT = sign_token_permit(BUYER, OBOL, AUTHORIZATION, nonce=0)


def changed(**fields: Any) -> PaymentPayload:
    return PaymentPayload(OBOL_REQUIREMENTS, wire_form(replace(AUTHORIZATION, **fields), b"\xab" * 65))


def reason(payload: PaymentPayload, requirements: PaymentRequirements = OBOL_REQUIREMENTS) -> str | None:
    order = read_order(payload, requirements, ASSETS)
    return order.reason if isinstance(order, Refused) else None


@pytest.mark.parametrize(
    ("payload", "requirements", "asset"), [(pay(), REQUIREMENTS, USDC), (pay_obol(), OBOL_REQUIREMENTS, OBOL)]
)
def test_an_order_is_of_the_method_of_its_asset(
    payload: PaymentPayload, requirements: PaymentRequirements, asset: Any
) -> None:
    order = read_order(payload, requirements, ASSETS)
    assert isinstance(order, TransferOrder)
    assert (order.asset, order.authorization.method) == (asset, asset.transfer_method)
    assert order.authorization == parse_authorization(payload.payload)
    assert order.token_permit is None


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"to": STRANGER}, Reason.PERMIT2_RECIPIENT_MISMATCH),
        ({"value_atomic": 1}, Reason.PERMIT2_AMOUNT_MISMATCH),
        ({"permit": Permit(STRANGER, EXACT_PROXY)}, Reason.PERMIT2_TOKEN_MISMATCH),
        ({"permit": Permit(OBOL.address.lower(), STRANGER)}, Reason.PERMIT2_SPENDER),
        ({"permit": None}, Reason.NOT_EIP3009),
    ],
)
def test_what_does_not_fit_is_refused(fields: dict[str, Any], expected: Reason) -> None:
    assert reason(changed(**fields)) == expected


def test_permit2_does_not_move_what_eip3009_moves() -> None:
    permit = Permit(USDC.address.lower(), EXACT_PROXY)
    authorization = replace(parse_authorization(pay().payload), permit=permit)
    payload = PaymentPayload(REQUIREMENTS, wire_form(authorization, b"\xab" * 65))
    assert reason(payload, REQUIREMENTS) == Reason.INVALID_PAYLOAD


@pytest.mark.parametrize("extra", [None, {}, {"assetTransferMethod": "permit2"}])
def test_sellers_need_not_name_the_tokens_domain_for_permit2(extra: dict[str, str] | None) -> None:
    wanted = msgspec.structs.replace(OBOL_REQUIREMENTS, extra=extra)
    assert reason(pay_obol(), wanted) is None
    assert reason(pay(), msgspec.structs.replace(REQUIREMENTS, extra=extra)) == Reason.MISSING_EIP712_DOMAIN


def test_a_permit_comes_with_the_order() -> None:
    payload = msgspec.structs.replace(pay_obol(), extensions=write_token_permit(PERMIT))
    order = read_order(payload, OBOL_REQUIREMENTS, ASSETS)
    assert isinstance(order, TransferOrder)
    assert order.token_permit == PERMIT


def test_a_wrong_permit_is_refused_and_a_repeated_declaration_is_none() -> None:
    other = write_token_permit(replace(PERMIT, value_atomic=1))
    assert reason(msgspec.structs.replace(pay_obol(), extensions=other)) == Reason.EIP2612_AMOUNT_MISMATCH
    assert reason(msgspec.structs.replace(pay_obol(), extensions=declare_gas_sponsoring())) is None
    assert reason(msgspec.structs.replace(pay_obol(), extensions=None)) is None


def test_what_cannot_be_read_is_an_invalid_payload() -> None:
    wire = pay_obol().payload.permit2_authorization
    assert not isinstance(wire, msgspec.UnsetType)
    bent = ExactPayload("0x12", permit2_authorization=msgspec.structs.replace(wire, nonce="0x1"))
    assert reason(PaymentPayload(OBOL_REQUIREMENTS, bent)) == Reason.INVALID_PAYLOAD
