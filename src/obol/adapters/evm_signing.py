"""Signing transactions: with a key of this machine, or by a signer elsewhere that never shows its key.

The only place that imports eth-account, which is the extra `facilitator`: import this module only where it is needed.
Sources: EIP-1559; JSON-RPC `eth_signTransaction`; the Web3 secret storage format (keystore files).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from eth_account import Account
from eth_account.typed_transactions.typed_transaction import TypedTransaction
from eth_keys.exceptions import BadSignature
from eth_utils.exceptions import ValidationError
from hexbytes import HexBytes
from rlp.exceptions import RLPException

from obol.adapters.rpc_http import JsonRpc, RpcRefusedError
from obol.adapters.signer_local import LocalSigner, read_private
from obol.core.networks import canonical_address
from obol.errors import ChainUnavailableError, SettingsError
from obol.x402.eip712 import checksum_address, keccak

KEYSTORE = "--keystore"
SIGNER_URL = "--signer-url"
_KEYSTORE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class TransactionFields:
    """An EIP-1559 transaction that moves no native money. Fees in wei per gas."""

    chain_id: int
    nonce: int
    to: str
    data: bytes
    gas_limit: int
    max_fee_wei: int
    priority_fee_wei: int


@dataclass(frozen=True, slots=True)
class Signed:
    """Ready to be broadcast; `transaction` is its hash."""

    raw: bytes
    transaction: str


class TransactionSigner(Protocol):
    """Whose account pays for gas."""

    @property
    def address(self) -> str:
        """EIP-55 spelling."""
        ...

    async def sign(self, fields: TransactionFields) -> Signed:
        """Raises `ChainUnavailableError` when the signer cannot be asked, or gave something else than was asked for."""
        ...

    async def close(self) -> None:
        """Idempotent."""
        ...


class LocalTransactionSigner:
    """A private key in memory. Never shown."""

    def __init__(self, key: bytes) -> None:
        self._account = Account.from_key(key)

    @classmethod
    def from_key_file(cls, path: Path) -> Self:
        """The signer of a key file, as `obol wallet new` writes it. Raises `SettingsError` naming `--key-file`."""
        return cls(LocalSigner.from_key_file(path).secret)

    @classmethod
    def from_keystore(cls, path: Path, password: str) -> Self:
        """The signer of an encrypted keystore file. Raises `SettingsError` naming `--keystore`."""
        content = read_private(path, field=KEYSTORE, limit_bytes=_KEYSTORE_BYTES)
        try:
            keystore = json.loads(content)
            if not isinstance(keystore, dict):
                raise TypeError("not an object")
            key = Account.decrypt(keystore, password)
        except ValueError as error:
            is_password = "MAC" in str(error)
            problem = "the password is wrong" if is_password else "it is not a keystore file"
            raise SettingsError(KEYSTORE, f"{path} cannot be decrypted: {problem}") from None
        except (KeyError, TypeError, UnicodeDecodeError, NotImplementedError):
            raise SettingsError(KEYSTORE, f"{path} is not a keystore file") from None
        return cls(bytes(key))

    @property
    def address(self) -> str:
        """See the protocol."""
        address: str = self._account.address
        return address

    async def sign(self, fields: TransactionFields) -> Signed:
        """See the protocol."""
        signed = self._account.sign_transaction(_as_dict(fields))
        return Signed(bytes(signed.raw_transaction), "0x" + bytes(signed.hash).hex())

    async def close(self) -> None:
        """Nothing to let go of."""

    def __repr__(self) -> str:
        return f"LocalTransactionSigner(address={self.address!r}, key=***)"


class RemoteTransactionSigner:
    """A signer behind JSON-RPC (web3signer, clef, a KMS bridge) that holds the key of `address`."""

    def __init__(self, url: str, address: str) -> None:
        """Raises `SettingsError` naming `--signer-url` or `--signer-address`."""
        self._rpc = JsonRpc([url], field=SIGNER_URL)
        if canonical_address(address) is None:
            raise SettingsError("--signer-address", "must be the address whose key it has: 0x + 40 hex digits")
        self._address = checksum_address(address)

    @property
    def address(self) -> str:
        """See the protocol."""
        return self._address

    async def sign(self, fields: TransactionFields) -> Signed:
        """See the protocol. What comes back is decoded: it must be what was asked for, signed by our address."""
        asked = {
            "from": self._address,
            "to": checksum_address(fields.to),
            "data": "0x" + fields.data.hex(),
            "value": "0x0",
            "type": "0x2",
            "chainId": hex(fields.chain_id),
            "nonce": hex(fields.nonce),
            "gas": hex(fields.gas_limit),
            "maxFeePerGas": hex(fields.max_fee_wei),
            "maxPriorityFeePerGas": hex(fields.priority_fee_wei),
        }
        try:
            answer = await self._rpc.ask("eth_signTransaction", [asked])
        except RpcRefusedError as refused:
            raise ChainUnavailableError(f"the signer refuses to sign: {refused}") from refused
        return self._checked(answer["raw"] if isinstance(answer, dict) and "raw" in answer else answer, fields)

    async def close(self) -> None:
        """See the protocol."""
        await self._rpc.close()

    def _checked(self, raw_hex: Any, fields: TransactionFields) -> Signed:
        try:
            raw = HexBytes(raw_hex)
            decoded = TypedTransaction.from_bytes(raw)
            signer = Account.recover_transaction(raw)
            is_ours = _is_same(decoded.as_dict(), fields) and signer == self._address
        except (ValueError, TypeError, KeyError, IndexError, RLPException, BadSignature, ValidationError):
            is_ours = False
        if not is_ours:
            raise ChainUnavailableError("the signer gave something else than was asked for")
        return Signed(bytes(raw), "0x" + keccak(bytes(raw)).hex())


def _as_dict(fields: TransactionFields) -> dict[str, Any]:
    return {
        "type": 2,
        "chainId": fields.chain_id,
        "nonce": fields.nonce,
        "to": checksum_address(fields.to),
        "value": 0,
        "data": fields.data,
        "gas": fields.gas_limit,
        "maxFeePerGas": fields.max_fee_wei,
        "maxPriorityFeePerGas": fields.priority_fee_wei,
    }


def _is_same(decoded: dict[str, Any], fields: TransactionFields) -> bool:
    wanted = _as_dict(fields)
    numbers = ("type", "chainId", "nonce", "value", "gas", "maxFeePerGas", "maxPriorityFeePerGas")
    same_numbers = all(int(decoded[name]) == wanted[name] for name in numbers)
    to_and_data = bytes(decoded["to"]).hex() == fields.to[2:].lower() and bytes(decoded["data"]) == fields.data
    return same_numbers and to_and_data and not decoded.get("accessList")
