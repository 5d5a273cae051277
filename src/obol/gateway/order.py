"""Reading an order: everything that can be known before payment, cheapest first, and the quote."""

import asyncio
from dataclasses import dataclass, field

from aiohttp import web

from obol.core.offer import Api, Model
from obol.errors import UpstreamError
from obol.gateway.call import Call
from obol.gateway.live_offer import LiveOffer
from obol.gateway.offload import off_the_loop
from obol.gateway.replies import Reason, Refusal
from obol.inference.input_size import check_input
from obol.inference.request import InferenceRequest, check_limits, prepare_body, read_request

NOT_COUNTABLE = "not_countable"
"""Reason of the error that says: this server or request has no exact count, so the bound decides."""


@dataclass(frozen=True, slots=True)
class Order:
    """A request of a sold shape. `target` and `body` are what the upstream gets; `choices` how many completions."""

    api: Api
    model: Model
    target: str
    choices: int
    body: bytes = field(repr=False)


async def read_order(call: Call, live: LiveOffer, api: Api, target: str, *, body_timeout_s: float) -> Order | Refusal:
    """Steps 2 and 3 of a sale: the offer's state, then the request's shape. Raises `MalformedRequestError`."""
    closed = live.closed()
    if closed is not None:
        return closed
    body = await read_body(call.request, live.offer.limits.max_body_bytes, body_timeout_s)
    if isinstance(body, Refusal):
        return body
    request = await off_the_loop(len(body), read_request, api, body)
    model = live.offer.model(request.model)
    if model is None:
        return Refusal(
            Reason.MODEL_NOT_FOUND,
            f"the model {request.model!r} is not sold here: GET /v1/models lists what is",
            param="model",
        )
    limits = live.offer.limits
    exceeded = check_limits(request, limits)
    if exceeded is not None:
        return Refusal(Reason.OUTPUT_TOKENS_EXCEEDED, exceeded.message, param=exceeded.param)
    too_long = await _check_input(request, model, live)
    if too_long is not None:
        return too_long
    prepared = await off_the_loop(len(body), prepare_body, request, model, limits)
    return Order(api, model, target, request.choices, prepared)


async def read_body(request: web.BaseRequest, limit_bytes: int, timeout_s: float) -> bytes | Refusal:
    """The whole body, or a refusal as soon as it is known to be too large or too slow: a slow one holds no slot."""
    declared = request.content_length
    if declared is not None and declared > limit_bytes:
        return _too_large(limit_bytes)
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        return Refusal(Reason.MALFORMED_REQUEST, "compressed bodies are not read: send it without Content-Encoding")
    if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    try:
        body = await _read(request, limit_bytes, timeout_s)
    except TimeoutError:
        return Refusal(Reason.BODY_TIMEOUT, f"the body did not arrive within {timeout_s:.0f} s")
    except web.RequestPayloadError:
        return Refusal(Reason.MALFORMED_REQUEST, "the body is not framed as HTTP says")
    return _too_large(limit_bytes) if body is None else body


def _too_large(limit_bytes: int) -> Refusal:
    return Refusal(Reason.BODY_TOO_LARGE, f"the body is larger than {limit_bytes} bytes")


async def _read(request: web.BaseRequest, limit_bytes: int, timeout_s: float) -> bytes | None:
    """The whole body; None as soon as it is larger than the limit. Raises `TimeoutError`."""
    content = request.content
    if content.is_eof():  # it came whole with the head, as most do: nothing to wait for
        body = content.read_nowait()
        return body if len(body) <= limit_bytes else None
    parts: list[bytes] = []
    size = 0
    async with asyncio.timeout(timeout_s):
        while chunk := await content.readany():
            size += len(chunk)
            if size > limit_bytes:
                return None
            parts.append(chunk)
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def _check_input(request: InferenceRequest, model: Model, live: LiveOffer) -> Refusal | None:
    """The upper bound first, because it costs nothing; the upstream's tokenizer only where the bound says no."""
    limits = live.offer.limits
    if limits.max_input_tokens is None:
        return None
    exceeded = await off_the_loop(len(request.body), check_input, request, limits)
    if exceeded is None:
        return None
    if live.count_input_tokens is not None:
        try:
            counted = await live.count_input_tokens(request, model.served)
        except UpstreamError as error:
            if error.reason != NOT_COUNTABLE:
                return Refusal(Reason.UPSTREAM_DOWN, "the input's tokens cannot be counted now", retry_after_s=5)
        else:
            exceeded = check_input(request, limits, counted=counted)
    return None if exceeded is None else Refusal(Reason.INPUT_TOKENS_EXCEEDED, exceeded.message, param=exceeded.param)
