"""The bodies of `/verify` and `/settle`: bytes of either protocol version in, the matching generation's JSON out.

Inside there is only v2: a v1 body becomes the v2 request that means the same, and the answer calls the network by the
name that the caller used.
"""

import re
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from obol.core.networks import Catalogue, canonical_address
from obol.errors import MalformedRequestError
from obol.x402.eip712 import checksum_address
from obol.x402.exact import SCHEME
from obol.x402.facilitator import Accepted, Refused, Settlement, SettleOutcome, VerifyOutcome
from obol.x402.models import FacilitatorRequest, SettleResponse, VerifyResponse
from obol.x402.reasons import Reason
from obol.x402.v1 import V1FacilitatorRequest, request_from_v1

T = TypeVar("T")

_MISSING_FIELD = re.compile(r"missing required field `([^`]+)`")
_PLACE = re.compile(r" - at `\$\.?([^`]*)`")


@dataclass(frozen=True, slots=True)
class Asked:
    """What somebody wants verified or settled; `network` as the caller names it."""

    request: FacilitatorRequest
    network: str


@dataclass(frozen=True, slots=True)
class NotAsked:
    """A well-formed question about something that we do not do."""

    refused: Refused
    network: str


class _Accepted(msgspec.Struct, frozen=True):
    scheme: str = SCHEME


class _PaymentPayload(msgspec.Struct, frozen=True):
    accepted: _Accepted = _Accepted()
    scheme: str = SCHEME


class _Requirements(msgspec.Struct, frozen=True):
    network: str


class _Outline(msgspec.Struct, frozen=True, rename="camel"):
    """As much of a body as decides how the rest is read."""

    payment_payload: _PaymentPayload
    payment_requirements: _Requirements
    x402_version: int = msgspec.field(name="x402Version")


def read_body(body: bytes, catalogue: Catalogue) -> Asked | NotAsked:
    """Raises `MalformedRequestError`, with the field as `param`, for what is not a body of x402 v1 or v2."""
    outline = _decode(body, _Outline)
    network = outline.payment_requirements.network
    sent = outline.payment_payload
    if sent.accepted.scheme != SCHEME or sent.scheme != SCHEME:
        return NotAsked(Refused(Reason.UNSUPPORTED_SCHEME, f"only {SCHEME} is supported"), network)
    if outline.x402_version == 2:
        request = _decode(body, FacilitatorRequest)
    elif outline.x402_version == 1:
        request = request_from_v1(_decode_v1(body), catalogue)
        if request.payment_payload.payload.is_permit2:
            return NotAsked(Refused(Reason.INVALID_PAYLOAD, "x402 v1 has no Permit2: only v2 does"), network)
    else:
        raise _unknown_version("x402Version")
    if request.payment_payload.x402_version != 2:
        raise _unknown_version("paymentPayload.x402Version")
    return Asked(request, network)


def verify_answer(asked: Asked | NotAsked, outcome: VerifyOutcome) -> bytes:
    """The body of a 200 from `/verify`."""
    if isinstance(outcome, Accepted):
        return msgspec.json.encode(VerifyResponse(True, payer=checksum_address(outcome.payer)))
    return msgspec.json.encode(VerifyResponse(False, str(outcome.reason), outcome.message or None, payer=_payer(asked)))


def settle_answer(asked: Asked | NotAsked, settlement: Settlement) -> bytes:
    """The body of a 200 from `/settle`. What is not known is left out: older clients reject null."""
    is_settled = settlement.outcome is SettleOutcome.SETTLED
    pending = Reason.SETTLEMENT_PENDING if settlement.outcome is SettleOutcome.PENDING else None
    response = SettleResponse(
        success=is_settled,
        transaction=settlement.transaction,
        network=asked.network,
        payer=_payer(asked),
        error_reason=None if is_settled else str(pending or settlement.reason),
        error_message=None if is_settled else settlement.message or None,
        extra=None if settlement.log_index is None else {"logIndex": settlement.log_index},
    )
    fields: dict[str, object] = msgspec.to_builtins(response)
    return msgspec.json.encode({name: value for name, value in fields.items() if value is not None})


def _payer(asked: Asked | NotAsked) -> str | None:
    """Who would pay, where the body says so in an understandable way."""
    if isinstance(asked, NotAsked):
        return None
    payer = canonical_address(asked.request.payment_payload.payer)
    return None if payer is None else checksum_address(payer)


def _decode_v1(body: bytes) -> V1FacilitatorRequest:
    request = _decode(body, V1FacilitatorRequest)
    if request.payment_payload.x402_version != 1:
        raise _unknown_version("paymentPayload.x402Version")
    return request


def _decode(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:  # its text names types and places, never values
        raise MalformedRequestError(str(error), param=_field_of(str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise MalformedRequestError("the body is not JSON") from None


def _field_of(message: str) -> str:
    """The field that a validation message is about: `paymentPayload.payload.signature`."""
    place, missing = _PLACE.search(message), _MISSING_FIELD.search(message)
    return ".".join(part for part in (place and place[1], missing and missing[1]) if part)


def _unknown_version(field: str) -> MalformedRequestError:
    return MalformedRequestError(f"{field}: 1 and 2 are understood, the same in both places", param=field)
