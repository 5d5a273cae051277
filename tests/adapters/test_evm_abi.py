"""The contract ABI, against eth-abi: an implementation that is not ours."""

import pytest
from eth_abi.abi import encode as theirs
from hypothesis import given
from hypothesis import strategies as st

from obol.adapters.evm_abi import AbiError, call_data, decode_bytes, decode_string, decode_uint, encode, topic

UINTS = st.integers(0, 2**256 - 1)
ADDRESSES = st.binary(min_size=20, max_size=20).map(lambda raw: "0x" + raw.hex())


@given(UINTS, ADDRESSES, st.binary(max_size=100), st.binary(min_size=32, max_size=32), st.booleans(), st.text())
def test_arguments_are_encoded_as_solidity_does(
    number: int, address: str, content: bytes, word: bytes, flag: bool, text: str
) -> None:
    kinds = ["uint256", "address", "bytes", "bytes32", "bool", "string"]
    values = (number, address, content, word, flag, text)
    assert encode(f"({','.join(kinds)})", values) == theirs(kinds, values)


@given(st.lists(st.tuples(ADDRESSES, st.binary(max_size=70), st.integers(0, 2**64 - 1)), max_size=4), UINTS)
def test_lists_of_tuples_are_encoded_as_solidity_does(calls: list[tuple[str, bytes, int]], number: int) -> None:
    kinds = ["(address,bytes,uint64)[]", "uint256"]
    assert encode(f"({','.join(kinds)})", (calls, number)) == theirs(kinds, (calls, number))


def test_selector_and_topic_are_those_of_erc_20() -> None:
    assert call_data("transfer(address,uint256)", "0x" + "11" * 20, 5)[:4].hex() == "a9059cbb"
    assert topic("Transfer(address,address,uint256)").startswith("0xddf252ad1be2c89b69c2b068fc378daa")


@given(st.text())
def test_a_string_comes_back(text: str) -> None:
    assert decode_string(theirs(["string"], [text])) == text


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("uint8", 256),
        ("uint256", -1),
        ("uint256", 2**256),
        ("address", "0x12"),
        ("bytes32", b"short"),
        ("bytes", 5),
        ("uint256[]", 5),
        ("(uint256)", b"12"),
    ],
)
def test_a_value_that_does_not_fit_its_type_is_refused(kind: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"not|no |needs"):
        encode(f"({kind})", [value])  # type: ignore[list-item]


def test_too_few_values_are_refused() -> None:
    with pytest.raises(ValueError, match="2 values"):
        call_data("transfer(address,uint256)", 5)


@given(st.binary(max_size=200))
def test_nonsense_is_never_decoded_beyond_its_end(data: bytes) -> None:
    for decode in (decode_bytes, decode_string, decode_uint):
        try:
            decode(data)
        except AbiError:
            continue
