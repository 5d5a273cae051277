"""The signer port: whoever holds a buyer's key."""

from typing import Protocol


class Signer(Protocol):
    """Signs 32-byte digests with one secp256k1 key; never shows the key, also not in `repr` or errors."""

    @property
    def address(self) -> str:
        """The key's Ethereum address, EIP-55 spelling."""
        ...

    def sign_digest(self, digest: bytes) -> bytes:
        """65 bytes `r || s || v` over `digest` as it is: low s, v 27 or 28. Raises `ValueError` unless 32 bytes."""
        ...
