import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from coincurve import PrivateKey
from coincurve.ecdsa import der_to_cdata, serialize_compact
from eth_account import Account
from eth_account.messages import encode_typed_data
from eth_utils.address import to_checksum_address
from hypothesis import given
from hypothesis import strategies as st
from x402.mechanisms.evm.constants import PERMIT2_WITNESS_TYPES
from x402.mechanisms.evm.eip712 import hash_domain, hash_eip3009_authorization
from x402.mechanisms.evm.types import ExactEIP3009Authorization, TypedDataDomain

from obol.core.money import UINT256_MAX
from obol.x402.authorization import Authorization, Permit
from obol.x402.eip712 import (
    address_of,
    authorization_digest,
    checksum_address,
    domain_separator,
    keccak,
    permit2_domain_separator,
    recover,
    signing_domain,
)
from obol.x402.permit2 import PERMIT2_ADDRESS
from tests.x402.samples import BUYER, OBOL, SECP256K1_N, USDC, high_s_twin

VECTORS = Path(__file__).parents[3] / "shared" / "vectors" / "wycheproof"
DIGEST = bytes(range(32))

addresses = st.binary(min_size=20, max_size=20).map(lambda raw: "0x" + raw.hex())
numbers = st.integers(0, UINT256_MAX)
authorizations = st.builds(
    Authorization,
    payer=addresses,
    to=addresses,
    value_atomic=numbers,
    valid_after_s=numbers,
    valid_before_s=numbers,
    nonce=st.binary(min_size=32, max_size=32).map(lambda raw: "0x" + raw.hex()),
)


def test_keccak_is_ethereums() -> None:
    assert keccak(b"").hex() == "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"


