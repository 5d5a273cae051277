import json

import msgspec
from x402.schemas.v1 import PaymentPayloadV1, PaymentRequirementsV1

from obol.core.networks import BASE_SEPOLIA, DEFAULT_CATALOGUE
from obol.x402.models import ResourceInfo, SettleResponse
from obol.x402.v1 import (
    V1FacilitatorRequest,
    V1PaymentPayload,
    V1Requirements,
    caip2_of,
    request_from_v1,
    requirements_from_v1,
    v1_payload,
    v1_requirements,
    v1_settle_response,
)
from tests.x402.samples import REQUIREMENTS, as_v1, pay

V1 = v1_requirements(REQUIREMENTS, BASE_SEPOLIA, ResourceInfo("https://seller.example/"))


def test_requirements_survive_the_way_to_v1_and_back_but_for_the_transfer_method() -> None:
    back = requirements_from_v1(V1, "eip155:84532")
    assert msgspec.structs.replace(REQUIREMENTS, extra={"name": "USDC", "version": "2"}) == back


def test_the_official_sdk_reads_and_writes_our_v1_messages() -> None:
    requirements = PaymentRequirementsV1.model_validate_json(msgspec.json.encode(V1))
    assert msgspec.json.decode(requirements.model_dump_json(by_alias=True), type=V1Requirements) == V1
    payload = PaymentPayloadV1.model_validate_json(msgspec.json.encode(v1_payload(pay(), "base-sepolia")))
    theirs = msgspec.json.decode(payload.model_dump_json(by_alias=True), type=V1PaymentPayload)
    assert v1_payload(pay(), "base-sepolia") == theirs


def test_requirements_without_extra_or_with_nulls_are_read() -> None:
    fields = {**msgspec.to_builtins(V1), "outputSchema": None, "description": None, "mimeType": None, "extra": None}
    assert requirements_from_v1(msgspec.convert(fields, V1Requirements), "x").extra is None
    del fields["extra"]
    read = msgspec.convert(fields, V1Requirements)
    assert requirements_from_v1(read, "x").extra is None
    assert "extra" not in json.loads(msgspec.json.encode(read))


def test_a_facilitators_v1_request_is_read_into_v2() -> None:
    body = {"x402Version": 1, "paymentPayload": as_v1(pay()), "paymentRequirements": msgspec.to_builtins(V1)}
    request = request_from_v1(msgspec.convert(body, V1FacilitatorRequest), DEFAULT_CATALOGUE)
    assert pay().payload == request.payment_payload.payload
    assert requirements_from_v1(V1, "eip155:84532") == request.payment_requirements
    assert request.payment_requirements == request.payment_payload.accepted
    assert (request.x402_version, request.payment_payload.x402_version) == (2, 2)


def test_a_v1_payload_for_another_network_stays_visible_as_such() -> None:
    body = {
        "x402Version": 1,
        "paymentPayload": as_v1(pay(), network="base"),
        "paymentRequirements": msgspec.to_builtins(V1),
    }
    request = request_from_v1(msgspec.convert(body, V1FacilitatorRequest), DEFAULT_CATALOGUE)
    assert (
        request.payment_payload.accepted.network,
        request.payment_requirements.network,
    ) == ("eip155:8453", "eip155:84532")


def test_a_settle_answer_for_a_v1_caller_names_the_network_as_v1_does() -> None:
    assert SettleResponse(True, "0x1", "base-sepolia") == v1_settle_response(
        SettleResponse(True, "0x1", "eip155:84532"), BASE_SEPOLIA
    )


def test_networks_are_found_by_any_name_and_kept_when_unknown() -> None:
    assert [
        caip2_of(name, DEFAULT_CATALOGUE)
        for name in ("base-sepolia", "eip155:84532", "base-mainnet", "solana", "eip155:1337")
    ] == ["eip155:84532", "eip155:84532", "eip155:8453", "solana", "eip155:1337"]
