import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from x402.http.utils import decode_payment_required_header
from x402.schemas import PaymentRequired
from x402.schemas.v1 import PaymentRequiredV1

from obol.core.networks import BASE_SEPOLIA
from obol.x402.challenge import build_challenge
from obol.x402.models import ResourceInfo
from tests.x402.samples import OBOL, OBOL_REQUIREMENTS, PAY_TO, REQUIREMENTS, USDC

RESOURCE = ResourceInfo("https://seller.example/v1/chat/completions", "Chat", "application/json")
CHALLENGE = build_challenge(REQUIREMENTS, BASE_SEPOLIA, RESOURCE, error="payment required")


def test_the_header_is_a_v2_challenge_to_the_official_sdk() -> None:
    theirs = decode_payment_required_header(CHALLENGE.header)
    assert isinstance(theirs, PaymentRequired)
    assert {
        "x402Version": 2,
        "error": "payment required",
        "resource": {"url": RESOURCE.url, "description": "Chat", "mimeType": "application/json"},
        "accepts": [
            {
                "scheme": "exact",
                "network": "eip155:84532",
                "amount": "1000",
                "asset": USDC.address,
                "payTo": PAY_TO,
                "maxTimeoutSeconds": 300,
                "extra": {"name": "USDC", "version": "2", "assetTransferMethod": "eip3009"},
            }
        ],
    } == theirs.model_dump(by_alias=True, exclude_none=True)


def test_the_body_is_a_v1_challenge_with_every_field_that_the_v1_client_asks_for() -> None:
    assert {
        "x402Version": 1,
        "error": "payment required",
        "accepts": [
            {
                "scheme": "exact",
                "network": "base-sepolia",
                "maxAmountRequired": "1000",
                "resource": RESOURCE.url,
                "description": "Chat",
                "mimeType": "application/json",
                "payTo": PAY_TO,
                "maxTimeoutSeconds": 300,
                "asset": USDC.address,
                "extra": {"name": "USDC", "version": "2"},
            }
        ],
    } == json.loads(CHALLENGE.body)


def test_the_official_sdk_reads_the_body_as_v1() -> None:
    theirs = PaymentRequiredV1.model_validate_json(CHALLENGE.body)
    assert json.loads(CHALLENGE.body) == theirs.model_dump(by_alias=True, exclude_none=True)


def test_what_is_moved_by_permit2_is_offered_in_v2_alone() -> None:
    challenge = build_challenge(OBOL_REQUIREMENTS, BASE_SEPOLIA, RESOURCE, error="payment required")
    theirs = decode_payment_required_header(challenge.header)
    assert isinstance(theirs, PaymentRequired)
    assert [(offer.asset, offer.extra["assetTransferMethod"]) for offer in theirs.accepts] == [
        (OBOL.address, "permit2")
    ]
    assert PaymentRequiredV1.model_validate_json(challenge.body).accepts == []


@given(st.text(), st.text(), st.text())
def test_nothing_is_null_and_no_v1_field_is_missing_whatever_the_resource_says(
    description: str, mime_type: str, error: str
) -> None:
    resource = ResourceInfo("https://seller.example/", description, mime_type)
    challenge = build_challenge(REQUIREMENTS, BASE_SEPOLIA, resource, error=error)
    body = json.loads(challenge.body)
    assert not _has_null(body)
    (entry,) = body["accepts"]
    assert {"description", "mimeType", "resource", "extra"} <= entry.keys()
    assert "outputSchema" not in entry
    assert error == decode_payment_required_header(challenge.header).error


def _has_null(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_null(inner) for inner in value.values())
    if isinstance(value, list):
        return any(_has_null(inner) for inner in value)
    return value is None
