import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import x402
from eth_account.messages import encode_typed_data
from hypothesis import given
from hypothesis import strategies as st
from x402.mechanisms.evm.constants import EIP2612_PERMIT_TYPES

from obol.adapters.signer_local import LocalSigner
from obol.core.money import UINT256_MAX
from obol.core.networks import BASE_SEPOLIA, DEFAULT_CATALOGUE, Asset
from obol.errors import UnpayableError
from obol.x402.authorization import parse_authorization
from obol.x402.challenge import build_challenge
from obol.x402.client import choose, offers_gas, payment_headers, read_challenge, sign_exact, sponsor_gas
from obol.x402.eip712 import keccak
from obol.x402.exact import ExactVerifier, Undecided, Verified
from obol.x402.facilitator import Refused
from obol.x402.gas_sponsoring import (
    GAS_SPONSORING,
    TokenPermit,
    declare_gas_sponsoring,
    permit_expired,
    permit_misfit,
    read_token_permit,
    sign_token_permit,
    token_permit_digest,
    write_token_permit,
)
from obol.x402.headers import read_presented
from obol.x402.models import PaymentPayload, ResourceInfo
from obol.x402.permit2 import PERMIT2_ADDRESS
from obol.x402.presented import Presented
from obol.x402.reasons import Reason
from tests.x402.samples import (
    BUYER,
    NOW_S,
    OBOL,
    OBOL_REQUIREMENTS,
    REQUIREMENTS,
    USDC,
    as_v2,
    obol_verifier,
    pay,
    pay_obol,
    read_fields,
    verifier,
)

RESOURCE = ResourceInfo("https://seller.example/v1")
AUTHORIZATION = parse_authorization(pay_obol().payload)
PERMIT = sign_token_permit(BUYER, OBOL, AUTHORIZATION, nonce=7)
STRANGER = "0x" + "77" * 20

addresses = st.binary(min_size=20, max_size=20).map(lambda raw: "0x" + raw.hex())
numbers = st.integers(0, UINT256_MAX)
permits = st.builds(
    TokenPermit,
    owner=addresses,
    token=addresses,
    spender=addresses,
    value_atomic=numbers,
    nonce=numbers,
    deadline_s=numbers,
    signature=st.builds(lambda rs, v: rs + bytes((v,)), st.binary(min_size=64, max_size=64), st.sampled_from([27, 28])),
)


def sponsored(permit: TokenPermit = PERMIT, **info: object) -> dict[str, Any]:
    """The wire form of a payment with a permit, which repeats the seller's declaration as clients do."""
    fields = as_v2(pay_obol())
    declared = declare_gas_sponsoring()[GAS_SPONSORING]
    signed = write_token_permit(permit)[GAS_SPONSORING]["info"]
    fields["extensions"] = {GAS_SPONSORING: declared | {"info": declared["info"] | signed | info}}
    return fields


def presented(permit: TokenPermit = PERMIT) -> Presented:
    return read_fields(sponsored(permit))


def signed(permit: TokenPermit) -> TokenPermit:
    return replace(permit, signature=BUYER.sign_digest(token_permit_digest(OBOL, permit)))


# --- the permit


@given(permits)
def test_a_permits_digest_is_eth_accounts_over_the_official_types(permit: TokenPermit) -> None:
    theirs = encode_typed_data(
        full_message={
            "domain": {"name": "Obol Network", "version": "1", "chainId": 84532, "verifyingContract": OBOL.address},
            "types": {
                **EIP2612_PERMIT_TYPES,
                "EIP712Domain": [
                    {"name": "name", "type": "string"},
                    {"name": "version", "type": "string"},
                    {"name": "chainId", "type": "uint256"},
                    {"name": "verifyingContract", "type": "address"},
                ],
            },
            "primaryType": "Permit",
            "message": {
                "owner": permit.owner,
                "spender": permit.spender,
                "value": permit.value_atomic,
                "nonce": permit.nonce,
                "deadline": permit.deadline_s,
            },
        }
    )
    assert keccak(b"\x19\x01" + theirs.header + theirs.body) == token_permit_digest(OBOL, permit)


