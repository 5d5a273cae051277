import base64
import contextlib
import json
import string
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from x402.http.utils import decode_payment_signature_header

from obol.core.networks import DEFAULT_CATALOGUE
from obol.errors import MalformedPaymentError
from obol.x402.headers import MAX_HEADER_BYTES, decode_header, encode_header, read_presented
from obol.x402.models import PaymentPayload, SettleResponse
from tests.x402.samples import as_v1, as_v2, header, header_of_text, pay, read, read_fields

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_a_value_survives_the_header_and_the_header_is_standard_padded_base64(value: Any) -> None:
    text = encode_header(value)
    assert value == json.loads(base64.b64decode(text, validate=True)) == decode_header(text, object)


@given(st.builds(SettleResponse, st.booleans(), st.text(), st.text(), st.none() | st.text()))
def test_typed_values_survive_the_header(value: SettleResponse) -> None:
    assert value == decode_header(encode_header(value), SettleResponse)


def test_the_official_sdk_reads_our_payment_header() -> None:
    theirs = decode_payment_signature_header(encode_header(pay()))
    assert as_v2(pay()) == theirs.model_dump(by_alias=True, exclude_none=True)


@pytest.mark.parametrize("name", ["X-PAYMENT", "PAYMENT-SIGNATURE"])
@pytest.mark.parametrize("version", [1, 2])
def test_both_versions_are_read_from_either_header(name: str, version: int) -> None:
    text = header(as_v2(pay()) if version == 2 else as_v1(pay()))
    old, new = ([text], []) if name == "X-PAYMENT" else ([], [text])
    presented = read_presented(old, new, DEFAULT_CATALOGUE)
    assert presented is not None
    assert (version, "exact", "eip155:84532") == (presented.version, presented.scheme, presented.network)
    assert pay().payload == presented.payload
    assert (pay().accepted if version == 2 else None) == presented.accepted


def test_no_header_is_no_payment() -> None:
    assert read_presented([], [], DEFAULT_CATALOGUE) is None


def test_the_url_alphabet_and_missing_padding_are_read() -> None:
    fields = as_v2(pay())
    for filler in ("", "?", "??", "???>>>"):  # ? and > become the last letters of either alphabet; all paddings
        fields["resource"] = {"url": "https://x/?" + filler}
        text = header(fields)
        url = text.replace("+", "-").replace("/", "_")
        assert read(text) == read(url) == read(url.rstrip("=")) == read(text.rstrip("="))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "",
        lambda text: " " + text,
        lambda text: text + "\n",
        lambda text: text[:40] + " " + text[40:],
        lambda text: text[:40] + "\n" + text[40:],
        lambda text: text + "====",
        lambda text: text + "=",
        lambda text: "=" + text,
        lambda text: text[:41],
        lambda text: text + "é",
        lambda text: text + "\udc80",
        lambda text: text + "!",
        lambda text: text + text,
        lambda text: text[: len(text) // 2],
    ],
)
def test_anything_else_around_the_base64_is_refused(spoil: Any) -> None:
    with pytest.raises(MalformedPaymentError):
        read(spoil(header(as_v1(pay(), network="base-sepolia"))))


def test_a_header_above_the_limit_is_refused() -> None:
    with pytest.raises(MalformedPaymentError, match="longer than"):
        read("A" * (MAX_HEADER_BYTES + 1))


def test_a_header_sent_twice_is_refused_even_when_equal() -> None:
    text = header(as_v2(pay()))
    with pytest.raises(MalformedPaymentError, match="more than once"):
        read_presented([], [text, text], DEFAULT_CATALOGUE)


@pytest.mark.parametrize("comma", [",", ", "])
def test_comma_merged_headers_are_refused(comma: str) -> None:
    text = header(as_v2(pay()))
    with pytest.raises(MalformedPaymentError, match="more than once"):
        read(text + comma + text)


def test_both_headers_with_one_payment_are_one_payment() -> None:
    text = header(as_v2(pay()))
    blanks = header(as_v2(pay()), indent=1)
    assert read(text) == read_presented([text], [blanks], DEFAULT_CATALOGUE)


