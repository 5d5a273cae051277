import base64
import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from obol.adapters.signer_local import LocalSigner
from obol.core.networks import BASE, BASE_SEPOLIA, DEFAULT_CATALOGUE
from obol.core.sale import ClaimKey
from obol.errors import MalformedPaymentError
from obol.x402.eip712 import authorization_digest, domain_separator
from obol.x402.exact import (
    Authorization,
    ExactVerifier,
    Undecided,
    Verified,
    build_requirements,
    matches,
    parse_authorization,
)
from obol.x402.facilitator import Refused
from obol.x402.models import PaymentPayload
from obol.x402.presented import Presented
from obol.x402.reasons import Reason
from tests.x402.samples import (
    BUYER,
    MAX_VALIDITY_S,
    NOW_S,
    OFFER,
    PAY_TO,
    REQUIREMENTS,
    USDC,
    as_v1,
    as_v2,
    header,
    high_s_twin,
    pay,
    read,
    read_fields,
    verifier,
)

STRANGER = "0x" + "77" * 20


def presented(payload: PaymentPayload | None = None, /, **authorization: str) -> Presented:
    """A v2 payment as presented; `authorization` replaces wire fields after signing."""
    fields = as_v2(payload or pay())
    fields["payload"]["authorization"].update(authorization)
    return read_fields(fields)


def signed(**changes: Any) -> Presented:
    """A v2 payment whose authorization was changed before it was signed, over our domain."""
    authorization = replace(parse_authorization(pay().payload), **changes)
    return _sign(authorization, domain_separator("USDC", "2", BASE_SEPOLIA.chain_id, USDC.address))


def _sign(authorization: Authorization, domain: bytes) -> Presented:
    fields = as_v2(pay())
    fields["payload"]["signature"] = "0x" + BUYER.sign_digest(authorization_digest(domain, authorization)).hex()
    fields["payload"]["authorization"].update(
        to=authorization.to,
        value=str(authorization.value_atomic),
        validAfter=str(authorization.valid_after_s),
        validBefore=str(authorization.valid_before_s),
        nonce=authorization.nonce,
    )
    return read_fields(fields)


def with_signature(signature: bytes | str) -> Presented:
    fields = as_v2(pay())
    fields["payload"]["signature"] = signature if isinstance(signature, str) else "0x" + signature.hex()
    return read_fields(fields)


def signature_of(payload: PaymentPayload) -> bytes:
    return bytes.fromhex(payload.payload.signature[2:])


def reason_of(outcome: object) -> str:
    assert isinstance(outcome, Refused)
    return outcome.reason


# --- requirements


def test_requirements_say_everything_that_a_client_signs_with() -> None:
    assert msgspec.to_builtins(REQUIREMENTS) == {
        "scheme": "exact",
        "network": "eip155:84532",
        "amount": "1000",
        "asset": "0x036CbD53842c5426634e7929541eC2318f3dCF7e",
        "payTo": PAY_TO,
        "maxTimeoutSeconds": 300,
        "extra": {"name": "USDC", "version": "2", "assetTransferMethod": "eip3009"},
    }


def test_addresses_are_emitted_in_eip_55_however_they_were_configured() -> None:
    assert build_requirements(replace(OFFER, pay_to=PAY_TO.lower())) == REQUIREMENTS


# --- matching


def test_a_payment_for_our_requirements_matches_in_both_versions() -> None:
    assert matches(read_fields(as_v2(pay())), REQUIREMENTS, DEFAULT_CATALOGUE)
    assert matches(read_fields(as_v1(pay())), REQUIREMENTS, DEFAULT_CATALOGUE)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scheme", "upto"),
        ("network", "eip155:8453"),
        ("network", "eip155:084532"),
        ("amount", "999"),
        ("amount", "01000"),
        ("asset", STRANGER),
        ("payTo", STRANGER),
        ("maxTimeoutSeconds", 301),
        ("extra", None),
        ("extra", {"name": "USDC", "version": "2"}),
        ("extra", {"name": "USD Coin", "version": "2", "assetTransferMethod": "eip3009"}),
    ],
)
def test_other_requirements_do_not_match(field: str, value: object) -> None:
    fields = as_v2(pay())
    fields["accepted"][field] = value
    assert not matches(read_fields(fields), REQUIREMENTS, DEFAULT_CATALOGUE)


