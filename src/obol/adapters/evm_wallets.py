"""Contract wallets that are not deployed yet: their signatures carry what deploys them. Source: ERC-6492."""

from dataclasses import dataclass, field

from obol.adapters.evm_abi import AbiError, decode_bytes, decode_uint

_END = bytes.fromhex("6492" * 16)
_WORD = 32


@dataclass(frozen=True, slots=True)
class Undeployed:
    """Call `factory` (lower case) with `data`, and the wallet is there; then `signature` is the one that it accepts."""

    factory: str
    data: bytes = field(repr=False)
    signature: bytes = field(repr=False)


def unwrap(signature: bytes) -> Undeployed | None:
    """What is in a wrapped signature; None for an ordinary one, and for a wrapping that cannot be read."""
    if not signature.endswith(_END):
        return None
    content = signature[: -len(_END)]
    try:
        factory = decode_uint(content)
        data, inner = _member(content, 1), _member(content, 2)
    except AbiError:
        return None
    return Undeployed(f"0x{factory:040x}", data, inner) if factory >> 160 == 0 and inner else None


def _member(content: bytes, place: int) -> bytes:
    """The `bytes` whose offset is in a word."""
    start = decode_uint(content, place)
    if start > len(content):
        raise AbiError("the offset points outside")
    return decode_bytes(_WORD.to_bytes(_WORD, "big") + content[start:])
