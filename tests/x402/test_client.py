import base64
import json
from typing import Any

import msgspec
import pytest
from eth_account import Account
from hypothesis import given
from hypothesis import strategies as st
from x402.mechanisms.evm.eip712 import hash_eip3009_authorization
from x402.mechanisms.evm.types import ExactEIP3009Payload
from x402.mechanisms.evm.verify import verify_eoa_signature

from obol.core.networks import BASE_SEPOLIA, DEFAULT_CATALOGUE
from obol.errors import BudgetExceededError, PeerProtocolError, UnpayableError
from obol.x402.authorization import Permit, parse_authorization
from obol.x402.challenge import build_challenge
from obol.x402.client import (
    MAX_VALIDITY_S,
    BuyerPolicy,
    choose,
    find_asset,
    payment_headers,
    read_challenge,
    read_receipt,
    sign_exact,
)
from obol.x402.exact import Verified
from obol.x402.headers import encode_header, read_presented
from obol.x402.models import PaymentRequired, PaymentRequirements, ResourceInfo, SettleResponse
from obol.x402.permit2 import EXACT_PROXY
from obol.x402.receipts import settle_header
from obol.x402.v1 import V1PaymentRequired, v1_requirements
from tests.x402.samples import (
    BUYER,
    NOW_S,
    OBOL,
    OBOL_REQUIREMENTS,
    PAY_TO,
    REQUIREMENTS,
    USDC,
    obol_verifier,
    pay,
    verifier,
)

CHALLENGE = build_challenge(
    REQUIREMENTS, BASE_SEPOLIA, ResourceInfo("https://seller.example/v1", "Chat"), error="payment required"
)
OBOL_CHALLENGE = build_challenge(
    OBOL_REQUIREMENTS, BASE_SEPOLIA, ResourceInfo("https://seller.example/v1", "Chat"), error="payment required"
)
NONCE = b"\x42" * 32


def changed(**fields: Any) -> PaymentRequirements:
    return msgspec.structs.replace(REQUIREMENTS, **fields)


def required(*accepts: PaymentRequirements) -> PaymentRequired:
    return PaymentRequired(ResourceInfo("https://seller.example"), list(accepts))


# --- reading


@pytest.mark.parametrize("name", ["PAYMENT-REQUIRED", "payment-required", "Payment-Required"])
def test_the_v2_header_is_read_first(name: str) -> None:
    challenge = read_challenge(402, {"Content-Type": "x", name: CHALLENGE.header}, CHALLENGE.body)
    assert (challenge.x402_version, challenge.accepts, challenge.error) == (2, [REQUIREMENTS], "payment required")
    assert ResourceInfo("https://seller.example/v1", "Chat") == challenge.resource


def test_a_v1_body_is_read_into_v2_requirements_that_keep_the_networks_name() -> None:
    challenge = read_challenge(402, {}, CHALLENGE.body)
    assert challenge.x402_version == 1
    assert [changed(network="base-sepolia", extra={"name": "USDC", "version": "2"})] == challenge.accepts


def test_a_v2_challenge_in_the_body_is_read() -> None:
    assert read_challenge(402, {}, base64.b64decode(CHALLENGE.header)).accepts == [REQUIREMENTS]


def test_an_entry_that_cannot_be_read_does_not_spoil_the_others() -> None:
    fields = json.loads(base64.b64decode(CHALLENGE.header))
    fields["accepts"] = [None, {"scheme": "card"}, {**fields["accepts"][0], "amount": 5}, *fields["accepts"]]
    fields["resource"], fields["error"] = None, {"code": 1}
    challenge = read_challenge(402, {"PAYMENT-REQUIRED": encode_header(fields)}, b"")
    assert challenge.accepts == [REQUIREMENTS]
    assert (ResourceInfo(""), "") == (challenge.resource, challenge.error)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, b""),
        ({}, b"<html>"),
        ({}, b"\xff"),
        ({}, b"[]"),
        ({}, b"[" * 100_000),
        ({}, b'{"error":"pay me"}'),
        ({}, b'{"x402Version":3,"accepts":[]}'),
        ({"PAYMENT-REQUIRED": "junk"}, CHALLENGE.body),
        ({"PAYMENT-REQUIRED": CHALLENGE.header + "," + CHALLENGE.header}, CHALLENGE.body),
    ],
)
def test_a_402_without_a_challenge_is_the_sellers_fault(headers: dict[str, str], body: bytes) -> None:
    with pytest.raises(PeerProtocolError):
        read_challenge(402, headers, body)


