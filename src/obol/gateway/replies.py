"""The only place that turns a reason into an HTTP answer: status, OpenAI error type, and whether a retry may help.

402 means one thing: paying will help. Outages are 503, bad bytes 400, our bugs 500. A body holds the OpenAI error shape
plus `reason`, `retriable` and `request_id`; never a payload, a prompt or an internal host.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from obol import errors


class Reason(StrEnum):
    """Why a request was not served: stable codes that buyers may branch on."""

    NOT_FOUND = "not_found"
    MODEL_NOT_FOUND = "model_not_found"
    RECEIPT_NOT_FOUND = "receipt_not_found"
    DRAINING = "draining"
    UPSTREAM_DOWN = "upstream_down"
    SATURATED = "saturated"
    BUYER_SATURATED = "buyer_saturated"
    QUEUE_TIMEOUT = "queue_timeout"
    BODY_TOO_LARGE = "body_too_large"
    BODY_TIMEOUT = "body_timeout"
    MALFORMED_REQUEST = "malformed_request"
    OUTPUT_TOKENS_EXCEEDED = "output_tokens_exceeded"
    INPUT_TOKENS_EXCEEDED = "input_tokens_exceeded"
    MALFORMED_PAYMENT = "malformed_payment"
    NO_MATCHING_REQUIREMENT = "no_matching_requirement"
    PAYMENT_INVALID = "payment_invalid"
    SETTLEMENT_FAILED = "settlement_failed"
    SETTLEMENT_UNKNOWN = "settlement_unknown"
    PAYMENT_IN_USE = "payment_in_use"
    PAYMENT_USED = "payment_used"
    FACILITATOR_UNAVAILABLE = "facilitator_unavailable"
    FACILITATOR_BROKEN = "facilitator_broken"
    LEDGER_UNAVAILABLE = "ledger_unavailable"
    UPSTREAM_UNAVAILABLE = "upstream_unavailable"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    UPSTREAM_BROKEN = "upstream_broken"
    UPSTREAM_REFUSED = "upstream_refused"
    BUYER_GONE = "buyer_gone"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class Reply:
    """How a reason is answered. `type` is OpenAI's `error.type`."""

    status: int
    type: str
    retriable: bool


_REQUEST = "invalid_request_error"
_PAYMENT = "payment_error"
_LIMIT = "rate_limit_error"
_SERVER = "server_error"

REPLIES: dict[Reason, Reply] = {
    Reason.NOT_FOUND: Reply(404, _REQUEST, retriable=False),
    Reason.MODEL_NOT_FOUND: Reply(404, _REQUEST, retriable=False),
    Reason.RECEIPT_NOT_FOUND: Reply(404, _REQUEST, retriable=False),
    Reason.DRAINING: Reply(503, _SERVER, retriable=True),
    Reason.UPSTREAM_DOWN: Reply(503, _SERVER, retriable=True),
    Reason.SATURATED: Reply(429, _LIMIT, retriable=True),
    Reason.BUYER_SATURATED: Reply(429, _LIMIT, retriable=True),
    Reason.QUEUE_TIMEOUT: Reply(429, _LIMIT, retriable=True),
    Reason.BODY_TOO_LARGE: Reply(413, _REQUEST, retriable=False),
    Reason.BODY_TIMEOUT: Reply(408, _REQUEST, retriable=True),
    Reason.MALFORMED_REQUEST: Reply(400, _REQUEST, retriable=False),
    Reason.OUTPUT_TOKENS_EXCEEDED: Reply(400, _REQUEST, retriable=False),
    Reason.INPUT_TOKENS_EXCEEDED: Reply(400, _REQUEST, retriable=False),
    Reason.MALFORMED_PAYMENT: Reply(400, _PAYMENT, retriable=False),
    Reason.NO_MATCHING_REQUIREMENT: Reply(402, _PAYMENT, retriable=True),
    Reason.PAYMENT_INVALID: Reply(402, _PAYMENT, retriable=True),
    Reason.SETTLEMENT_FAILED: Reply(402, _PAYMENT, retriable=True),
    Reason.SETTLEMENT_UNKNOWN: Reply(503, _PAYMENT, retriable=True),
    Reason.PAYMENT_IN_USE: Reply(409, _PAYMENT, retriable=True),
    Reason.PAYMENT_USED: Reply(409, _PAYMENT, retriable=False),
    Reason.FACILITATOR_UNAVAILABLE: Reply(503, _SERVER, retriable=True),
    Reason.FACILITATOR_BROKEN: Reply(502, _SERVER, retriable=True),
    Reason.LEDGER_UNAVAILABLE: Reply(503, _SERVER, retriable=True),
    Reason.UPSTREAM_UNAVAILABLE: Reply(503, _SERVER, retriable=True),
    Reason.UPSTREAM_TIMEOUT: Reply(504, _SERVER, retriable=True),
    Reason.UPSTREAM_BROKEN: Reply(502, _SERVER, retriable=True),
    Reason.UPSTREAM_REFUSED: Reply(502, _SERVER, retriable=False),
    Reason.BUYER_GONE: Reply(499, _REQUEST, retriable=True),
    Reason.INTERNAL: Reply(500, _SERVER, retriable=False),
}