@given(permits)
def test_what_is_written_is_read_back(permit: TokenPermit) -> None:
    assert permit == read_token_permit(json.loads(json.dumps(write_token_permit(permit))))


def test_a_permit_is_for_permit2_and_exactly_what_is_paid() -> None:
    assert PERMIT.spender == PERMIT2_ADDRESS.lower()
    assert (PERMIT.owner, PERMIT.value_atomic) == (AUTHORIZATION.payer, AUTHORIZATION.value_atomic)
    assert PERMIT.deadline_s == AUTHORIZATION.valid_before_s
    assert permit_misfit(PERMIT, AUTHORIZATION, OBOL) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"owner": STRANGER}, Reason.EIP2612_PAYER_MISMATCH),
        ({"token": STRANGER}, Reason.EIP2612_ASSET_MISMATCH),
        ({"spender": STRANGER}, Reason.EIP2612_SPENDER),
        ({"value_atomic": AUTHORIZATION.value_atomic - 1}, Reason.EIP2612_AMOUNT_MISMATCH),
        ({"value_atomic": UINT256_MAX}, Reason.EIP2612_AMOUNT_MISMATCH),
    ],
)
def test_a_permit_for_something_else_is_refused(changes: dict[str, Any], reason: Reason) -> None:
    refused = permit_misfit(signed(replace(PERMIT, **changes)), AUTHORIZATION, OBOL)
    assert refused is not None
    assert refused.reason == reason


@pytest.mark.parametrize("changed", [replace(PERMIT, nonce=8), replace(PERMIT, deadline_s=1)])
def test_a_permit_that_was_changed_after_signing_is_refused(changed: TokenPermit) -> None:
    refused = permit_misfit(changed, AUTHORIZATION, OBOL)
    assert refused is not None
    assert refused.reason == Reason.EIP2612_SIGNATURE


def test_a_permit_signed_by_another_is_refused() -> None:
    other = LocalSigner.generate().sign_digest(token_permit_digest(OBOL, PERMIT))
    refused = permit_misfit(replace(PERMIT, signature=other), AUTHORIZATION, OBOL)
    assert refused is not None
    assert refused.reason == Reason.EIP2612_SIGNATURE


@pytest.mark.parametrize(("left_s", "is_good"), [(-1, False), (5, False), (6, True)])
def test_a_permit_must_still_be_good_for_a_settlement(left_s: int, is_good: bool) -> None:
    assert (permit_expired(replace(PERMIT, deadline_s=int(NOW_S) + left_s), NOW_S) is None) == is_good


def test_a_permits_signature_is_not_in_its_repr() -> None:
    assert PERMIT.signature.hex() not in repr(presented())


# --- reading


@pytest.mark.parametrize(
    "extensions",
    [
        None,
        [],
        "x",
        {},
        {"bazaar": {"info": {}}},
        {GAS_SPONSORING: None},
        {GAS_SPONSORING: {"info": []}},
        declare_gas_sponsoring(),
    ],
)
def test_what_holds_no_permit_is_none(extensions: object) -> None:
    assert read_token_permit(extensions) is None
    fields = as_v2(pay_obol()) | {"extensions": extensions}
    outcome = obol_verifier().verify(read_fields(fields), NOW_S)
    assert isinstance(outcome, Verified)
    assert "extensions" not in as_v2(outcome.payload)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("from", "alice"),
        ("asset", ""),
        ("spender", "0x12"),
        ("amount", "01"),
        ("amount", 5),
        ("nonce", "-1"),
        ("deadline", str(UINT256_MAX + 1)),
        ("signature", "0x" + "ab" * 64),
        ("signature", "0x" + "zz" * 65),
        ("signature", "ab" * 66),
        ("signature", "0x" + "ab" * 64 + "1d"),
    ],
)
def test_a_permit_that_is_not_well_formed_is_none(field: str, value: object) -> None:
    assert read_fields(sponsored(PERMIT, **{field: value})).token_permit is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.sampled_from([GAS_SPONSORING, "info", "from", "signature"]), inner)
        ),
    )
)
def test_no_extension_makes_reading_raise(extensions: object) -> None:
    assert read_token_permit(extensions) is None