def test_other_statuses_carry_no_challenge() -> None:
    with pytest.raises(PeerProtocolError, match="402"):
        read_challenge(200, {"PAYMENT-REQUIRED": CHALLENGE.header}, b"")


@given(st.binary(), st.text())
def test_no_seller_makes_reading_raise_anything_else(body: bytes, header: str) -> None:
    for headers in ({}, {"PAYMENT-REQUIRED": header}, {"PAYMENT-REQUIRED": base64.b64encode(body).decode()}):
        try:
            read_challenge(402, headers, body)
        except PeerProtocolError:
            continue


# --- choosing


@pytest.mark.parametrize("network", ["eip155:84532", "base-sepolia"])
def test_the_first_that_can_be_signed_is_chosen_as_the_seller_wrote_it(network: str) -> None:
    good = changed(network=network, asset=USDC.address.lower())
    assert good is choose(required(changed(scheme="upto"), good, REQUIREMENTS), DEFAULT_CATALOGUE)


@pytest.mark.parametrize(
    ("requirements", "why"),
    [
        (changed(scheme="upto"), "scheme 'upto' is not supported"),
        (changed(network="eip155:31337"), "is not known there"),
        (changed(network="solana:mainnet"), "is not known there"),
        (changed(asset="0x" + "77" * 20), "is not known there"),
        (changed(asset="usdc"), "is not known there"),
        (changed(asset="USD"), "is not known there"),
        (changed(amount="1.5"), "not written as x402 says"),
        (changed(amount="-1"), "not written as x402 says"),
        (changed(pay_to="merchant"), "not written as x402 says"),
        (changed(max_timeout_seconds=0), "no time to pay"),
        (changed(max_timeout_seconds=-5), "no time to pay"),
        (changed(extra={"assetTransferMethod": "permit2"}), "would be moved by 'permit2'"),
        (changed(extra={"paymentFlow": "escrow"}), "payment flow 'escrow'"),
        (changed(extra={"paymentFlow": ["escrow"]}), "payment flow"),
        (changed(asset="0x0a09371a8b011d5110656ceBCc70603e53FD2c78", extra=None), "OBOL would be moved by"),
    ],
)
def test_what_cannot_be_signed_is_refused_with_the_reason(requirements: PaymentRequirements, why: str) -> None:
    with pytest.raises(UnpayableError, match=why):
        choose(required(requirements), DEFAULT_CATALOGUE)


@pytest.mark.parametrize(("name", "version"), [("USD Coin", "2"), ("USDC", "1"), (None, "2"), (7, "2")])
def test_another_signing_domain_is_refused_with_both(name: object, version: str) -> None:
    with pytest.raises(UnpayableError) as caught:
        choose(required(changed(extra={"name": name, "version": version})), DEFAULT_CATALOGUE)
    assert repr((name, version)) in str(caught.value)
    assert "('USDC', '2')" in str(caught.value)


@pytest.mark.parametrize("extra", [None, {}, {"paymentFlow": "upfront"}, {"name": "USDC"}])
def test_a_domain_that_is_not_mentioned_is_ours(extra: dict[str, Any] | None) -> None:
    requirements = changed(extra=extra)
    assert requirements is choose(required(requirements), DEFAULT_CATALOGUE)


def test_a_challenge_without_entries_is_unpayable() -> None:
    with pytest.raises(UnpayableError, match="no requirements"):
        choose(required(), DEFAULT_CATALOGUE)


def test_a_sellers_long_or_strange_words_do_not_fill_the_message() -> None:
    with pytest.raises(UnpayableError) as caught:
        choose(required(changed(scheme="x" * 5000, network="\x1b[31m")), DEFAULT_CATALOGUE)
    assert len(str(caught.value)) < 300
    assert "\x1b" not in str(caught.value)


def test_a_price_above_the_limit_is_refused_with_both_amounts() -> None:
    with pytest.raises(BudgetExceededError, match=r"asks for 0\.001 USDC, the limit per request is 0\.0009"):
        choose(required(REQUIREMENTS), DEFAULT_CATALOGUE, BuyerPolicy(max_price="0.0009"))
    assert REQUIREMENTS is choose(required(REQUIREMENTS), DEFAULT_CATALOGUE, BuyerPolicy(max_price="0.001"))


