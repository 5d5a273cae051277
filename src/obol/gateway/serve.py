"""Serving one order: contact the upstream and pass its answer on, with the terms called at the right moments.

Knows nothing of money. A plain answer is released whole or not at all; `stream.py` passes streams on.
"""

import asyncio
from dataclasses import replace

from aiohttp import web

from obol.core.sale import Delivery
from obol.errors import (
    LedgerUnavailableError,
    SaleTakenError,
    UpstreamBrokenError,
    UpstreamError,
    UpstreamUnavailableError,
)
from obol.gateway.answers import REQUEST_ID, headers_to_buyer, headers_to_upstream
from obol.gateway.call import Call
from obol.gateway.offload import off_the_loop
from obol.gateway.order import Order
from obol.gateway.patience import GONE, BuyerGone, buyer_patience
from obol.gateway.reader import watching_reader
from obol.gateway.replies import Reason, Refusal, refusal_of
from obol.gateway.slots import HeldSlot
from obol.gateway.stream import relay
from obol.gateway.terms import Terms
from obol.gateway.till import Till
from obol.inference.sse import is_stream
from obol.inference.upstream import UpstreamRequest, UpstreamResponse
from obol.inference.usage import read_plain_answer

MAX_PLAIN_ANSWER_BYTES = 64 * 1024 * 1024
"""A plain answer is held until it is paid, so it must fit in memory."""
_SELLERS_FAULT = frozenset({401, 402, 403, 407})
"""Upstream statuses about the seller's own credential: the buyer cannot mend them, and a 402 would ask for money."""


async def serve(till: Till, call: Call, order: Order, terms: Terms, slot: HeldSlot) -> web.StreamResponse | Refusal:
    """Contact the upstream and hand its answer over. Raises `LedgerUnavailableError` and
    `SaleTakenError`; then nothing was handed over."""
    till.ports.metrics.overhead_s.observe(till.ports.clock.monotonic_s() - call.received_s)
    answer: UpstreamResponse | None = None
    try:
        answer = await _open(till, call, order)
        return await _pass_on(till, call, order, terms, slot, answer)
    except UpstreamError as error:
        return await _unserved(terms, refusal_of(error))
    except BuyerGone:
        return await _unserved(terms, GONE)
    except (LedgerUnavailableError, SaleTakenError):
        await terms.nothing_served(Reason.LEDGER_UNAVAILABLE)
        raise
    finally:
        if answer is not None:
            answer.close()


async def _unserved(terms: Terms, refusal: Refusal, *, reason: str = "") -> Refusal:
    """A refusal that leaves the payment as it was, and says so."""
    await terms.nothing_served(reason or refusal.reason)
    return replace(refusal, headers=terms.headers())


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
        refusal = Refusal(Reason.UPSTREAM_REFUSED, f"the model server refused the seller's request ({answer.status})")
        return await _unserved(terms, refusal, reason=f"upstream_status_{answer.status}")
    content_type = next((value for name, value in answer.headers if name.lower() == "content-type"), "")
    if answer.status < 300 and is_stream(content_type):
        return await relay(till, call, order, terms, slot, answer)
    return await _hand_over(till, call, order, terms, slot, answer)


async def _hand_over(
    till: Till, call: Call, order: Order, terms: Terms, slot: HeldSlot, answer: UpstreamResponse
) -> web.StreamResponse | Refusal:
    """A plain answer: whole, and only when it may be released."""
    async with buyer_patience(call):
        body = await _read_whole(answer)
    slot.free(served=answer.status < 300)
    if answer.status >= 300:
        await terms.nothing_served(f"upstream_status_{answer.status}")
        return _response(call, terms, answer, body)
    plain = await off_the_loop(len(body), read_plain_answer, order.api, body)
    if not plain.has_output:
        await terms.nothing_served("no_output")
        return _response(call, terms, answer, body)
    till.live.saw_output()
    if call.is_gone:
        raise BuyerGone
    refusal = await terms.answer_is_ready()
    if refusal is not None:
        return refusal
    response = _response(call, terms, answer, body)
    await terms.ended(await _send(call, response, till.patience.reader_s), plain.usage)
    total_s = till.ports.clock.monotonic_s() - call.received_s
    till.ports.metrics.answer(order.api, order.model.public, first_s=None, total_s=total_s, usage=plain.usage)
    return response


async def _read_whole(answer: UpstreamResponse) -> bytes:
    parts: list[bytes] = []
    size = 0
    while chunk := await answer.read_chunk():
        size += len(chunk)
        if size > MAX_PLAIN_ANSWER_BYTES:
            raise UpstreamBrokenError("the answer is larger than a plain answer may be")
        parts.append(chunk)
    return b"".join(parts)


async def _send(call: Call, response: web.Response, patience_s: float) -> Delivery:
    """Write a whole answer. NONE only when the buyer was gone before a byte of it was written: one who reads all but
    the end and hangs up has had an answer."""
    if call.has_left():
        return Delivery.NONE
    try:
        async with asyncio.timeout(None) as scope:
            with watching_reader(call, patience_s, lambda: scope.reschedule(0.0)):
                await response.prepare(call.request)
                await response.write_eof()
    except ConnectionError:
        return Delivery.ABANDONED_BY_BUYER
    except TimeoutError:
        call.cut()
        return Delivery.ABANDONED_BY_BUYER
    return Delivery.ABANDONED_BY_BUYER if call.has_left() else Delivery.COMPLETE


def _response(call: Call, terms: Terms, answer: UpstreamResponse, body: bytes) -> web.Response:
    headers = headers_to_buyer(answer.headers)
    headers.update(terms.headers())
    headers[REQUEST_ID] = call.id
    return web.Response(body=body, status=answer.status, headers=headers)