ERRORS: dict[type[errors.ObolError], Reason] = {
    errors.MalformedRequestError: Reason.MALFORMED_REQUEST,
    errors.MalformedPaymentError: Reason.MALFORMED_PAYMENT,
    errors.PeerProtocolError: Reason.FACILITATOR_BROKEN,
    errors.FacilitatorUnavailableError: Reason.FACILITATOR_UNAVAILABLE,
    errors.UpstreamUnavailableError: Reason.UPSTREAM_UNAVAILABLE,
    errors.UpstreamTimeoutError: Reason.UPSTREAM_TIMEOUT,
    errors.UpstreamBrokenError: Reason.UPSTREAM_BROKEN,
    errors.LedgerUnavailableError: Reason.LEDGER_UNAVAILABLE,
    errors.SaleTakenError: Reason.LEDGER_UNAVAILABLE,
}
"""Exceptions that a sale may meet. Whatever is not here is our bug: `Reason.INTERNAL`."""

MESSAGES: dict[Reason, str] = {
    Reason.NOT_FOUND: "nothing is sold at this path with this method",
    Reason.FACILITATOR_UNAVAILABLE: "the payment could not be checked right now; it was not used, present it again",
    Reason.FACILITATOR_BROKEN: "the payment could not be checked right now; it was not used, present it again",
    Reason.LEDGER_UNAVAILABLE: "the seller cannot record sales right now",
    Reason.UPSTREAM_UNAVAILABLE: "the model server cannot be reached",
    Reason.UPSTREAM_TIMEOUT: "the model server did not answer in time",
    Reason.UPSTREAM_BROKEN: "the model server's answer broke off",
    Reason.INTERNAL: "the gateway failed; the request id finds it in the seller's log",
}
"""Fixed texts, where an exception's own words might name an internal host."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that is not served, as a value."""

    reason: Reason
    message: str
    param: str | None = None
    retry_after_s: int | None = None
    code: str | None = None
    """`error.code` when it is finer than the reason."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Further headers of the answer: the receipt's, where the payment was claimed."""


def refusal_of(error: errors.ObolError) -> Refusal:
    """The refusal that answers an exception; texts of outages are fixed, those about bytes are its own."""
    reason = ERRORS.get(type(error), Reason.INTERNAL)
    message = MESSAGES.get(reason) or str(error)
    reply = REPLIES[reason]
    retry_after_s = 5 if reply.status >= 500 and reply.retriable else None
    param = error.param if isinstance(error, errors.MalformedRequestError) else None
    code = error.reason if reason is Reason.MALFORMED_REQUEST else None
    return Refusal(reason, message, param=param, retry_after_s=retry_after_s, code=code)


def error_body(refusal: Refusal, request_id: str) -> bytes:
    """The JSON body of a refusal: OpenAI's error shape, and ours beside it."""
    reply = REPLIES[refusal.reason]
    return msgspec.json.encode(
        {
            "error": {
                "message": refusal.message,
                "type": reply.type,
                "code": refusal.code or refusal.reason,
                "param": refusal.param,
            },
            "reason": refusal.reason,
            "retriable": reply.retriable,
            "request_id": request_id,
        }
    )