def test_both_headers_may_carry_one_payment_in_the_forms_of_both_versions() -> None:
    v1, v2 = header(as_v1(pay())), header(as_v2(pay()))
    assert read(v2) == read_presented([v1], [v2], DEFAULT_CATALOGUE) == read_presented([v2], [v1], DEFAULT_CATALOGUE)


@pytest.mark.parametrize("form", [as_v1, as_v2])
def test_both_headers_with_different_payments_are_refused(form: Any) -> None:
    one, other = header(as_v2(pay())), header(form(pay(nonce=b"\x43" * 32)))
    with pytest.raises(MalformedPaymentError, match="different payments"):
        read_presented([other], [one], DEFAULT_CATALOGUE)


def test_a_payment_in_one_header_and_junk_in_the_other_is_refused() -> None:
    with pytest.raises(MalformedPaymentError):
        read_presented([header(as_v1(pay()))], ["junk"], DEFAULT_CATALOGUE)


@pytest.mark.parametrize("version", [0, 3, -1, "2", 2.0, True, None, [2]])
def test_an_unknown_version_is_refused(version: object) -> None:
    with pytest.raises(MalformedPaymentError):
        read_fields({**as_v2(pay()), "x402Version": version})


def test_a_missing_version_is_refused() -> None:
    fields = as_v2(pay())
    del fields["x402Version"]
    with pytest.raises(MalformedPaymentError, match="x402Version"):
        read_fields(fields)


@pytest.mark.parametrize("missing", ["scheme", "network", "payload"])
def test_a_v1_payload_needs_its_fields(missing: str) -> None:
    fields = as_v1(pay())
    del fields[missing]
    with pytest.raises(MalformedPaymentError, match=missing):
        read_fields(fields)


@pytest.mark.parametrize("missing", ["accepted", "payload"])
def test_a_v2_payload_needs_its_fields(missing: str) -> None:
    fields = as_v2(pay())
    del fields[missing]
    with pytest.raises(MalformedPaymentError, match=missing):
        read_fields(fields)


@pytest.mark.parametrize("value", [1000, 1000.0, None, ["1000"]])
def test_numbers_that_are_not_strings_are_refused(value: object) -> None:
    fields = as_v2(pay())
    fields["payload"]["authorization"]["value"] = value
    with pytest.raises(MalformedPaymentError, match="value"):
        read_fields(fields)


def test_an_unknown_network_stays_as_it_is_written() -> None:
    assert read_fields(as_v1(pay(), network="solana")).network == "solana"


def test_unknown_fields_are_ignored() -> None:
    fields = {**as_v2(pay()), "extensions": {"payment-identifier": {"info": {"id": "a" * 16}}}, "later": [1, 2.5, None]}
    assert read_fields(as_v2(pay())) == read_fields(fields)


DUPLICATES = [
    ('"value":"1000"', '"value":"1","value":"1000"'),
    ('"value":"1000"', '"value" : "1000" , "value"\t:\n"1000"'),
    ('"value":"1000"', '"value":"1","\\u0076alue":"1000"'),
    ('"value":"1000"', '"val\\u0075e":"1000","valu\\u0065":"1000"'),
    ('"x402Version":2', '"x402Version":1,"x402Version":2'),
    ('"x402Version":2', '"x402Version":2,"unknown":1,"unknown":1'),
    ('"x402Version":2', '"x402Version":2,"deep":[{"a":[{"b":1,"b":1}]}]'),
    ('"x402Version":2', '"x402Version":2,"":1,"":1'),
    ('"x402Version":2', '"x402Version":2,"\\ud83d\\ude00":1,"😀":1'),
]


@pytest.mark.parametrize(("text", "doubled"), DUPLICATES)
def test_a_key_twice_in_one_object_is_refused(text: str, doubled: str) -> None:
    raw = msgspec.json.encode(pay()).decode()
    assert text in raw
    with pytest.raises(MalformedPaymentError, match="key twice"):
        read(header_of_text(raw.replace(text, doubled)))