@pytest.mark.parametrize(("scheme", "network"), [("upto", "base-sepolia"), ("exact", "base"), ("exact", "solana")])
def test_v1_matches_by_scheme_and_network(scheme: str, network: str) -> None:
    fields = {**as_v1(pay(), network=network), "scheme": scheme}
    assert not matches(read_fields(fields), REQUIREMENTS, DEFAULT_CATALOGUE)


def test_spelling_does_not_matter_to_matching() -> None:
    fields = as_v2(pay())
    fields["accepted"].update(
        network="base-sepolia",
        asset="0X" + USDC.address[2:].upper(),
        payTo=PAY_TO.lower(),
        extra={**fields["accepted"]["extra"], "more": [{"deep": 1}]},
    )
    assert matches(read_fields(fields), REQUIREMENTS, DEFAULT_CATALOGUE)
    assert matches(read_fields(as_v1(pay(), network="eip155:84532")), REQUIREMENTS, DEFAULT_CATALOGUE)


# --- verification


def test_a_good_payment_is_verified_and_rebuilt() -> None:
    outcome = verifier().verify(presented(), NOW_S)
    assert isinstance(outcome, Verified)
    assert pay() == outcome.payload
    assert outcome.payload.accepted is not presented().accepted
    nonce = "0x" + "42" * 32
    assert (
        Authorization(BUYER.address.lower(), PAY_TO.lower(), 1000, 0, int(NOW_S) + 300, nonce) == outcome.authorization
    )
    assert ClaimKey("eip155:84532", USDC.address.lower(), BUYER.address.lower(), nonce) == outcome.key


def test_what_is_rebuilt_says_our_requirements_whatever_the_buyer_said() -> None:
    fields = as_v2(pay())
    fields["accepted"].update(asset=STRANGER, payTo=STRANGER, amount="1", extra={"name": "Evil", "version": "9"})
    outcome = verifier().verify(read_fields(fields), NOW_S)
    assert isinstance(outcome, Verified)
    assert outcome.payload.accepted == REQUIREMENTS


def test_addresses_are_rebuilt_in_eip_55_and_hex_in_lower_case() -> None:
    fields = as_v2(pay())
    fields["payload"]["authorization"].update({"from": BUYER.address.lower(), "to": PAY_TO.upper().replace("X", "x")})
    fields["payload"]["signature"] = "0x" + fields["payload"]["signature"][2:].upper()
    outcome = verifier().verify(read_fields(fields), NOW_S)
    assert isinstance(outcome, Verified)
    assert pay() == outcome.payload


@pytest.mark.parametrize("shift", [0, 27])
def test_v_is_normalised(shift: int) -> None:
    signature = signature_of(pay())
    outcome = verifier().verify(with_signature(signature[:64] + bytes((signature[64] - 27 + shift,))), NOW_S)
    assert isinstance(outcome, Verified)
    assert signature == signature_of(outcome.payload)


@pytest.mark.parametrize("v", [2, 26, 29, 31, 37, 255])
def test_any_other_v_is_refused(v: int) -> None:
    assert (
        reason_of(verifier().verify(with_signature(signature_of(pay())[:64] + bytes((v,))), NOW_S)) == Reason.SIGNATURE
    )


def test_the_high_s_twin_is_refused() -> None:
    assert reason_of(verifier().verify(with_signature(high_s_twin(signature_of(pay()))), NOW_S)) == Reason.SIGNATURE


@pytest.mark.parametrize("value", [0, 1, 999, 1001, 2**256 - 1])
def test_another_amount_is_refused_even_when_it_is_more(value: int) -> None:
    assert reason_of(verifier().verify(signed(value_atomic=value), NOW_S)) == Reason.VALUE_MISMATCH


