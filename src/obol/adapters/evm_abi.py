"""The contract ABI as far as we call contracts: encoding arguments, decoding results.

Source: Solidity ABI specification.
"""

from collections.abc import Sequence

from obol.core.networks import canonical_address
from obol.x402.eip712 import keccak

Value = int | str | bytes | bool | Sequence["Value"]
_WORD = 32


class AbiError(ValueError):
    """What a contract returned does not have the form that was asked for."""


def call_data(signature: str, *values: Value) -> bytes:
    """Selector and arguments of `name(type,…)`. Raises `ValueError` for values that do not fit the types."""
    name_end = signature.index("(")
    return selector(signature) + encode(signature[name_end:], values)


def selector(signature: str) -> bytes:
    """The first four bytes of the signature's hash."""
    return keccak(signature.encode())[:4]


def topic(signature: str) -> str:
    """The first topic of an event's logs: 0x + 64 hex digits."""
    return "0x" + keccak(signature.encode()).hex()


def encode(kind: str, values: Sequence[Value]) -> bytes:
    """A tuple `(type,…)` of values: heads, then the tails of what is dynamic."""
    kinds = split_types(kind)
    if len(kinds) != len(values):
        raise ValueError(f"{len(kinds)} values are needed")
    parts = [_encode_one(one, value) for one, value in zip(kinds, values, strict=True)]
    heads, tails = b"", b""
    head_bytes = sum(_WORD if _is_dynamic(one) else len(part) for one, part in zip(kinds, parts, strict=True))
    for one, part in zip(kinds, parts, strict=True):
        if _is_dynamic(one):
            heads += word_uint(head_bytes + len(tails))
            tails += part
        else:
            heads += part
    return heads + tails


def split_types(kind: str) -> list[str]:
    """`(a,(b,c)[],d)` -> `a`, `(b,c)[]`, `d`."""
    kinds, depth, start = [], 0, 1
    for place, letter in enumerate(kind):
        depth += (letter == "(") - (letter == ")")
        if (letter == "," and depth == 1) or (letter == ")" and depth == 0):
            kinds.append(kind[start:place])
            start = place + 1
    return [one for one in kinds if one]


def word_uint(value: int) -> bytes:
    """Raises `ValueError` for what is no uint256."""
    try:
        return value.to_bytes(_WORD, "big")
    except OverflowError:
        raise ValueError("not a uint256") from None


def word_address(address: str) -> bytes:
    """Raises `ValueError` for what is no address."""
    canonical = canonical_address(address)
    if canonical is None:
        raise ValueError("not an address")
    return bytes.fromhex(canonical[2:]).rjust(_WORD, b"\0")


def decode_uint(data: bytes, word: int = 0) -> int:
    """The uint256 in a word of `data`. Raises `AbiError`."""
    if len(data) < (word + 1) * _WORD:
        raise AbiError("a word is missing")
    return int.from_bytes(data[word * _WORD : (word + 1) * _WORD], "big")


def decode_bool(data: bytes) -> bool:
    """Raises `AbiError`."""
    value = decode_uint(data)
    if value > 1:
        raise AbiError("not a bool")
    return bool(value)


def decode_string(data: bytes) -> str:
    """The only result, a string. Raises `AbiError`."""
    try:
        return decode_bytes(data).decode()
    except UnicodeDecodeError:
        raise AbiError("not UTF-8") from None


def decode_bytes(data: bytes) -> bytes:
    """The only result, `bytes`. Raises `AbiError`."""
    start = decode_uint(data) + _WORD
    if start > len(data):
        raise AbiError("the offset points outside")
    length = decode_uint(data[start - _WORD :])
    if start + length > len(data):
        raise AbiError("it is shorter than it says")
    return data[start : start + length]


def _encode_one(kind: str, value: Value) -> bytes:
    if kind.endswith("[]"):
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            raise ValueError(f"{kind} needs a sequence")
        inner = "(" + ",".join([kind[:-2]] * len(value)) + ")"
        return word_uint(len(value)) + encode(inner, value)
    if kind.startswith("("):
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            raise ValueError(f"{kind} needs a sequence")
        return encode(kind, value)
    if kind in ("bytes", "string"):
        content = value.encode() if isinstance(value, str) else value
        if not isinstance(content, bytes):
            raise ValueError(f"{kind} needs bytes")
        return word_uint(len(content)) + content + bytes(-len(content) % _WORD)
    return _static(kind, value)


def _static(kind: str, value: Value) -> bytes:
    if kind == "address" and isinstance(value, str):
        return word_address(value)
    if kind == "bytes32" and isinstance(value, bytes) and len(value) == _WORD:
        return value
    if kind.startswith("uint") and isinstance(value, int):
        if value >> int(kind[4:] or 256):
            raise ValueError(f"not a {kind}")
        return word_uint(value)
    if kind == "bool" and isinstance(value, bool):
        return word_uint(int(value))
    raise ValueError(f"no {kind}: {type(value).__name__}")


def _is_dynamic(kind: str) -> bool:
    if kind.startswith("(") and not kind.endswith("[]"):
        return any(_is_dynamic(one) for one in split_types(kind))
    return kind in ("bytes", "string") or kind.endswith("[]")
