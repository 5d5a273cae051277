"""`exact` by Permit2: quoted, signed, verified here, and by the official SDK's client and facilitator."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from eth_account import Account
from hypothesis import given
from hypothesis import strategies as st
from x402 import x402ClientSync
from x402.mechanisms.evm.constants import PERMIT2_ADDRESS as OFFICIAL_PERMIT2
from x402.mechanisms.evm.exact.permit2_utils import _verify_permit2_signature
from x402.mechanisms.evm.exact.register import register_exact_evm_client
from x402.mechanisms.evm.types import ExactPermit2Payload, is_permit2_payload
from x402.schemas import PaymentPayload as OfficialPayload
from x402.schemas import PaymentRequired as OfficialRequired
from x402.schemas import PaymentRequirements as OfficialRequirements

from obol.adapters.clock import SystemClock
from obol.adapters.signer_local import LocalSigner
from obol.core.networks import DEFAULT_CATALOGUE
from obol.core.sale import ClaimKey
from obol.errors import MalformedPaymentError
from obol.x402.authorization import Authorization, Permit, parse_authorization
from obol.x402.eip712 import authorization_digest, domain_separator, permit2_domain_separator
from obol.x402.exact import ExactVerifier, Undecided, Verified, matches
from obol.x402.facilitator import Refused
from obol.x402.models import PaymentPayload
from obol.x402.permit2 import EXACT_PROXY
from obol.x402.presented import Presented
from obol.x402.reasons import Reason
from obol.x402.wire_form import wire_form
from tests.x402.samples import (
    BUYER,
    MAX_VALIDITY_S,
    NOW_S,
    OBOL,
    OBOL_REQUIREMENTS,
    PAY_TO,
    REQUIREMENTS,
    as_v1,
    as_v2,
    high_s_twin,
    obol_verifier,
    pay,
    pay_obol,
    read_fields,
    verifier,
)

STRANGER = "0x" + "77" * 20
DOMAIN = permit2_domain_separator(84532)


def presented(payload: PaymentPayload | None = None) -> Presented:
    return read_fields(as_v2(payload or pay_obol()))


def signed(domain: bytes = DOMAIN, **changes: Any) -> Presented:
    """A payment whose authorization was changed before it was signed."""
    authorization = replace(parse_authorization(pay_obol().payload), **changes)
    signature = BUYER.sign_digest(authorization_digest(domain, authorization))
    return presented(PaymentPayload(OBOL_REQUIREMENTS, wire_form(authorization, signature)))


def with_signature(signature: bytes) -> Presented:
    return presented(PaymentPayload(OBOL_REQUIREMENTS, wire_form(parse_authorization(pay_obol().payload), signature)))


def signature_of(payload: PaymentPayload) -> bytes:
    return bytes.fromhex(payload.payload.signature[2:])


def reason_of(outcome: object) -> str:
    assert isinstance(outcome, Refused)
    return outcome.reason


# --- requirements and matching


def test_requirements_say_that_the_asset_is_moved_by_permit2() -> None:
    assert msgspec.to_builtins(OBOL_REQUIREMENTS) == {
        "scheme": "exact",
        "network": "eip155:84532",
        "amount": "50000000000000000",
        "asset": OBOL.address,
        "payTo": PAY_TO,
        "maxTimeoutSeconds": 300,
        "extra": {"name": "Obol Network", "version": "1", "assetTransferMethod": "permit2"},
    }


def test_a_permit2_payment_matches_its_requirements_and_no_others() -> None:
    assert matches(presented(), OBOL_REQUIREMENTS, DEFAULT_CATALOGUE)
    assert not matches(presented(), REQUIREMENTS, DEFAULT_CATALOGUE)
    assert not matches(read_fields(as_v2(pay())), OBOL_REQUIREMENTS, DEFAULT_CATALOGUE)


def test_v1_buys_nothing_that_is_moved_by_permit2() -> None:
    assert not matches(read_fields(as_v1(pay())), OBOL_REQUIREMENTS, DEFAULT_CATALOGUE)


def test_a_v1_payment_by_permit2_is_malformed() -> None:
    with pytest.raises(MalformedPaymentError, match="v1 has no Permit2"):
        read_fields(as_v1(pay_obol()))


# --- verification


def test_a_good_payment_is_verified_and_rebuilt() -> None:
    outcome = obol_verifier().verify(presented(), NOW_S)
    assert isinstance(outcome, Verified)
    assert pay_obol() == outcome.payload
    nonce = "0x" + "42" * 32
    permit = Permit(OBOL.address.lower(), EXACT_PROXY)
    authorization = Authorization(BUYER.address.lower(), PAY_TO.lower(), 5 * 10**16, 0, int(NOW_S) + 300, nonce, permit)
    assert authorization == outcome.authorization
    assert ClaimKey("eip155:84532", OBOL.address.lower(), BUYER.address.lower(), nonce) == outcome.key


def test_addresses_are_rebuilt_in_eip_55_and_hex_in_lower_case() -> None:
    fields = as_v2(pay_obol())
    wire = fields["payload"]["permit2Authorization"]
    wire["from"], wire["spender"] = wire["from"].lower(), "0x" + wire["spender"][2:].upper()
    wire["permitted"]["token"], wire["witness"]["to"] = wire["permitted"]["token"].lower(), PAY_TO.lower()
    fields["payload"]["signature"] = "0x" + fields["payload"]["signature"][2:].upper()
    outcome = obol_verifier().verify(read_fields(fields), NOW_S)
    assert isinstance(outcome, Verified)
    assert pay_obol() == outcome.payload


@pytest.mark.parametrize("shift", [0, 27])
def test_v_is_normalised(shift: int) -> None:
    signature = signature_of(pay_obol())
    outcome = obol_verifier().verify(with_signature(signature[:64] + bytes((signature[64] - 27 + shift,))), NOW_S)
    assert isinstance(outcome, Verified)
    assert signature == signature_of(outcome.payload)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"value_atomic": 5 * 10**16 - 1}, Reason.PERMIT2_AMOUNT_MISMATCH),
        ({"value_atomic": 5 * 10**16 + 1}, Reason.PERMIT2_AMOUNT_MISMATCH),
        ({"to": STRANGER}, Reason.PERMIT2_RECIPIENT_MISMATCH),
        ({"permit": Permit(STRANGER, EXACT_PROXY)}, Reason.PERMIT2_TOKEN_MISMATCH),
        ({"permit": Permit(OBOL.address.lower(), STRANGER)}, Reason.PERMIT2_SPENDER),
        ({"valid_after_s": int(NOW_S) + 1}, Reason.PERMIT2_NOT_YET_VALID),
        ({"valid_before_s": int(NOW_S) + 5}, Reason.PERMIT2_DEADLINE_EXPIRED),
        ({"valid_before_s": int(NOW_S) + MAX_VALIDITY_S + 1}, Reason.PERMIT2_DEADLINE_EXPIRED),
        ({"permit": None}, Reason.NOT_EIP3009),
    ],
)
def test_what_is_signed_for_other_terms_is_refused(changes: dict[str, Any], reason: Reason) -> None:
    assert reason_of(obol_verifier().verify(signed(**changes), NOW_S)) == reason


@pytest.mark.parametrize(
    "changes",
    [
        {"valid_after_s": int(NOW_S)},
        {"valid_before_s": int(NOW_S) + 6},
        {"valid_before_s": int(NOW_S) + MAX_VALIDITY_S},
    ],
)
def test_the_edges_of_the_window_are_inside(changes: dict[str, Any]) -> None:
    assert isinstance(obol_verifier().verify(signed(**changes), NOW_S), Verified)


@pytest.mark.parametrize(
    "domain",
    [
        permit2_domain_separator(1),
        domain_separator("Permit2", "1", 84532, OFFICIAL_PERMIT2),
        domain_separator(OBOL.eip712_name, OBOL.eip712_version, 84532, OBOL.address),
    ],
)
def test_a_signature_over_another_domain_is_not_verified(domain: bytes) -> None:
    assert isinstance(obol_verifier().verify(signed(domain), NOW_S), Undecided)


def test_the_high_s_twin_is_refused() -> None:
    outcome = obol_verifier().verify(with_signature(high_s_twin(signature_of(pay_obol()))), NOW_S)
    assert reason_of(outcome) == Reason.PERMIT2_SIGNATURE


@pytest.mark.parametrize("length", [1, 64, 66, 1000])
def test_only_a_facilitator_can_tell_of_signatures_of_other_lengths(length: int) -> None:
    outcome = obol_verifier().verify(with_signature(b"\xab" * length), NOW_S)
    assert isinstance(outcome, Undecided)
    assert signature_of(outcome.payload) == b"\xab" * length


def test_only_a_facilitator_can_tell_of_another_signer() -> None:
    signature = LocalSigner.generate().sign_digest(
        authorization_digest(DOMAIN, parse_authorization(pay_obol().payload))
    )
    assert isinstance(obol_verifier().verify(with_signature(signature), NOW_S), Undecided)


@given(st.integers(0, 64), st.integers(1, 255))
def test_no_changed_byte_of_the_signature_is_verified(place: int, change: int) -> None:
    signature = bytearray(signature_of(pay_obol()))
    signature[place] ^= change
    outcome = obol_verifier().verify(with_signature(bytes(signature)), NOW_S)
    assert not isinstance(outcome, Verified) or place == 64


WIRE_FIELDS = [
    ("from",),
    ("permitted", "token"),
    ("permitted", "amount"),
    ("spender",),
    ("nonce",),
    ("deadline",),
    ("witness", "to"),
    ("witness", "validAfter"),
]


@given(st.sampled_from(WIRE_FIELDS), st.data())
def test_no_field_can_be_changed_after_signing(path: tuple[str, ...], data: st.DataObject) -> None:
    fields = as_v2(pay_obol())
    place = fields["payload"]["permit2Authorization"]
    for name in path[:-1]:
        place = place[name]
    before = place[path[-1]]
    if before.startswith("0x"):
        changed = data.draw(st.binary(min_size=20, max_size=20).map(lambda raw: "0x" + raw.hex()))
        is_same = changed == before.lower()
    else:
        changed = str(data.draw(st.integers(0, 2**256 - 1)))
        is_same = changed == before
    place[path[-1]] = changed
    outcome = obol_verifier().verify(read_fields(fields), NOW_S)
    assert is_same or not isinstance(outcome, Verified)


def test_a_permit2_payment_is_no_payment_by_eip3009_and_the_other_way_round() -> None:
    assert reason_of(verifier().verify(presented(), NOW_S)) == Reason.INVALID_PAYLOAD
    assert reason_of(obol_verifier().verify(read_fields(as_v2(pay())), NOW_S)) == Reason.NOT_EIP3009


@given(st.integers(0, 2**256 - 1))
def test_every_spelling_of_a_nonce_but_one_is_refused(nonce: int) -> None:
    fields = as_v2(pay_obol(nonce=nonce.to_bytes(32, "big")))
    outcome = obol_verifier().verify(read_fields(fields), NOW_S)
    assert isinstance(outcome, Verified)
    assert int(outcome.key.nonce, 16) == nonce
    for spelling in (f"0{nonce}", f"{nonce:#x}", f"+{nonce}", f"{nonce} "):
        fields["payload"]["permit2Authorization"]["nonce"] = spelling
        with pytest.raises(MalformedPaymentError, match="nonce"):
            obol_verifier().verify(read_fields(fields), NOW_S)


# --- the official SDK


class OfficialSigner:
    """The chain as the official facilitator sees it: every account is an ordinary wallet."""

    def get_code(self, address: str) -> bytes:
        return b""


def official_requirements() -> OfficialRequirements:
    return OfficialRequirements.model_validate(msgspec.to_builtins(OBOL_REQUIREMENTS))


def is_signed_to_the_official_facilitator(payload: PaymentPayload) -> bool:
    """Read by its models, and verified by its own check of a signature: the part of it that needs no chain."""
    theirs = OfficialPayload.model_validate(as_v2(payload))
    assert is_permit2_payload(theirs.payload)
    read = ExactPermit2Payload.from_dict(theirs.payload)
    assert read.signature is not None
    assert read.to_dict() == theirs.payload
    authorization, signature = read.permit2_authorization, bytes.fromhex(read.signature[2:])
    return _verify_permit2_signature(OfficialSigner(), BUYER.address, authorization, 84532, signature)  # type: ignore[arg-type]


@given(st.integers(0, 2**256 - 1))
def test_the_official_facilitator_accepts_what_we_sign(nonce: int) -> None:
    assert is_signed_to_the_official_facilitator(pay_obol(nonce=nonce.to_bytes(32, "big")))


def test_the_official_facilitator_accepts_what_we_rebuild_and_nothing_else() -> None:
    fields = as_v2(pay_obol())
    fields["payload"]["permit2Authorization"]["witness"]["to"] = PAY_TO.lower()
    outcome = obol_verifier().verify(read_fields(fields), NOW_S)
    assert isinstance(outcome, Verified)
    assert is_signed_to_the_official_facilitator(outcome.payload)
    other = wire_form(replace(outcome.authorization, value_atomic=1), signature_of(outcome.payload))
    assert not is_signed_to_the_official_facilitator(PaymentPayload(OBOL_REQUIREMENTS, other))


def test_what_the_official_client_signs_is_verified() -> None:
    client = register_exact_evm_client(x402ClientSync(), Account.from_key("0x" + "11" * 32))
    client.set_spend_controls(False)  # it knows few tokens of its own accord
    paid = client.create_payment_payload(OfficialRequired(accepts=[official_requirements()]))
    fields = paid.model_dump(by_alias=True, exclude_none=True)
    outcome = obol_verifier().verify(read_fields(fields), SystemClock().now_s())
    assert matches(read_fields(fields), OBOL_REQUIREMENTS, DEFAULT_CATALOGUE)
    assert isinstance(outcome, Verified)
    assert outcome.key.payer == BUYER.address.lower()


def test_a_verifier_for_obol_is_made_for_obol_alone() -> None:
    with pytest.raises(ValueError, match="another asset"):
        ExactVerifier(REQUIREMENTS, OBOL, max_validity_s=1)
