"""Passing a stream on: every chunk leaves as it came, and the terms are called when the first output exists.

The head and what comes before output (role deltas, pings) are held until there is output, so that an upstream that
fails first costs nothing and gets a proper status. Settlement goes on beside the stream; a definite refusal cuts it.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web

from obol.core.sale import Delivery
from obol.errors import UpstreamError
from obol.gateway.answers import REQUEST_ID, headers_to_buyer
from obol.gateway.call import Call
from obol.gateway.order import Order
from obol.gateway.patience import BuyerGone, buyer_patience
from obol.gateway.reader import watching_reader
from obol.gateway.replies import Reason, Refusal, error_body
from obol.gateway.slots import HeldSlot
from obol.gateway.terms import Terms
from obol.gateway.till import Till
from obol.inference.upstream import UpstreamResponse
from obol.inference.usage import AnswerMeter
from obol.x402.facilitator import Settlement, SettleOutcome

MAX_HELD_BYTES = 64 * 1024
"""More than this before any recognisable output is taken to be output in a form that is not known here."""
GOODBYE_S = 5.0
"""How long a cut stream's last event may take to leave."""


async def relay(
    till: Till, call: Call, order: Order, terms: Terms, slot: HeldSlot, answer: UpstreamResponse
) -> web.StreamResponse | Refusal:
    """Pass a stream on. Raises `UpstreamError` and `BuyerGone` only while nothing was handed over."""
    meter = AnswerMeter(order.api, True, choices=order.choices)
    held, has_ended = await _hold_until_output(call, meter, answer)
    if not meter.has_output and has_ended and not (meter.finished and not meter.failed):
        await terms.nothing_served("no_output")
        return web.Response(body=held, status=answer.status, headers=_head(call, terms, answer))
    till.live.saw_output()
    first_s = till.ports.clock.monotonic_s() - call.received_s
    settling = await terms.stream_begins()
    if isinstance(settling, Refusal):
        return settling
    response = web.StreamResponse(status=answer.status, headers=_head(call, terms, answer))
    passing = _Passing(call, response, settling, terms, patience_s=till.patience.reader_s)
    delivery = await passing.run(held, meter, None if has_ended else answer)
    slot.free(served=delivery is Delivery.COMPLETE)
    answer.close()
    usage = meter.usage()
    await terms.ended(delivery, usage)
    total_s = till.ports.clock.monotonic_s() - call.received_s
    till.ports.metrics.answer(order.api, order.model.public, first_s=first_s, total_s=total_s, usage=usage)
    return response


async def _hold_until_output(call: Call, meter: AnswerMeter, answer: UpstreamResponse) -> tuple[bytes, bool]:
    """What came up to the first output, and whether the stream ended there."""
    held: list[bytes] = []
    size = 0
    while not (meter.has_output or meter.gave_up) and size <= MAX_HELD_BYTES:
        async with buyer_patience(call):
            chunk = await answer.read_chunk()
        if not chunk:
            meter.end()
            return b"".join(held), True
        meter.feed(chunk)
        held.append(chunk)
        size += len(chunk)
    if call.is_gone:
        raise BuyerGone
    return b"".join(held), False


def _head(call: Call, terms: Terms, answer: UpstreamResponse) -> dict[str, str]:
    return {**headers_to_buyer(answer.headers), **terms.headers(), REQUEST_ID: call.id, "X-Accel-Buffering": "no"}


class _Passing:
    """One stream under way, and what can stop it: its end, its buyer, its settlement, a reader that reads nothing."""

    def __init__(
        self,
        call: Call,
        response: web.StreamResponse,
        settling: asyncio.Task[Settlement] | None,
        terms: Terms,
        *,
        patience_s: float,
    ) -> None:
        self._call = call
        self._terms = terms
        self._patience_s = patience_s
        self._response = response
        self._settling = settling
        self._has_begun = False
        self._is_cut = False
        self._scope: asyncio.Timeout | None = None

    async def run(self, held: bytes, meter: AnswerMeter, answer: UpstreamResponse | None) -> Delivery:
        """Write `held`, then the rest of `answer` as it comes (None: there is no rest)."""
        try:
            async with asyncio.timeout(None) as scope:
                with self._watching(scope):
                    await self._pass_on(held, meter, answer)
            return Delivery.COMPLETE
        except (TimeoutError, ConnectionError):
            return await self._stopped()
        except UpstreamError:
            self._call.cut()
            return Delivery.BROKEN_BY_UPSTREAM

    async def _pass_on(self, held: bytes, meter: AnswerMeter, answer: UpstreamResponse | None) -> None:
        await self._response.prepare(self._call.request)
        if self._call.has_left():
            raise ConnectionResetError
        self._has_begun = True  # even if the buyer leaves before all of this has left: it may be nearly all there is
        self._terms.stream_has_begun()
        await self._response.write(held)
        while answer is not None and (chunk := await answer.read_chunk()):
            meter.feed(chunk)
            await self._response.write(chunk)
        meter.end()
        await self._terms.stream_ends()
        await self._response.write_eof()

    @contextmanager
    def _watching(self, scope: asyncio.Timeout) -> Iterator[None]:
        """Have the block interrupted when there is a reason to; each reason is looked up in `_stopped`.

        What happens after the block (a settlement refused late, a buyer who hangs up then) interrupts nothing.
        """
        self._scope = scope
        self._call.when_gone(self._interrupt)
        if self._settling is not None:
            self._settling.add_done_callback(self._cut_if_refused)
        try:
            with watching_reader(self._call, self._patience_s, self._interrupt):
                yield
        finally:
            self._scope = None
            self._call.when_gone(None)

    def _interrupt(self) -> None:
        if self._scope is not None and self._scope.when() is None:
            self._scope.reschedule(0.0)

    def _cut_if_refused(self, settling: asyncio.Task[Settlement]) -> None:
        if settling.cancelled() or settling.exception() is not None:
            return  # not known: the settler goes on asking
        if settling.result().outcome is SettleOutcome.FAILED and self._scope is not None:
            self._is_cut = True
            self._interrupt()

    async def _stopped(self) -> Delivery:
        if self._is_cut and not self._call.is_gone:
            await self._say_refused()
            return Delivery.STARTED
        self._call.cut()
        return Delivery.ABANDONED_BY_BUYER if self._has_begun else Delivery.NONE

    async def _say_refused(self) -> None:
        refusal = Refusal(Reason.SETTLEMENT_FAILED, "the payment was refused when it was settled; the stream is cut")
        body = error_body(refusal, self._call.id)
        is_sse = self._response.headers.get("Content-Type", "").startswith("text/event-stream")
        try:
            async with asyncio.timeout(GOODBYE_S):
                await self._response.write(
                    b"\n\nevent: error\ndata: " + body + b"\n\n" if is_sse else b"\n" + body + b"\n"
                )
                await self._response.write_eof()
        except (TimeoutError, ConnectionError):
            self._call.cut()