def test_v_of_a_permit_is_normalised() -> None:
    raw = PERMIT.signature[:64] + bytes((PERMIT.signature[64] - 27,))
    assert read_fields(sponsored(signature="0x" + raw.hex())).token_permit == PERMIT


# --- from the buyer through the seller to the facilitator


def test_a_permit_reaches_the_facilitator_rebuilt_and_nothing_else_does() -> None:
    fields = sponsored(more="x" * 1000)
    fields["extensions"]["bazaar"] = {"info": {"evil": True}}
    outcome = obol_verifier().verify(read_fields(fields), NOW_S)
    assert isinstance(outcome, Verified)
    assert outcome.payload.extensions == write_token_permit(PERMIT)
    assert outcome.payload.payload == pay_obol().payload


def test_a_permit_of_a_contract_wallets_payment_is_kept() -> None:
    fields = sponsored()
    fields["payload"]["signature"] = "0x" + "ab" * 96
    outcome = obol_verifier().verify(read_fields(fields), NOW_S)
    assert isinstance(outcome, Undecided)
    assert outcome.payload.extensions == write_token_permit(PERMIT)


@pytest.mark.parametrize(
    ("permit", "reason"),
    [
        (signed(replace(PERMIT, value_atomic=1)), Reason.EIP2612_AMOUNT_MISMATCH),
        (signed(replace(PERMIT, deadline_s=int(NOW_S) + 5)), Reason.EIP2612_EXPIRED),
    ],
)
def test_a_payment_with_a_wrong_permit_is_refused(permit: TokenPermit, reason: Reason) -> None:
    outcome = obol_verifier().verify(presented(permit), NOW_S)
    assert isinstance(outcome, Refused)
    assert outcome.reason == reason


def test_an_eip3009_payment_carries_no_permit() -> None:
    fields = as_v2(pay()) | {"extensions": sponsored()["extensions"]}
    outcome = verifier().verify(read_fields(fields), NOW_S)
    assert isinstance(outcome, Verified)
    assert "extensions" not in as_v2(outcome.payload)


def test_from_declaration_to_verified() -> None:
    offered = build_challenge(
        OBOL_REQUIREMENTS, BASE_SEPOLIA, RESOURCE, error="pay", extensions=declare_gas_sponsoring()
    )
    challenge = read_challenge(402, {"PAYMENT-REQUIRED": offered.header}, b"{}")
    assert challenge.extensions == declare_gas_sponsoring()
    assert "extensions" not in json.loads(offered.body)
    payload = sponsor_gas(pay_obol(choose(challenge, DEFAULT_CATALOGUE)), challenge, BUYER, OBOL, token_nonce=7)
    received = read_presented([], [payment_headers(payload, 2)["PAYMENT-SIGNATURE"]], DEFAULT_CATALOGUE)
    assert received is not None
    assert received.token_permit == PERMIT
    assert isinstance(obol_verifier().verify(received, NOW_S), Verified)