def test_another_payee_is_refused() -> None:
    assert reason_of(verifier().verify(signed(to=STRANGER), NOW_S)) == Reason.RECIPIENT_MISMATCH


@pytest.mark.parametrize(("version", "network"), [(1, "base"), (1, "solana"), (2, "eip155:8453")])
def test_another_network_is_refused(version: int, network: str) -> None:
    fields = as_v1(pay(), network=network)
    if version == 2:
        fields = as_v2(pay())
        fields["accepted"]["network"] = network
    assert reason_of(verifier().verify(read_fields(fields), NOW_S)) == Reason.INVALID_NETWORK


def test_another_scheme_is_refused() -> None:
    fields = {**as_v1(pay()), "scheme": "upto"}
    assert reason_of(verifier().verify(read_fields(fields), NOW_S)) == Reason.UNSUPPORTED_SCHEME


@pytest.mark.parametrize(
    ("name", "version", "chain_id", "contract"),
    [
        ("USD Coin", "2", 84532, USDC.address),
        ("USDC", "1", 84532, USDC.address),
        ("USDC", "2", 8453, USDC.address),
        ("USDC", "2", 84532, STRANGER),
    ],
)
def test_a_signature_over_another_domain_is_not_verified(name: str, version: str, chain_id: int, contract: str) -> None:
    authorization = parse_authorization(pay().payload)
    payment = _sign(authorization, domain_separator(name, version, chain_id, contract))
    assert isinstance(verifier().verify(payment, NOW_S), Undecided)


@pytest.mark.parametrize(
    "changes",
    [
        {"from": STRANGER},
        {"validAfter": "1"},
        {"validBefore": str(int(NOW_S) + 299)},
        {"nonce": "0x" + "43" * 32},
    ],
)
def test_a_change_after_signing_is_not_verified(changes: dict[str, str]) -> None:
    assert isinstance(verifier().verify(presented(**changes), NOW_S), Undecided | Refused)


@given(st.integers(0, 64), st.integers(1, 255))
def test_no_changed_byte_of_the_signature_is_verified(place: int, change: int) -> None:
    signature = bytearray(signature_of(pay()))
    signature[place] ^= change
    outcome = verifier().verify(with_signature(bytes(signature)), NOW_S)
    if isinstance(outcome, Verified):  # the other spelling of v
        assert signature_of(pay()) == signature_of(outcome.payload)
        assert place == 64


@pytest.mark.parametrize("length", [1, 64, 66, 96, 1000])
def test_only_a_facilitator_can_tell_of_signatures_of_other_lengths(length: int) -> None:
    signature = b"\xab" * length
    outcome = verifier().verify(with_signature(signature), NOW_S)
    assert isinstance(outcome, Undecided)
    assert signature == signature_of(outcome.payload)
    assert BUYER.address.lower() == outcome.key.payer


def test_a_contract_wallets_signature_keeps_its_bytes() -> None:
    signature = LocalSigner.generate().sign_digest(bytes(32))
    signature = signature[:64] + bytes((signature[64] - 27,))
    outcome = verifier().verify(with_signature(signature), NOW_S)
    assert isinstance(outcome, Undecided)
    assert signature == signature_of(outcome.payload)


@pytest.mark.parametrize(
    ("valid_after_s", "valid_before_s", "reason"),
    [
        (int(NOW_S), int(NOW_S) + 300, None),
        (int(NOW_S) + 1, int(NOW_S) + 300, Reason.VALID_AFTER),
        (2**256 - 1, int(NOW_S) + 300, Reason.VALID_AFTER),
        (0, int(NOW_S) + 6, None),
        (0, int(NOW_S) + 5, Reason.VALID_BEFORE),
        (0, 0, Reason.VALID_BEFORE),
        (0, int(NOW_S) + MAX_VALIDITY_S, None),
        (0, int(NOW_S) + MAX_VALIDITY_S + 1, Reason.VALID_BEFORE),
        (0, 2**256 - 1, Reason.VALID_BEFORE),
    ],
)
def test_the_edges_of_the_window(valid_after_s: int, valid_before_s: int, reason: Reason | None) -> None:
    outcome = verifier().verify(signed(valid_after_s=valid_after_s, valid_before_s=valid_before_s), NOW_S)
    if reason is None:
        assert isinstance(outcome, Verified)
    else:
        assert reason == reason_of(outcome)


