"""Atomic amounts of an asset: decimal strings in, integers inside, and the one rounding rule (up, for the seller).

An amount is an `int` count of the asset's smallest unit, in names that end in `_atomic`. No float touches it.
"""

import re

from obol.errors import SettingsError

UINT256_MAX = 2**256 - 1
_DECIMAL = re.compile(r"(0|[1-9][0-9]{0,77})(?:\.([0-9]{1,77}))?", re.ASCII)


def parse_amount(text: str, decimals: int, *, field: str) -> int:
    """Atomic units of a positive decimal string such as "0.001".

    Raises `SettingsError` naming `field` for anything else: other notations, zero, or more digits than the asset has.
    """
    match = _DECIMAL.fullmatch(text)
    if match is None:
        raise SettingsError(field, f'{text!r} is not an amount: write a plain decimal such as "0.001"')
    whole, fraction = match[1], (match[2] or "")
    if len(fraction) > decimals:
        raise SettingsError(field, f"{text!r} has {len(fraction)} decimal places, the asset has {decimals}")
    atomic = int(whole + fraction.ljust(decimals, "0"))
    if atomic == 0:
        raise SettingsError(field, f"{text!r} is zero: the amount must be above 0")
    if atomic > UINT256_MAX:
        raise SettingsError(field, f"{text!r} is more than a token can hold (2^256 - 1 atomic units)")
    return atomic


def format_amount(amount_atomic: int, decimals: int) -> str:
    """The shortest decimal string of an atomic amount; the inverse of `parse_amount`."""
    sign = "-" if amount_atomic < 0 else ""
    digits = str(abs(amount_atomic)).rjust(decimals + 1, "0")
    whole, fraction = (digits[:-decimals], digits[-decimals:].rstrip("0")) if decimals else (digits, "")
    return f"{sign}{whole}.{fraction}" if fraction else sign + whole


def parse_atomic(text: str) -> int | None:
    """The value of a canonical decimal uint256 string as the x402 wire uses it, or None if it is not one."""
    if not (0 < len(text) <= 78 and text.isascii() and text.isdecimal()) or (text[0] == "0" and text != "0"):
        return None
    value = int(text)
    return value if value <= UINT256_MAX else None


def scale_up(amount_atomic: int, numerator: int, denominator: int) -> int:
    """`amount * numerator / denominator`, rounded up to a whole atomic unit: the one rounding rule."""
    return -(-amount_atomic * numerator // denominator)
