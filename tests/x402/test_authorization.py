import pytest
from hypothesis import given
from hypothesis import strategies as st

from obol.core.money import UINT256_MAX
from obol.core.networks import TransferMethod
from obol.errors import MalformedPaymentError
from obol.x402.authorization import (
    MAX_SIGNATURE_CHARS,
    Authorization,
    Permit,
    nonce_of,
    parse_authorization,
    parse_signature,
)
from obol.x402.models import (
    ExactAuthorization,
    ExactPayload,
    ExactPermit2Authorization,
    TokenPermissions,
    TransferWitness,
)

PAYER = "0x" + "aB" * 20
FIELDS = {
    "from_": PAYER,
    "to": "0x" + "cd" * 20,
    "value": "1000",
    "valid_after": "0",
    "valid_before": "1800000300",
    "nonce": "0x" + "Ef" * 32,
}


def payload(signature: str = "0x" + "ab" * 65, **fields: str) -> ExactPayload:
    return ExactPayload(signature, ExactAuthorization(**{**FIELDS, **fields}))


PERMIT2_FIELDS = {
    "from": PAYER,
    "token": "0x" + "Ab" * 20,
    "amount": "1000",
    "spender": "0x" + "eF" * 20,
    "nonce": "255",
    "deadline": "1800000300",
    "to": "0x" + "cd" * 20,
    "validAfter": "0",
}


def permit2(**changes: str) -> ExactPayload:
    wire = {**PERMIT2_FIELDS, **changes}
    signed = ExactPermit2Authorization(
        from_=wire["from"],
        permitted=TokenPermissions(wire["token"], wire["amount"]),
        spender=wire["spender"],
        nonce=wire["nonce"],
        deadline=wire["deadline"],
        witness=TransferWitness(wire["to"], wire["validAfter"]),
    )
    return ExactPayload("0x" + "ab" * 65, permit2_authorization=signed)


def test_typed_values_are_read_from_the_wire() -> None:
    expected = Authorization("0x" + "ab" * 20, "0x" + "cd" * 20, 1000, 0, 1_800_000_300, "0x" + "ef" * 32)
    assert expected == parse_authorization(payload())
    assert expected.method is TransferMethod.EIP3009


def test_typed_values_of_permit2_have_the_same_names() -> None:
    permit = Permit(token="0x" + "ab" * 20, spender="0x" + "ef" * 20)
    nonce = "0x" + "00" * 31 + "ff"
    expected = Authorization("0x" + "ab" * 20, "0x" + "cd" * 20, 1000, 0, 1_800_000_300, nonce, permit)
    assert expected == parse_authorization(permit2())
    assert expected.method is TransferMethod.PERMIT2


@pytest.mark.parametrize("field", ["amount", "nonce", "deadline", "validAfter"])
@pytest.mark.parametrize("text", ["", "1.0", "-1", "01", " 1", "0x10", "0x" + "ef" * 32, "١", str(UINT256_MAX + 1)])
def test_a_number_of_permit2_that_is_not_canonical_is_refused(field: str, text: str) -> None:
    with pytest.raises(MalformedPaymentError, match=rf"permit2Authorization\.\S*{field} is not a canonical decimal"):
        parse_authorization(permit2(**{field: text}))


@pytest.mark.parametrize("field", ["from", "token", "spender", "to"])
@pytest.mark.parametrize("text", ["", "0x", PAYER[2:], PAYER + "0", PAYER[:-1] + "g"])
def test_an_address_of_permit2_is_20_bytes_of_hex(field: str, text: str) -> None:
    with pytest.raises(MalformedPaymentError, match=rf"permit2Authorization\.\S*{field} is not an address"):
        parse_authorization(permit2(**{field: text}))


@given(st.integers(0, UINT256_MAX))
def test_every_permit2_nonce_has_one_form_here(nonce: int) -> None:
    typed = parse_authorization(permit2(nonce=str(nonce))).nonce
    assert typed == nonce_of(nonce)
    assert (len(typed), int(typed, 16)) == (66, nonce)


@pytest.mark.parametrize("field", ["value", "valid_after", "valid_before"])
@pytest.mark.parametrize(
    "text",
    ["", "1.0", "1e3", "+1", "-1", "01", "00", " 1", "1 ", "1_0", "0x10", "١", "²", str(UINT256_MAX + 1), "9" * 5000],
)
def test_a_number_that_is_not_canonical_is_refused(field: str, text: str) -> None:
    with pytest.raises(MalformedPaymentError, match="canonical decimal"):
        parse_authorization(payload(**{field: text}))


@given(st.integers(0, UINT256_MAX))
def test_every_uint256_is_read_as_it_is(value: int) -> None:
    assert value == parse_authorization(payload(value=str(value))).value_atomic


@pytest.mark.parametrize("spelling", [PAYER, PAYER.lower(), "0X" + PAYER[2:].upper()])
def test_an_address_is_read_in_any_letter_case(spelling: str) -> None:
    assert PAYER.lower() == parse_authorization(payload(from_=spelling)).payer


@pytest.mark.parametrize("field", ["from_", "to"])
@pytest.mark.parametrize(
    "text", ["", "0x", PAYER[2:], PAYER[:-1], PAYER + "0", PAYER[:-1] + "g", PAYER + "\n", " " + PAYER]
)
def test_what_is_not_an_address_is_refused(field: str, text: str) -> None:
    with pytest.raises(MalformedPaymentError, match="not an address"):
        parse_authorization(payload(**{field: text}))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0x",
        "ef" * 33,
        "0X" + "ef" * 32,
        "0x" + "ef" * 31,
        "0x" + "ef" * 33,
        "0x" + "e f" + "ef" * 31,
        "0x" + "é" * 64,
    ],
)
def test_a_nonce_is_0x_and_64_hex_digits(text: str) -> None:
    with pytest.raises(MalformedPaymentError, match="nonce"):
        parse_authorization(payload(nonce=text))


@given(st.binary(min_size=1, max_size=200))
def test_a_signature_of_any_length_is_read(signature: bytes) -> None:
    assert signature == parse_signature(payload("0x" + signature.hex()))


@pytest.mark.parametrize(
    "text", ["", "0x", "0xabc", "ab" * 65, "0x" + "zz" * 65, "0xab ab", "0xab\n", "0x" + "ab" * MAX_SIGNATURE_CHARS]
)
def test_a_signature_is_0x_and_hex_of_limited_length(text: str) -> None:
    with pytest.raises(MalformedPaymentError, match="signature"):
        parse_signature(payload(text))