@pytest.mark.parametrize("field", ["value", "validAfter", "validBefore"])
def test_a_number_that_is_not_canonical_is_malformed(field: str) -> None:
    with pytest.raises(MalformedPaymentError, match=field):
        verifier().verify(presented(**{field: "0001000"}), NOW_S)


@pytest.mark.parametrize("signature", ["", "0x", "0xabc", "0x" + "zz" * 65])
def test_a_signature_that_is_not_hex_is_malformed(signature: str) -> None:
    with pytest.raises(MalformedPaymentError, match="signature"):
        verifier().verify(with_signature(signature), NOW_S)


def test_a_verifier_is_made_for_one_asset_and_a_canonical_amount() -> None:
    with pytest.raises(ValueError, match="another asset"):
        ExactVerifier(REQUIREMENTS, DEFAULT_CATALOGUE.asset(BASE, "usdc"), max_validity_s=1)
    with pytest.raises(ValueError, match="canonical"):
        ExactVerifier(msgspec.structs.replace(REQUIREMENTS, amount="1.0"), USDC, max_validity_s=1)


def test_outcomes_do_not_show_the_signature() -> None:
    outcome = verifier().verify(presented(), NOW_S)
    assert signature_of(pay()).hex() not in repr(outcome)


# --- one authorization, one claim


def _shuffled(data: st.DataObject, value: Any) -> Any:
    """The same JSON with the keys of every object in another order."""
    if not isinstance(value, dict):
        return value
    return {key: _shuffled(data, value[key]) for key in data.draw(st.permutations(list(value)))}


def _recased(data: st.DataObject, text: str) -> str:
    digits = [c.upper() if data.draw(st.booleans()) else c.lower() for c in text[2:]]
    return text[:2] + "".join(digits)


@given(st.data())
def test_the_same_authorization_in_other_bytes_has_the_same_claim_key(data: st.DataObject) -> None:
    original = verifier().verify(read(header(as_v2(pay()))), NOW_S)
    assert isinstance(original, Verified)
    fields = data.draw(st.sampled_from([as_v1(pay()), as_v2(pay())]))
    authorization = fields["payload"]["authorization"]
    for name in ("from", "to", "nonce"):
        authorization[name] = _recased(data, authorization[name])
    if data.draw(st.booleans()):
        authorization["from"] = "0X" + authorization["from"][2:]
    signature = signature_of(pay())
    v = data.draw(st.sampled_from([signature[64], signature[64] - 27]))
    fields["payload"]["signature"] = _recased(data, "0x" + (signature[:64] + bytes((v,))).hex())
    text = json.dumps(
        _shuffled(data, fields),
        indent=data.draw(st.sampled_from([None, 0, 3])),
        separators=data.draw(st.sampled_from([(",", ":"), (" , ", " : ")])),
    )
    encoded = base64.b64encode(text.encode() + b" " * data.draw(st.integers(0, 3))).decode()
    if data.draw(st.booleans()):
        encoded = encoded.replace("+", "-").replace("/", "_")
    if data.draw(st.booleans()):
        encoded = encoded.rstrip("=")
    outcome = verifier().verify(read(encoded), NOW_S)
    assert isinstance(outcome, Verified)
    assert original.key == outcome.key
    assert original.payload == outcome.payload


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_different_nonces_have_different_claim_keys(one: bytes, other: bytes) -> None:
    first, second = (verifier().verify(presented(pay(nonce=nonce)), NOW_S) for nonce in (one, other))
    assert isinstance(first, Verified)
    assert isinstance(second, Verified)
    assert (one == other) == (first.key == second.key)
