"""Serving one order: contact the upstream and pass its answer on, with the terms called at the right moments.

Knows nothing of money. A plain answer is released whole or not at all; `stream.py` passes streams on.
"""

from aiohttp import web

from obol.core.sale import Delivery
from obol.errors import LedgerUnavailableError, UpstreamBrokenError, UpstreamError, UpstreamUnavailableError
from obol.gateway.answers import REQUEST_ID, headers_to_buyer, headers_to_upstream
from obol.gateway.call import Call
from obol.gateway.order import Order
from obol.gateway.patience import GONE, BuyerGone, buyer_patience
from obol.gateway.replies import Reason, Refusal, refusal_of
from obol.gateway.slots import HeldSlot
from obol.gateway.stream import relay
from obol.gateway.terms import Terms
from obol.gateway.till import Till
from obol.inference.sse import is_stream
from obol.inference.upstream import UpstreamRequest, UpstreamResponse
from obol.inference.usage import plain_has_output, usage_of_plain

MAX_PLAIN_ANSWER_BYTES = 64 * 1024 * 1024
"""A plain answer is held until it is paid, so it must fit in memory."""
_SELLERS_FAULT = frozenset({401, 402, 403, 407})
"""Upstream statuses about the seller's own credential: the buyer cannot mend them, and a 402 would ask for money."""


async def serve(till: Till, call: Call, order: Order, terms: Terms, slot: HeldSlot) -> web.StreamResponse | Refusal:
    """Contact the upstream and hand its answer over. Raises `LedgerUnavailableError`; then nothing was handed over."""
    till.ports.metrics.overhead_s.observe(till.ports.clock.monotonic_s() - call.received_s)
    try:
        answer = await _open(till, call, order)
    except UpstreamError as error:
        await terms.nothing_served(error.reason)
        return refusal_of(error)
    except BuyerGone:
        await terms.nothing_served(GONE.reason)
        return GONE
    try:
        return await _pass_on(till, call, order, terms, slot, answer)
    except UpstreamError as error:
        await terms.nothing_served(error.reason)
        return refusal_of(error)
    except BuyerGone:
        await terms.nothing_served(GONE.reason)
        return GONE
    except LedgerUnavailableError:
        await terms.nothing_served(Reason.LEDGER_UNAVAILABLE)
        raise
    finally:
        answer.close()


async def _open(till: Till, call: Call, order: Order) -> UpstreamResponse:
    live = till.live
    request = UpstreamRequest("POST", order.target, headers_to_upstream(call), order.body)
    try:
        async with buyer_patience(call, goes_on=not live.is_warm):
            answer = await live.upstream.open(request)
    except UpstreamUnavailableError:
        live.is_upstream_up = False
        raise
    if call.is_gone:
        answer.close()
        raise BuyerGone
    return answer


async def _pass_on(
    till: Till, call: Call, order: Order, terms: Terms, slot: HeldSlot, answer: UpstreamResponse
) -> web.StreamResponse | Refusal:
    if answer.status in _SELLERS_FAULT or not 200 <= answer.status < 600 or 300 <= answer.status < 400:
        await terms.nothing_served(f"upstream_status_{answer.status}")
        return Refusal(Reason.UPSTREAM_REFUSED, f"the model server refused the seller's request ({answer.status})")
    content_type = next((value for name, value in answer.headers if name.lower() == "content-type"), "")
    if answer.status < 300 and is_stream(content_type):
        return await relay(till, call, order, terms, slot, answer)
    async with buyer_patience(call):
        body = await _read_whole(answer)
    slot.free(served=answer.status < 300)
    if answer.status >= 300 or not plain_has_output(order.api, body):
        await terms.nothing_served(f"upstream_status_{answer.status}" if answer.status >= 300 else "no_output")
        return _response(call, terms, answer, body)
    return await _hand_over(till, call, order, terms, answer, body)


async def _read_whole(answer: UpstreamResponse) -> bytes:
    parts: list[bytes] = []
    size = 0
    while chunk := await answer.read_chunk():
        size += len(chunk)
        if size > MAX_PLAIN_ANSWER_BYTES:
            raise UpstreamBrokenError("the answer is larger than a plain answer may be")
        parts.append(chunk)
    return b"".join(parts)


async def _hand_over(
    till: Till, call: Call, order: Order, terms: Terms, answer: UpstreamResponse, body: bytes
) -> web.StreamResponse | Refusal:
    till.live.saw_output()
    if call.is_gone:
        raise BuyerGone
    usage = usage_of_plain(order.api, body)
    refusal = await terms.answer_is_ready()
    if refusal is not None:
        return refusal
    response = _response(call, terms, answer, body)
    await terms.ended(await _send(call, response), usage)
    total_s = till.ports.clock.monotonic_s() - call.received_s
    till.ports.metrics.answer(order.api, order.model.public, first_s=None, total_s=total_s, usage=usage)
    return response


async def _send(call: Call, response: web.Response) -> Delivery:
    """Write a whole answer. NONE only when the buyer was gone before a byte of it was written: one who reads all but
    the end and hangs up has had an answer."""
    if _has_left(call):
        return Delivery.NONE
    try:
        await response.prepare(call.request)
        await response.write_eof()
    except ConnectionError:
        return Delivery.ABANDONED_BY_BUYER
    return Delivery.ABANDONED_BY_BUYER if _has_left(call) else Delivery.COMPLETE


def _has_left(call: Call) -> bool:
    transport = call.request.transport
    return call.is_gone or transport is None or transport.is_closing()


def _response(call: Call, terms: Terms, answer: UpstreamResponse, body: bytes) -> web.Response:
    headers = headers_to_buyer(answer.headers)
    headers.update(terms.headers())
    headers[REQUEST_ID] = call.id
    return web.Response(body=body, status=answer.status, headers=headers)
