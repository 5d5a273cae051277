import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from obol.core.money import UINT256_MAX, format_amount, parse_amount, parse_atomic, scale_up
from obol.errors import SettingsError

atomic = st.integers(1, UINT256_MAX)


@pytest.mark.parametrize(
    ("text", "decimals", "amount_atomic"),
    [
        ("0.001", 6, 1_000),
        ("1", 6, 1_000_000),
        ("1.0", 6, 1_000_000),
        ("0.000001", 6, 1),
        ("12.345600", 6, 12_345_600),
        ("7", 0, 7),
        ("0.000000000000000001", 18, 1),
        (str(UINT256_MAX), 0, UINT256_MAX),
    ],
)
def test_a_decimal_string_is_read_exactly(text: str, decimals: int, amount_atomic: int) -> None:
    assert parse_amount(text, decimals, field="--price") == amount_atomic


@pytest.mark.parametrize(
    "text",
    [
        *(
            "0,01",
            "abc",
            "-1",
            "+1",
            "1e-9",
            "1E3",
            "0x10",
            "",
            " ",
            " 1",
            "1 ",
            "1\n",
            "1.",
            ".5",
            ".",
            "1..2",
            "1.2.3",
        ),
        *("0", "0.0", "0.000000", "01", "00.1", "1_000", "1'000", "1,000", "1 000", "٣", "１", "²", "½", "NaN", "inf"),
        *("$1", "1 USDC", "0.0000001", "1.0000000", "0.1234567", str(UINT256_MAX), "9" * 78, "9" * 5_000, "1\0"),
    ],
)
def test_anything_else_is_refused_by_the_name_of_the_field(text: str) -> None:
    with pytest.raises(SettingsError, match=r"^--price: ") as refused:
        parse_amount(text, 6, field="--price")

    assert refused.value.field == "--price"


@given(amount_atomic=atomic, decimals=st.integers(0, 77))
@example(amount_atomic=UINT256_MAX, decimals=77)
@example(amount_atomic=UINT256_MAX, decimals=0)
@example(amount_atomic=1, decimals=77)
def test_reading_what_was_written_gives_the_amount_back(amount_atomic: int, decimals: int) -> None:
    assert parse_amount(format_amount(amount_atomic, decimals), decimals, field="f") == amount_atomic


@given(
    text=st.from_regex(r"[0-9]{1,5}(\.[0-9]{1,8})?", fullmatch=True) | st.text(max_size=12), decimals=st.integers(0, 9)
)
def test_what_is_accepted_has_the_value_that_it_says(text: str, decimals: int) -> None:
    try:
        amount_atomic = parse_amount(text, decimals, field="f")
    except SettingsError:
        return
    whole, _, fraction = text.partition(".")
    assert amount_atomic * 10 ** len(fraction) == int(whole + fraction) * 10**decimals > 0


@pytest.mark.parametrize(
    ("amount_atomic", "decimals", "text"),
    [
        (0, 6, "0"),
        (1, 6, "0.000001"),
        (1_000_000, 6, "1"),
        (1_500_000, 6, "1.5"),
        (-1_500_000, 6, "-1.5"),
        (-1, 6, "-0.000001"),
        (120, 0, "120"),
    ],
)
def test_an_amount_is_written_as_the_shortest_decimal(amount_atomic: int, decimals: int, text: str) -> None:
    assert format_amount(amount_atomic, decimals) == text


@given(atomic | st.just(0))
def test_a_wire_number_is_read(value: int) -> None:
    assert parse_atomic(str(value)) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-1",
        "+1",
        "01",
        "00",
        "1.0",
        "1e3",
        "0x1",
        " 1",
        "1 ",
        "1\n",
        "1_0",
        "٣",
        "²",
        str(UINT256_MAX + 1),
        "9" * 5_000,
    ],
)
def test_a_wire_number_that_is_not_canonical_is_none(text: str) -> None:
    assert parse_atomic(text) is None


@given(st.text(max_size=80))
def test_a_wire_number_is_canonical_or_none(text: str) -> None:
    value = parse_atomic(text)
    assert value is None or str(value) == text


@given(amount_atomic=st.integers(0, UINT256_MAX), numerator=st.integers(0, 10**9), denominator=st.integers(1, 10**9))
def test_scaling_rounds_up_by_less_than_one_unit(amount_atomic: int, numerator: int, denominator: int) -> None:
    scaled = scale_up(amount_atomic, numerator, denominator)

    assert 0 <= scaled * denominator - amount_atomic * numerator < denominator
