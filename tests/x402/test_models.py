import json
from typing import Any

import msgspec
import pytest

from obol.x402.models import ExactPayload, PaymentPayload
from tests.x402.samples import BUYER, pay, pay_obol

WIRE = (
    b'{"signature":"0xabcd","authorization":{"from":"0x1","to":"0x2","value":"1","validAfter":"0",'
    b'"validBefore":"9","nonce":"0x3"}}'
)
PERMIT2_WIRE = (
    b'{"signature":"0xabcd","permit2Authorization":{"from":"0x1","permitted":{"token":"0x4","amount":"1"},'
    b'"spender":"0x5","nonce":"3","deadline":"9","witness":{"to":"0x2","validAfter":"0"}}}'
)


@pytest.mark.parametrize("wire", [WIRE, PERMIT2_WIRE])
def test_a_signature_is_not_in_the_repr_of_what_holds_it(wire: bytes) -> None:
    payload = msgspec.json.decode(wire, type=ExactPayload)
    assert "0xabcd" not in repr(payload)
    assert "0x1" in repr(payload)


@pytest.mark.parametrize("wire", [WIRE, PERMIT2_WIRE])
def test_the_wire_form_has_the_signature_and_only_the_authorization_that_is_there(wire: bytes) -> None:
    payload = msgspec.json.decode(wire, type=ExactPayload)
    assert msgspec.json.encode(payload) == wire
    assert msgspec.to_builtins(payload) == json.loads(wire)


@pytest.mark.parametrize(
    "fields",
    [
        {"signature": "0x"},
        json.loads(WIRE) | json.loads(PERMIT2_WIRE),
    ],
)
def test_exactly_one_authorization_must_be_there(fields: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError, match="exactly one of `authorization` and `permit2Authorization`"):
        msgspec.convert(fields, ExactPayload)


@pytest.mark.parametrize("name", ["authorization", "permit2Authorization"])
def test_null_is_no_authorization(name: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="null"):
        msgspec.convert({**json.loads(WIRE), name: None}, ExactPayload)


def test_the_payer_is_known_whichever_is_signed() -> None:
    assert pay().payer == pay_obol().payer == pay_obol().payload.payer == BUYER.address
    assert (pay().payload.is_permit2, pay_obol().payload.is_permit2) == (False, True)


@pytest.mark.parametrize("payload", [pay(), pay_obol()])
def test_what_a_ledger_keeps_is_read_back_as_it_was(payload: PaymentPayload) -> None:
    assert payload == msgspec.json.decode(msgspec.json.encode(payload), type=PaymentPayload)
