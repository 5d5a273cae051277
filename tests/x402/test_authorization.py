import pytest
from hypothesis import given
from hypothesis import strategies as st

from obol.core.money import UINT256_MAX
from obol.errors import MalformedPaymentError
from obol.x402.authorization import MAX_SIGNATURE_CHARS, Authorization, parse_authorization, parse_signature
from obol.x402.models import ExactAuthorization, ExactPayload

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


def test_typed_values_are_read_from_the_wire() -> None:
    expected = Authorization("0x" + "ab" * 20, "0x" + "cd" * 20, 1000, 0, 1_800_000_300, "0x" + "ef" * 32)
    assert expected == parse_authorization(payload())


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