def test_a_dear_entry_does_not_hide_one_within_the_limit() -> None:
    dear = changed(amount="1000000")
    policy = BuyerPolicy(max_price="0.001")
    assert REQUIREMENTS is choose(required(dear, REQUIREMENTS), DEFAULT_CATALOGUE, policy)


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        (BuyerPolicy(networks=frozenset({"eip155:8453"})), "not among the allowed networks"),
        (BuyerPolicy(assets=frozenset({"EURC"})), "USDC is not among the allowed assets"),
    ],
)
def test_networks_and_assets_can_be_limited(policy: BuyerPolicy, why: str) -> None:
    with pytest.raises(UnpayableError, match=why):
        choose(required(REQUIREMENTS), DEFAULT_CATALOGUE, policy)


def test_the_asset_is_found_by_network_and_address_in_any_spelling() -> None:
    spelled = changed(network="base-sepolia", asset="0X" + USDC.address[2:].upper())
    assert USDC == find_asset(REQUIREMENTS, DEFAULT_CATALOGUE) == find_asset(spelled, DEFAULT_CATALOGUE)


# --- signing


def test_v2_is_valid_from_the_beginning_until_the_sellers_timeout() -> None:
    authorization = parse_authorization(pay().payload)
    assert (0, int(NOW_S) + 300) == (authorization.valid_after_s, authorization.valid_before_s)


def test_an_asset_is_paid_by_the_method_that_it_is_moved_by() -> None:
    challenge = read_challenge(402, {"PAYMENT-REQUIRED": OBOL_CHALLENGE.header}, b"{}")
    chosen = choose(challenge, DEFAULT_CATALOGUE)
    asset = find_asset(chosen, DEFAULT_CATALOGUE)
    assert asset == OBOL
    payload = sign_exact(BUYER, chosen, asset, now_s=NOW_S, nonce=NONCE)
    authorization = parse_authorization(payload.payload)
    assert authorization.permit == Permit(OBOL.address.lower(), EXACT_PROXY)
    assert (authorization.valid_after_s, authorization.valid_before_s) == (0, int(NOW_S) + 300)
    presented = read_presented([], [payment_headers(payload, 2)["PAYMENT-SIGNATURE"]], DEFAULT_CATALOGUE)
    assert presented is not None
    assert isinstance(obol_verifier().verify(presented, NOW_S), Verified)


def test_a_v1_seller_cannot_ask_for_what_is_moved_by_permit2() -> None:
    old = v1_requirements(OBOL_REQUIREMENTS, BASE_SEPOLIA, ResourceInfo("https://seller.example/"))
    challenge = read_challenge(402, {}, msgspec.json.encode(V1PaymentRequired(accepts=[old])))
    with pytest.raises(UnpayableError, match="OBOL would be moved by 'eip3009': only permit2"):
        choose(challenge, DEFAULT_CATALOGUE)
    named = msgspec.structs.replace(old, extra=OBOL_REQUIREMENTS.extra)
    challenge = read_challenge(402, {}, msgspec.json.encode(V1PaymentRequired(accepts=[named])))
    with pytest.raises(UnpayableError, match="OBOL is moved by permit2, which x402 v1 does not have"):
        choose(challenge, DEFAULT_CATALOGUE)
    with pytest.raises(ValueError, match="not payable"):
        sign_exact(BUYER, OBOL_REQUIREMENTS, OBOL, now_s=NOW_S, nonce=NONCE, version=1)


@pytest.mark.parametrize("extra", [{}, {"name": "Other", "version": "9"}])
def test_permit2_does_not_ask_for_the_tokens_domain(extra: dict[str, str]) -> None:
    wanted = msgspec.structs.replace(OBOL_REQUIREMENTS, extra={"assetTransferMethod": "permit2", **extra})
    assert wanted is choose(required(wanted), DEFAULT_CATALOGUE)


def test_v1_is_valid_from_ten_minutes_ago() -> None:
    payload = sign_exact(BUYER, REQUIREMENTS, USDC, now_s=NOW_S, nonce=NONCE, version=1)
    assert int(NOW_S) - 600 == parse_authorization(payload.payload).valid_after_s


def test_validity_is_capped_whatever_the_seller_asks() -> None:
    payload = sign_exact(BUYER, changed(max_timeout_seconds=10**9), USDC, now_s=NOW_S, nonce=NONCE)
    assert int(NOW_S) + MAX_VALIDITY_S == parse_authorization(payload.payload).valid_before_s


