"""Keccak-256, EIP-55 addresses, the EIP-712 digest of an EIP-3009 authorization, and the recovery of its signer.

Sources: EIP-55, EIP-712, EIP-3009. Written out for the one message that is signed: one join and two hashes.
"""

from coincurve import PublicKey

from obol.core.networks import canonical_address
from obol.x402.authorization import Authorization

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


def authorization_digest(domain_separator: bytes, authorization: Authorization) -> bytes:
    """The 32 bytes that the payer signs: `keccak(0x1901 || domain separator || struct hash)`."""
    struct = b"".join(
        (
            _AUTHORIZATION_TYPE_HASH,
            _ADDRESS_PADDING,
            bytes.fromhex(authorization.payer[2:]),
            _ADDRESS_PADDING,
            bytes.fromhex(authorization.to[2:]),
            authorization.value_atomic.to_bytes(32, "big"),
            authorization.valid_after_s.to_bytes(32, "big"),
            authorization.valid_before_s.to_bytes(32, "big"),
            bytes.fromhex(authorization.nonce[2:]),
        )
    )
    return keccak(b"\x19\x01" + domain_separator + keccak(struct))


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
