"""A signer whose key is in a file of this machine, or in memory."""

import os
import re
import shlex
import stat
from pathlib import Path
from typing import Self

from coincurve import PrivateKey

from obol.errors import SettingsError
from obol.x402.eip712 import address_of, checksum_address

FIELD = "--key-file"
_READ_BYTES = 128
_OTHERS = 0o077
_KEY = re.compile(rb"(?:0[xX])?([0-9a-fA-F]{64})\n?")


class LocalSigner:
    """The `Signer` of one secp256k1 private key (32 bytes). The key leaves only by `write_key_file` and `secret`."""

    def __init__(self, key: bytes) -> None:
        """Raises `ValueError`, without the key in it, for what is not a private key."""
        if len(key) != 32:
            raise ValueError("a private key has 32 bytes")
        try:
            self._key = PrivateKey(key)
        except ValueError:
            raise ValueError("not a private key of secp256k1: zero or out of range") from None
        self._address = checksum_address(address_of(self._key.public_key))

    @classmethod
    def generate(cls) -> Self:
        """A signer with a new random key."""
        return cls(PrivateKey().secret)

    @classmethod
    def from_key_file(cls, path: Path) -> Self:
        """The signer of a key file: 64 hex digits, perhaps after 0x, perhaps with a newline at the end.

        Raises `SettingsError` for a file that is missing, that others than its owner can use, or that holds no key.
        """
        match = _KEY.fullmatch(read_private(path))
        if match is None:
            raise SettingsError(FIELD, f"{path} does not hold a private key: 64 hex digits are expected")
        try:
            return cls(bytes.fromhex(match[1].decode()))
        except ValueError as error:
            raise SettingsError(FIELD, f"{path}: {error}") from None

    @property
    def address(self) -> str:
        """The key's Ethereum address, EIP-55 spelling."""
        return self._address

    @property
    def secret(self) -> bytes:
        """The private key, for what signs with a library of its own."""
        return self._key.secret

    def sign_digest(self, digest: bytes) -> bytes:
        """65 bytes `r || s || v`, low s, v 27 or 28. Raises `ValueError` unless `digest` has 32 bytes."""
        signature = self._key.sign_recoverable(digest, hasher=None)  # libsecp256k1 signs with low s
        return signature[:64] + bytes((signature[64] + 27,))

    def write_key_file(self, path: Path) -> None:
        """Write the key to a new file that only its owner can read, durably.

        Raises `SettingsError` when the file exists (it is left as it is: it may hold the only copy of a key) or cannot
        be written.
        """
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(self._key.secret.hex() + "\n")
                file.flush()
                os.fsync(descriptor)
        except FileExistsError:
            raise SettingsError(FIELD, f"{path} exists already: choose another name") from None
        except OSError as error:
            raise SettingsError(FIELD, f"{path} cannot be written: {error.strerror}") from None

    def __repr__(self) -> str:
        return f"LocalSigner(address={self._address!r}, key=***)"


def read_private(path: Path, *, field: str = FIELD, limit_bytes: int = _READ_BYTES) -> bytes:
    """A small file's bytes, after checking the very file that was opened. Raises `SettingsError` naming `field`."""
    try:
        with path.open("rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & _OTHERS:
                command = f"chmod 600 {shlex.quote(str(path))}"
                raise SettingsError(field, f"{path} can be used by others than its owner: run `{command}`")
            return file.read(limit_bytes)
    except OSError as error:
        raise SettingsError(field, f"{path} cannot be read: {error.strerror}") from None