def test_keccak_without_pysha3_is_the_same() -> None:
    program = (
        "import sys; sys.modules['sha3'] = None; from obol.x402.eip712 import keccak; print(keccak(b'abc' * 99).hex())"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert keccak(b"abc" * 99).hex() == run.stdout.strip()


@pytest.mark.parametrize(
    "address",  # the examples of EIP-55
    [
        "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
        "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359",
        "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB",
        "0xD1220A0cf47c7B9Be7A2E6BA89F429762e7b9aDb",
    ],
)
def test_the_examples_of_eip_55(address: str) -> None:
    assert address == checksum_address(address.lower()) == checksum_address("0X" + address[2:].upper())


@given(addresses)
def test_checksums_agree_with_eth_utils(address: str) -> None:
    assert to_checksum_address(address) == checksum_address(address)


def test_what_is_not_an_address_has_no_checksum() -> None:
    with pytest.raises(ValueError, match="not an Ethereum address"):
        checksum_address("0x12")


@given(st.text(max_size=40), st.text(max_size=10), numbers, addresses)
def test_domain_separators_agree_with_the_official_sdk(name: str, version: str, chain_id: int, contract: str) -> None:
    assert hash_domain(TypedDataDomain(name, version, chain_id, contract)) == domain_separator(
        name, version, chain_id, contract
    )


@given(authorizations)
def test_digests_agree_with_the_official_sdk(authorization: Authorization) -> None:
    theirs = hash_eip3009_authorization(
        ExactEIP3009Authorization(
            authorization.payer,
            authorization.to,
            str(authorization.value_atomic),
            str(authorization.valid_after_s),
            str(authorization.valid_before_s),
            authorization.nonce,
        ),
        84532,
        USDC.address,
        "USDC",
        "2",
    )
    assert theirs == authorization_digest(domain_separator("USDC", "2", 84532, USDC.address), authorization)


permits = st.builds(Permit, token=addresses, spender=addresses)


def official_permit2(authorization: Authorization, permit: Permit, chain_id: int) -> dict[str, Any]:
    """The typed data of the official SDK's types and domain."""
    return {
        "domain": {"name": "Permit2", "chainId": chain_id, "verifyingContract": PERMIT2_ADDRESS},
        "types": {
            **PERMIT2_WITNESS_TYPES,
            "EIP712Domain": [
                {"name": "name", "type": "string"},
                {"name": "chainId", "type": "uint256"},
                {"name": "verifyingContract", "type": "address"},
            ],
        },
        "primaryType": "PermitWitnessTransferFrom",
        "message": {
            "permitted": {"token": permit.token, "amount": authorization.value_atomic},
            "spender": permit.spender,
            "nonce": int(authorization.nonce, 16),
            "deadline": authorization.valid_before_s,
            "witness": {"to": authorization.to, "validAfter": authorization.valid_after_s},
        },
    }


@given(authorizations, permits, st.integers(1, 2**63))
def test_permit2_digests_agree_with_eth_account_over_the_official_types(
    authorization: Authorization, permit: Permit, chain_id: int
) -> None:
    theirs = encode_typed_data(full_message=official_permit2(authorization, permit, chain_id))
    domain = permit2_domain_separator(chain_id)
    assert theirs.header == domain
    assert keccak(b"\x19\x01" + theirs.header + theirs.body) == authorization_digest(
        domain, replace(authorization, permit=permit)
    )


@given(authorizations, permits)
def test_every_field_of_a_permit2_authorization_but_the_payer_is_signed(
    authorization: Authorization, permit: Permit
) -> None:
    domain, signed = permit2_domain_separator(1), replace(authorization, permit=permit)
    others: list[Authorization] = [
        replace(signed, to=_other(signed.to)),
        replace(signed, nonce=_other(signed.nonce)),
        replace(signed, value_atomic=signed.value_atomic ^ 1),
        replace(signed, valid_after_s=signed.valid_after_s ^ 1),
        replace(signed, valid_before_s=signed.valid_before_s ^ 1),
        replace(signed, permit=Permit(_other(permit.token), permit.spender)),
        replace(signed, permit=Permit(permit.token, _other(permit.spender))),
        replace(signed, permit=None),
    ]
    digests = {authorization_digest(domain, other) for other in [signed, *others]}
    assert len(digests) == len(others) + 1


def _other(text: str) -> str:
    return text[:-1] + f"{int(text[-1], 16) ^ 1:x}"


def test_an_asset_is_signed_for_in_the_domain_of_its_method() -> None:
    assert signing_domain(USDC) == domain_separator("USDC", "2", 84532, USDC.address)
    assert signing_domain(OBOL) == permit2_domain_separator(84532)
    assert signing_domain(OBOL) != permit2_domain_separator(1)


@given(st.binary(min_size=32, max_size=32))
def test_what_eth_account_signs_is_recovered(digest: bytes) -> None:
    account = Account.from_key("0x" + "11" * 32)
    signed = account.unsafe_sign_hash(digest)
    assert account.address.lower() == recover(digest, bytes(signed.signature))


@pytest.mark.parametrize("v", range(256))
def test_v_is_one_of_four_spellings_of_two_values(v: int) -> None:
    signature = BUYER.sign_digest(DIGEST)
    recovered = recover(DIGEST, signature[:64] + bytes((v,)))
    expected = v % 27 == signature[64] - 27 if v in (0, 1, 27, 28) else False
    assert expected == (recovered == BUYER.address.lower())
    assert (recovered is None) or v in (0, 1, 27, 28)


@given(st.binary(min_size=32, max_size=32))
def test_the_high_s_twin_is_refused(digest: bytes) -> None:
    signature = BUYER.sign_digest(digest)
    assert BUYER.address.lower() == recover(digest, signature)
    assert recover(digest, high_s_twin(signature)) is None


@pytest.mark.parametrize("r", [0, SECP256K1_N, 2**256 - 1])
def test_r_out_of_range_is_refused(r: int) -> None:
    assert recover(DIGEST, r.to_bytes(32, "big") + (1).to_bytes(32, "big") + b"\x1b") is None


def test_s_of_zero_is_refused() -> None:
    assert recover(DIGEST, BUYER.sign_digest(DIGEST)[:32] + bytes(32) + b"\x1b") is None


@given(st.binary(max_size=140))
def test_no_bytes_make_recover_raise(signature: bytes) -> None:
    if recover(DIGEST, signature) is not None:
        assert len(signature) == 65


def wycheproof() -> list[Any]:
    path = VECTORS / "ecdsa_secp256k1_sha256_bitcoin_test.json"
    if not path.exists():
        return []
    groups = json.loads(path.read_text())["testGroups"]
    return [(group["publicKey"]["uncompressed"], test) for group in groups for test in group["tests"]]


def test_wycheproof_valid_signatures_recover_and_invalid_ones_do_not() -> None:
    cases = wycheproof()
    if not cases:
        pytest.skip("needs the Wycheproof vectors in ../shared/vectors/wycheproof")
    accepted = 0
    for public_key, test in cases:
        if "large x-coordinate" in test["comment"] and test["result"] == "valid":
            continue  # r = x - n: needs v 29 or 30, which Ethereum does not have
        is_good = _recovers(bytes.fromhex(public_key), bytes.fromhex(test["msg"]), bytes.fromhex(test["sig"]))
        assert (test["result"] == "valid") == is_good, test["tcId"]
        accepted += is_good
    assert accepted > 50


def _recovers(public_key: bytes, message: bytes, der: bytes) -> bool:
    """Whether a vector is a signature of ours over the message by the key; the vectors are DER."""
    try:
        compact = serialize_compact(der_to_cdata(der))
    except ValueError:
        return False
    address = "0x" + keccak(public_key[1:])[12:].hex()
    digest = hashlib.sha256(message).digest()
    return address in (recover(digest, compact + bytes((v,))) for v in (27, 28))


def test_the_address_of_a_key_is_the_one_that_it_recovers_to() -> None:
    key = PrivateKey(b"\x07" * 32)
    assert address_of(key.public_key) == recover(DIGEST, key.sign_recoverable(DIGEST, hasher=None))
