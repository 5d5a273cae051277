"""A client's JSON object is read only where every parser reads it alike."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obol.errors import MalformedRequestError
from obol.inference.json_object import MAX_MEMBERS, read_members

RELEVANT = frozenset({"model", "stream", "max_tokens"})


def reason_of(text: bytes) -> tuple[str, str | None]:
    with pytest.raises(MalformedRequestError) as caught:
        read_members(text, RELEVANT)
    return caught.value.reason, caught.value.param


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"nope",
        b"{}x",
        b"{'a':1}",
        b'{"a":1,}',
        b'{"a":NaN}',
        b'{"a":01}',
        b'{"a":"\\x"}',
        b"\xef\xbb\xbf{}",
        b'{"\xff":1}',
        '{"a":1}'.encode("utf-16"),
    ],
)
def test_what_is_not_json_is_refused(text: bytes) -> None:
    assert reason_of(text) == ("invalid_json", None)


@pytest.mark.parametrize("text", [b"[]", b"1", b'"a"', b"null"])
def test_what_is_not_an_object_is_refused(text: bytes) -> None:
    assert reason_of(text) == ("invalid_type", None)


@pytest.mark.parametrize("bomb", [b'{"a":' * 100_000, b'{"a":' + b"[" * 1_000_000, b"[" * 1_000_000])
def test_a_nested_bomb_is_refused(bomb: bytes) -> None:
    assert reason_of(bomb)[0] in {"invalid_json", "invalid_type"}


@pytest.mark.parametrize(
    "text",
    [
        b'{"model":"a","model":"b"}',
        b'{"model":"a","x":1,"model":"a"}',
        b'{"model":"a","mod\\u0065l":"b"}',
        b'{"mod\\u0065l":"b"}',
        b'{ "model" : 1 , "model" : 1 }',
        b'{"x":1,"x":12}',
        b'{"x":12,"x":1}',
        b'{"x":{"model":1},"x":{"model":1}}',
    ],
)
def test_a_repeated_or_escaped_name_is_refused(text: bytes) -> None:
    assert reason_of(text)[0] == "duplicate_parameter"


def test_the_repeated_name_is_told() -> None:
    assert reason_of(b'{"a":1,"max_tokens":1,"b":2,"max_tokens":100000}') == ("duplicate_parameter", "max_tokens")


@pytest.mark.parametrize(
    "name", ["Model", "MODEL", "Max_Tokens", "\N{LATIN SMALL LETTER LONG S}tream", "max_to\N{KELVIN SIGN}ens"]
)
def test_another_letter_case_of_a_relevant_name_is_refused(name: str) -> None:
    reason, param = reason_of(json.dumps({name: 1}, ensure_ascii=False).encode())
    assert (reason, param) == ("invalid_parameter_name", name.casefold())


def test_names_that_nothing_depends_on_may_have_any_letter_case() -> None:
    assert set(read_members(b'{"Foo":1,"foo":2}', RELEVANT)) == {"Foo", "foo"}


def test_too_many_names_are_refused() -> None:
    text = json.dumps({f"a{i}": 1 for i in range(MAX_MEMBERS + 1)}).encode()
    assert reason_of(text)[0] == "too_many_parameters"


def test_values_keep_their_bytes() -> None:
    members = read_members(
        b'{"a": 1e400 ,"b":123456789012345678901234567890,"c":"\\u00e9", "d":{"x":1,"x":2}}', RELEVANT
    )
    values = {name: bytes(value) for name, value in members.items()}
    big = b"123456789012345678901234567890"
    assert values == {"a": b"1e400", "b": big, "c": b'"\\u00e9"', "d": b'{"x":1,"x":2}'}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
plain_names = st.text(
    st.characters(min_codepoint=0x20, exclude_characters='"\\', exclude_categories=["Cs"]), max_size=8
)


@given(st.dictionaries(plain_names, json_values, max_size=6), st.sampled_from([None, 2]), st.booleans())
def test_any_object_with_plain_unique_names_is_read(
    value: dict[str, object], indent: int | None, ensure_ascii: bool
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=False).encode(errors="replace")
    if ensure_ascii and not all(name.isascii() for name in value):
        return
    members = read_members(text, frozenset())
    assert list(members) == list(value)


@given(st.lists(st.tuples(st.sampled_from("abc"), json_values), min_size=1, max_size=5), st.sampled_from(["", " "]))
def test_a_repeated_name_never_passes(pairs: list[tuple[str, object]], space: str) -> None:
    parts = [f'{space}"{name}"{space}:{space}{json.dumps(value)}{space}' for name, value in pairs]
    text = ("{" + ",".join(parts) + "}").encode()
    names = [name for name, _ in pairs]
    if len(set(names)) == len(names):
        assert list(read_members(text, frozenset())) == names
    else:
        assert reason_of(text)[0] == "duplicate_parameter"
