"""Keccak-256, EIP-55 addresses, the EIP-712 digest of an authorization, and the recovery of its signer.

Sources: EIP-55, EIP-712, EIP-3009, Permit2's `PermitWitnessTransferFrom` with the x402 exact proxy's witness. Written
out for the two messages that are signed: a join and two hashes, for Permit2 two more.
"""

from coincurve import PublicKey

from obol.core.networks import Asset, TransferMethod, canonical_address
from obol.x402.authorization import Authorization, Permit
from obol.x402.permit2 import PERMIT2_ADDRESS

try:
    from sha3 import keccak_256 as _new_keccak
except ImportError:  # no wheel for this Python: four times slower, the same hash
    from Crypto.Hash import keccak as _pycryptodome

    def _new_keccak(data: bytes) -> _pycryptodome.Keccak_Hash:
        return _pycryptodome.new(data=data, digest_bits=256)


_SECP256K1_N = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
_HALF_N = (_SECP256K1_N // 2).to_bytes(32, "big")
_RECOVERY_BYTES = {0: b"\x00", 1: b"\x01", 27: b"\x00", 28: b"\x01"}
_ADDRESS_PADDING = bytes(12)
_LOWEST_BITS = int.from_bytes(b"\x01" * 40, "big")
_SIGNATURE_BYTES = 65


def keccak(data: bytes) -> bytes:
    """Keccak-256 (Ethereum's, not SHA3-256) of `data`."""
    digest: bytes = _new_keccak(data).digest()
    return digest


_DOMAIN_TYPE_HASH = keccak(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
_AUTHORIZATION_TYPE_HASH = keccak(
    b"TransferWithAuthorization(address from,address to,uint256 value,"
    b"uint256 validAfter,uint256 validBefore,bytes32 nonce)"
)
_PERMIT2_DOMAIN_TYPE_HASH = keccak(b"EIP712Domain(string name,uint256 chainId,address verifyingContract)")
_PERMIT2_NAME_HASH = keccak(b"Permit2")
_TOKEN_PERMISSIONS = b"TokenPermissions(address token,uint256 amount)"
_WITNESS = b"Witness(address to,uint256 validAfter)"
_PERMIT_TYPE_HASH = keccak(
    b"PermitWitnessTransferFrom(TokenPermissions permitted,address spender,uint256 nonce,uint256 deadline,"
    b"Witness witness)" + _TOKEN_PERMISSIONS + _WITNESS
)
_TOKEN_PERMISSIONS_TYPE_HASH = keccak(_TOKEN_PERMISSIONS)
_WITNESS_TYPE_HASH = keccak(_WITNESS)


def checksum_address(address: str) -> str:
    """The EIP-55 spelling of an address in any letter case. Raises `ValueError` if it is not an address."""
    canonical = canonical_address(address)
    if canonical is None:
        raise ValueError("not an Ethereum address")
    digits = canonical[2:].encode()
    return "0x" + _upper_where(digits, keccak(digits)[:20].hex().encode()).decode()


def _upper_where(digits: bytes, marks: bytes) -> bytes:
    """`digits` with the letters in upper case whose mark is a hex digit of 8 or more; all 40 at once, as one number.

    In ASCII, letters have bit 6 and lower case has bit 5; of the hex digits, 8 and 9 have bit 3, a to f have bit 6.
    """
    text, mark = int.from_bytes(digits, "big"), int.from_bytes(marks, "big")
    letters = text >> 6 & (mark >> 3 | mark >> 6) & _LOWEST_BITS
    return (text ^ letters << 5).to_bytes(40, "big")


def domain_separator(name: str, version: str, chain_id: int, contract: str) -> bytes:
    """The 32-byte EIP-712 domain separator of a token. Raises `ValueError` if `contract` is not an address."""
    verifying_contract = bytes.fromhex(checksum_address(contract)[2:])
    return keccak(
        b"".join(
            (
                _DOMAIN_TYPE_HASH,
                keccak(name.encode()),
                keccak(version.encode()),
                chain_id.to_bytes(32, "big"),
                _ADDRESS_PADDING,
                verifying_contract,
            )
        )
    )


def permit2_domain_separator(chain_id: int) -> bytes:
    """The 32-byte EIP-712 domain separator of Permit2 on a network: it has no version."""
    contract = address_word(PERMIT2_ADDRESS.lower())
    return keccak(b"".join((_PERMIT2_DOMAIN_TYPE_HASH, _PERMIT2_NAME_HASH, chain_id.to_bytes(32, "big"), contract)))


def signing_domain(asset: Asset) -> bytes:
    """The 32-byte domain separator that a payment of this asset is signed in: the token's own, or Permit2's."""
    if asset.transfer_method is TransferMethod.PERMIT2:
        return permit2_domain_separator(asset.network.chain_id)
    return domain_separator(asset.eip712_name, asset.eip712_version, asset.network.chain_id, asset.address)


def authorization_digest(domain_separator: bytes, authorization: Authorization) -> bytes:
    """The 32 bytes that the payer signs: `keccak(0x1901 || domain separator || struct hash)`.

    The domain is the `signing_domain` of the asset that is moved.
    """
    if authorization.permit is None:
        struct = _eip3009_struct(authorization)
    else:
        struct = _permit2_struct(authorization, authorization.permit)
    return keccak(b"\x19\x01" + domain_separator + keccak(struct))


def _eip3009_struct(authorization: Authorization) -> bytes:
    return b"".join(
        (
            _AUTHORIZATION_TYPE_HASH,
            address_word(authorization.payer),
            address_word(authorization.to),
            authorization.value_atomic.to_bytes(32, "big"),
            authorization.valid_after_s.to_bytes(32, "big"),
            authorization.valid_before_s.to_bytes(32, "big"),
            bytes.fromhex(authorization.nonce[2:]),
        )
    )


def _permit2_struct(authorization: Authorization, permit: Permit) -> bytes:
    """The payer is in none of it: Permit2 takes the money of whoever signed."""
    value = authorization.value_atomic.to_bytes(32, "big")
    valid_after = authorization.valid_after_s.to_bytes(32, "big")
    return b"".join(
        (
            _PERMIT_TYPE_HASH,
            keccak(_TOKEN_PERMISSIONS_TYPE_HASH + address_word(permit.token) + value),
            address_word(permit.spender),
            bytes.fromhex(authorization.nonce[2:]),
            authorization.valid_before_s.to_bytes(32, "big"),
            keccak(_WITNESS_TYPE_HASH + address_word(authorization.to) + valid_after),
        )
    )


def address_word(address: str) -> bytes:
    """A lower-case address as 32 bytes."""
    return _ADDRESS_PADDING + bytes.fromhex(address[2:])


def recover(digest: bytes, signature: bytes) -> str | None:
    """The lower-case address whose key signed `digest`, or None where the token's contract would not accept it either.

    None for a signature that is not 65 bytes, v outside {0, 1, 27, 28}, r or s of zero or out of range, high s (every
    signature has a high-s twin, which tokens refuse), and a point that cannot be recovered.
    """
    if len(signature) != _SIGNATURE_BYTES or signature[32:64] > _HALF_N:
        return None
    recovery = _RECOVERY_BYTES.get(signature[64])
    if recovery is None:
        return None
    try:
        key = PublicKey.from_signature_and_message(signature[:64] + recovery, digest, hasher=None)
    except ValueError:
        return None
    return address_of(key)


def address_of(key: PublicKey) -> str:
    """The lower-case Ethereum address of a public key."""
    return "0x" + keccak(key.format(compressed=False)[1:])[12:].hex()