@given(st.data())
def test_any_member_doubled_anywhere_is_refused(data: st.DataObject) -> None:
    """Doubles a random member of the payload, the second key spelled with random escapes, blanks between."""
    raw = msgspec.json.encode(pay()).decode()
    keys = sorted({part.split('"')[-1] for part in raw.split('":')[:-1]})
    key = data.draw(st.sampled_from(keys))
    spelled = "".join(f"\\u{ord(c):04x}" if data.draw(st.booleans()) else c for c in key)
    blank = data.draw(st.sampled_from(["", " ", "\n\t"]))
    doubled = raw.replace(f'"{key}":', f'"{spelled}"{blank}:0,"{key}":', 1)
    with pytest.raises(MalformedPaymentError):
        read(header_of_text(doubled))


def test_equal_keys_in_different_objects_are_fine() -> None:
    fields = {**as_v2(pay()), "extensions": {"a": {"name": 1}, "b": {"name": 1}}}
    assert read_fields(as_v2(pay())) == read(header(fields, indent=2)) == read(header_of_text(json.dumps(fields)))


@pytest.mark.parametrize("opening", ["[", '{"a":', '{"payload":', '{"x402Version":2,"deep":['])
def test_a_nesting_bomb_is_refused(opening: str) -> None:
    with pytest.raises(MalformedPaymentError):
        read(header_of_text(opening * (12_000 // len(opening))))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "1",
        "[]",
        '"x"',
        "{}",
        "NaN",
        '{"x402Version":NaN}',
        '{"x402Version":' + "9" * 5000 + "}",
        "\ufeff{}",
        "{} {}",
        "{}//",
    ],
)
def test_other_json_and_what_is_nearly_json_is_refused(text: str) -> None:
    with pytest.raises(MalformedPaymentError):
        read(header_of_text(text))


@pytest.mark.parametrize("junk", [b'"\xff"', b'"\xc3\x28"', b'"\\ud800"', b"NaN", b"Infinity", b"01", b"'x'"])
def test_an_unknown_field_that_is_not_json_is_refused(junk: bytes) -> None:
    raw = msgspec.json.encode(pay()).replace(b'"x402Version":2', b'"x402Version":2,"unknown":' + junk)
    with pytest.raises(MalformedPaymentError):
        read(base64.b64encode(raw).decode())


@given(st.text())
def test_no_text_raises_anything_else(text: str) -> None:
    _read_or_refuse([text])


@given(st.text(alphabet=string.ascii_letters + string.digits + "+/-_=", max_size=400))
def test_no_base64_raises_anything_else(text: str) -> None:
    _read_or_refuse([text])


@given(st.binary())
def test_no_bytes_raise_anything_else(raw: bytes) -> None:
    _read_or_refuse([base64.b64encode(raw).decode()])


@given(JSON)
def test_no_json_raises_anything_else(value: Any) -> None:
    _read_or_refuse([header(value)])


@given(st.data())
def test_no_change_of_a_byte_raises_anything_else(data: st.DataObject) -> None:
    raw = bytearray(msgspec.json.encode(pay()))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    _read_or_refuse([base64.b64encode(raw).decode()])


def _read_or_refuse(values: list[str]) -> None:
    with contextlib.suppress(MalformedPaymentError):
        read_presented([], values, DEFAULT_CATALOGUE)


def test_neither_errors_nor_reprs_hold_the_signature() -> None:
    fields = as_v2(pay())
    signature = fields["payload"]["signature"]
    assert signature not in repr(read_fields(fields))
    fields["payload"]["authorization"]["nonce"] = 1
    with pytest.raises(MalformedPaymentError) as caught:
        read_fields(fields)
    assert signature not in str(caught.value)
    assert caught.value.__suppress_context__


def test_payload_type_is_read_by_decode_header() -> None:
    assert pay() == decode_header(encode_header(pay()), PaymentPayload)