@given(st.integers(1, UINT256_MAX), numbers, st.integers(6, 24 * 3600), st.binary(min_size=32, max_size=32))
def test_a_permit_of_any_amount_is_one_that_sellers_take(
    amount_atomic: int, token_nonce: int, valid_s: int, nonce: bytes
) -> None:
    wanted = msgspec.structs.replace(OBOL_REQUIREMENTS, amount=str(amount_atomic), max_timeout_seconds=valid_s)
    offered = build_challenge(wanted, BASE_SEPOLIA, RESOURCE, error="", extensions=declare_gas_sponsoring())
    challenge = read_challenge(402, {"PAYMENT-REQUIRED": offered.header}, b"{}")
    payload = sign_exact(BUYER, wanted, OBOL, now_s=NOW_S, nonce=nonce)
    sent = sponsor_gas(payload, challenge, BUYER, OBOL, token_nonce=token_nonce)
    received = read_presented([], [payment_headers(sent, 2)["PAYMENT-SIGNATURE"]], DEFAULT_CATALOGUE)
    assert received is not None
    permit, authorization = received.token_permit, parse_authorization(payload.payload)
    assert permit is not None
    assert permit_misfit(permit, authorization, OBOL) is None
    assert (permit.nonce, permit.deadline_s) == (token_nonce, authorization.valid_before_s)
    outcome = ExactVerifier(wanted, OBOL, max_validity_s=24 * 3600).verify(received, NOW_S)
    assert isinstance(outcome, Verified)
    assert outcome.payload.extensions == write_token_permit(permit)


@pytest.mark.parametrize(
    ("extensions", "asset", "is_offered"),
    [
        (declare_gas_sponsoring(), OBOL, True),
        (declare_gas_sponsoring(), USDC, False),
        ({GAS_SPONSORING: "yes"}, OBOL, False),
        ({"bazaar": {}}, OBOL, False),
        ({}, OBOL, False),
    ],
)
def test_gas_is_offered_where_it_is_declared_and_permit2_moves_the_asset(
    extensions: dict[str, Any], asset: Asset, is_offered: bool
) -> None:
    offered = build_challenge(OBOL_REQUIREMENTS, BASE_SEPOLIA, RESOURCE, error="", extensions=extensions)
    challenge = read_challenge(402, {"PAYMENT-REQUIRED": offered.header}, b"{}")
    assert offers_gas(challenge, asset) == is_offered


def test_the_sellers_declaration_is_repeated_as_it_was() -> None:
    info = {"description": "d", "version": "1", "later": [1]}
    declared = {GAS_SPONSORING: {"info": info, "schema": {"a": 1}}}
    offered = build_challenge(OBOL_REQUIREMENTS, BASE_SEPOLIA, RESOURCE, error="", extensions=declared)
    challenge = read_challenge(402, {"PAYMENT-REQUIRED": offered.header}, b"{}")
    sent: Any = sponsor_gas(pay_obol(), challenge, BUYER, OBOL, token_nonce=7).extensions
    assert sent[GAS_SPONSORING]["schema"] == {"a": 1}
    assert info == {name: sent[GAS_SPONSORING]["info"][name] for name in info}
    assert read_token_permit(sent) == PERMIT


@pytest.mark.parametrize(
    ("payload", "extensions"), [(pay_obol(), {}), (pay_obol(), {"bazaar": {}}), (pay(), declare_gas_sponsoring())]
)
def test_a_permit_is_signed_only_where_it_is_asked_for(payload: PaymentPayload, extensions: dict[str, Any]) -> None:
    offered = build_challenge(REQUIREMENTS, BASE_SEPOLIA, RESOURCE, error="", extensions=extensions)
    challenge = read_challenge(402, {"PAYMENT-REQUIRED": offered.header}, b"{}")
    with pytest.raises(UnpayableError, match=GAS_SPONSORING):
        sponsor_gas(payload, challenge, BUYER, OBOL, token_nonce=0)


def official_schema() -> Any:
    """The one that the official SDK declares; its package needs more than its schema does."""
    path = Path(x402.__file__).parent / "extensions" / "eip2612_gas_sponsoring" / "schema.py"
    spec = importlib.util.spec_from_file_location("official_schema", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.eip2612_gas_sponsoring_schema


def test_what_is_declared_is_what_the_official_sdk_declares() -> None:
    theirs = official_schema()
    for described in theirs["properties"].values():
        del described["description"]
    declared = declare_gas_sponsoring()[GAS_SPONSORING]
    assert declared["schema"] == theirs
    assert declared["info"]["version"] == "1"