@given(st.integers(0, 2**256 - 1), st.binary(min_size=32, max_size=32), st.sampled_from([1, 2]))
def test_the_official_sdk_accepts_what_we_sign(amount: int, nonce: bytes, version: int) -> None:
    requirements = changed(amount=str(amount))
    payload = sign_exact(BUYER, requirements, USDC, now_s=NOW_S, nonce=nonce, version=version)
    theirs = ExactEIP3009Payload.from_dict(msgspec.to_builtins(payload.payload))
    digest = hash_eip3009_authorization(theirs.authorization, 84532, USDC.address, "USDC", "2")
    assert theirs.signature is not None
    assert verify_eoa_signature(digest, bytes.fromhex(theirs.signature[2:]), BUYER.address)


def test_our_signature_is_the_one_that_eth_account_makes() -> None:
    payload = pay()
    theirs = ExactEIP3009Payload.from_dict(msgspec.to_builtins(payload.payload))
    digest = hash_eip3009_authorization(theirs.authorization, 84532, USDC.address, "USDC", "2")
    signed = Account.from_key("0x" + "11" * 32).unsafe_sign_hash(digest)
    assert "0x" + bytes(signed.signature).hex() == payload.payload.signature


@pytest.mark.parametrize(
    "requirements", [changed(asset="0x" + "77" * 20), changed(amount="x"), changed(pay_to="merchant")]
)
def test_what_choose_would_not_return_is_not_signed(requirements: PaymentRequirements) -> None:
    with pytest.raises(ValueError, match="not payable"):
        sign_exact(BUYER, requirements, USDC, now_s=NOW_S, nonce=NONCE)


@pytest.mark.parametrize("nonce", [b"", b"\x01" * 31, b"\x01" * 33])
def test_a_nonce_has_32_bytes(nonce: bytes) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        sign_exact(BUYER, REQUIREMENTS, USDC, now_s=NOW_S, nonce=nonce)


@pytest.mark.parametrize(
    ("headers", "body", "name"),
    [({"payment-required": CHALLENGE.header}, b"{}", "PAYMENT-SIGNATURE"), ({}, CHALLENGE.body, "X-PAYMENT")],
)
def test_from_challenge_to_verified_in_both_versions(headers: dict[str, str], body: bytes, name: str) -> None:
    challenge = read_challenge(402, headers, body)
    chosen = choose(challenge, DEFAULT_CATALOGUE)
    version = challenge.x402_version
    payload = sign_exact(BUYER, chosen, USDC, now_s=NOW_S, nonce=NONCE, version=version)
    sent = payment_headers(payload, version)
    assert [name] == list(sent)
    presented = read_presented(
        [sent[name]] if version == 1 else [], [sent[name]] if version == 2 else [], DEFAULT_CATALOGUE
    )
    assert presented is not None
    assert version == presented.version
    assert isinstance(verifier().verify(presented, NOW_S), Verified)


def test_what_was_accepted_is_repeated_as_the_seller_wrote_it() -> None:
    extra = {"name": "USDC", "version": "2", "later": [1, {"a": None}]}
    payload = sign_exact(BUYER, changed(pay_to=PAY_TO.lower(), extra=extra), USDC, now_s=NOW_S, nonce=NONCE)
    sent = json.loads(base64.b64decode(payment_headers(payload, 2)["PAYMENT-SIGNATURE"]))
    assert (PAY_TO.lower(), extra) == (sent["accepted"]["payTo"], sent["accepted"]["extra"])


def test_an_absent_extra_stays_absent() -> None:
    payload = sign_exact(BUYER, changed(extra=None), USDC, now_s=NOW_S, nonce=NONCE)
    assert "extra" not in json.loads(base64.b64decode(payment_headers(payload, 2)["PAYMENT-SIGNATURE"]))["accepted"]


# --- receipts


@pytest.mark.parametrize("name", ["PAYMENT-RESPONSE", "X-PAYMENT-RESPONSE", "x-payment-response"])
def test_the_sellers_settlement_is_read_from_either_header(name: str) -> None:
    settled = SettleResponse(True, "0x" + "ab" * 32, "eip155:84532", BUYER.address)
    assert settled == read_receipt({name: settle_header(settled)})


def test_no_settlement_header_is_none() -> None:
    assert read_receipt({"content-type": "application/json"}) is None


def test_a_settlement_that_cannot_be_read_is_the_sellers_fault() -> None:
    with pytest.raises(PeerProtocolError, match="PAYMENT-RESPONSE"):
        read_receipt({"PAYMENT-RESPONSE": "junk"})
