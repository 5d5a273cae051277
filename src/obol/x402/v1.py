"""The x402 v1 wire types, and their conversion from and to the v2 types that everything else uses.

v1 names networks (`base-sepolia`), says `maxAmountRequired`, and repeats the resource in each entry of `accepts`. It
knows EIP-3009 only.
Source: x402 specification v1. `outputSchema` is never written: the official v1 client rejects null there.
"""

from typing import Any

import msgspec

from obol.core.networks import Catalogue, Network, TransferMethod
from obol.x402.models import (
    ExactPayload,
    FacilitatorRequest,
    PaymentPayload,
    PaymentRequirements,
    ResourceInfo,
    SettleResponse,
)


class V1Requirements(msgspec.Struct, frozen=True, rename="camel"):
    """One v1 entry of `accepts`. `extra` holds `name` and `version` of the token's EIP-712 domain."""

    scheme: str
    network: str
    max_amount_required: str
    resource: str
    pay_to: str
    max_timeout_seconds: int
    asset: str
    description: str | None = ""
    mime_type: str | None = ""
    extra: dict[str, Any] | msgspec.UnsetType | None = msgspec.UNSET


class V1PaymentRequired(msgspec.Struct, frozen=True, rename="camel"):
    """The v1 challenge: the JSON body of a 402."""

    accepts: list[V1Requirements]
    x402_version: int = msgspec.field(default=1, name="x402Version")
    error: str = ""


class V1PaymentPayload(msgspec.Struct, frozen=True, rename="camel"):
    """A buyer's signed answer in v1."""

    scheme: str
    network: str
    payload: ExactPayload
    x402_version: int = msgspec.field(default=1, name="x402Version")


class V1FacilitatorRequest(msgspec.Struct, frozen=True, rename="camel"):
    """The v1 body of `POST /verify` and `POST /settle`."""

    payment_payload: V1PaymentPayload
    payment_requirements: V1Requirements
    x402_version: int = msgspec.field(default=1, name="x402Version")


def is_sold_in_v1(requirements: PaymentRequirements) -> bool:
    """Whether a v1 buyer can pay these: it would take any asset to be moved by EIP-3009."""
    method = (requirements.extra or {}).get("assetTransferMethod") or TransferMethod.EIP3009
    return bool(method == TransferMethod.EIP3009)


def v1_requirements(requirements: PaymentRequirements, network: Network, resource: ResourceInfo) -> V1Requirements:
    """Requirements in v1 form; every field that the v1 client asks for is there."""
    extra = requirements.extra or {}
    return V1Requirements(
        scheme=requirements.scheme,
        network=network.name,
        max_amount_required=requirements.amount,
        resource=resource.url,
        description=resource.description,
        mime_type=resource.mime_type,
        pay_to=requirements.pay_to,
        max_timeout_seconds=requirements.max_timeout_seconds,
        asset=requirements.asset,
        extra={name: extra[name] for name in ("name", "version") if name in extra},
    )


def requirements_from_v1(requirements: V1Requirements, network: str) -> PaymentRequirements:
    """Requirements in v2 form; `network` is their network as it shall be called there (CAIP-2 where it is known)."""
    return PaymentRequirements(
        scheme=requirements.scheme,
        network=network,
        amount=requirements.max_amount_required,
        asset=requirements.asset,
        pay_to=requirements.pay_to,
        max_timeout_seconds=requirements.max_timeout_seconds,
        extra=requirements.extra or None,
    )


def v1_payload(payload: PaymentPayload, network: str) -> V1PaymentPayload:
    """A payload in v1 form; `network` is its v1 name."""
    return V1PaymentPayload(scheme=payload.accepted.scheme, network=network, payload=payload.payload)


def request_from_v1(request: V1FacilitatorRequest, catalogue: Catalogue) -> FacilitatorRequest:
    """A facilitator's v1 request in v2 form. A v1 payload does not say what it accepted: the requirements it came with,
    except scheme and network, which it does say."""
    sent = request.payment_payload
    requirements = requirements_from_v1(
        request.payment_requirements, caip2_of(request.payment_requirements.network, catalogue)
    )
    accepted = msgspec.structs.replace(requirements, scheme=sent.scheme, network=caip2_of(sent.network, catalogue))
    return FacilitatorRequest(
        payment_payload=PaymentPayload(accepted=accepted, payload=sent.payload), payment_requirements=requirements
    )


def caip2_of(network: str, catalogue: Catalogue) -> str:
    """The CAIP-2 id of a network under any name; the text itself where the network is not known."""
    if network.startswith("eip155:"):
        return network
    known = catalogue.find_network(network)
    return known.caip2 if known else network


def v1_settle_response(response: SettleResponse, network: Network) -> SettleResponse:
    """A settle answer for a v1 caller: the same fields, the network by its v1 name."""
    return msgspec.structs.replace(response, network=network.name)
