"""The official OpenAI SDK, sync and async, paying through our PaymentAuth."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import openai

from obol import LocalSigner, PaymentAuth
from obol.errors import ObolError
from tests.conformance.purchase import Order, Outcome, Stopwatch, read_receipt


async def buy_with_openai(order: Order, _: Path) -> Outcome:
    loop = asyncio.get_running_loop()
    return await asyncio.to_thread(_buy, order, lambda: loop.call_soon_threadsafe(order.notify))


def _buy(order: Order, notify: Callable[[], object]) -> Outcome:
    watch = _Watch(order, notify)
    http = openai.DefaultHttpxClient(auth=watch.auth, event_hooks={"response": [watch.saw_head]})
    with openai.OpenAI(base_url=f"{order.url}/v1", api_key="none", http_client=http, max_retries=0) as client:
        create: Any = client.chat.completions.create
        try:
            answer = create(**order.body, extra_headers=order.headers)
            if not order.stream:
                watch.saw_answer(answer)
            else:
                for event in answer:
                    watch.saw_event(event)
        except (openai.APIStatusError, ObolError) as error:
            watch.error = error
    return watch.outcome()


async def buy_with_async_openai(order: Order, _: Path) -> Outcome:
    watch = _Watch(order, order.notify)

    async def saw_head(answer: httpx2.Response) -> None:
        watch.saw_head(answer)

    http = openai.DefaultAsyncHttpxClient(auth=watch.auth, event_hooks={"response": [saw_head]})
    async with openai.AsyncOpenAI(
        base_url=f"{order.url}/v1", api_key="none", http_client=http, max_retries=0
    ) as client:
        create: Any = client.chat.completions.create
        try:
            answer = await create(**order.body, extra_headers=order.headers)
            if not order.stream:
                watch.saw_answer(answer)
            else:
                async for event in answer:
                    watch.saw_event(event)
        except (openai.APIStatusError, ObolError) as error:
            watch.error = error
    return watch.outcome()


class _Watch(Stopwatch):
    """Also the answers' heads, which the SDK keeps to itself."""

    def __init__(self, order: Order, notify: Callable[[], object]) -> None:
        super().__init__(notify)
        self.auth = PaymentAuth(LocalSigner(bytes(order.wallet.key)))
        self.error: openai.APIStatusError | ObolError | None = None
        self._heads: list[httpx2.Response] = []

    def saw_head(self, answer: httpx2.Response) -> None:
        self._heads.append(answer)

    def saw_answer(self, answer: Any) -> None:
        self.saw(answer.choices[0].message.content)

    def saw_event(self, event: Any) -> None:
        self.saw("".join(choice.delta.content or "" for choice in event.choices))

    def outcome(self) -> Outcome:
        last, payment = self._heads[-1], self.auth.last_payment
        refused = self.error.response if isinstance(self.error, openai.APIStatusError) else None
        return Outcome(
            status=None if isinstance(self.error, ObolError) else last.status_code,
            headers={name.lower(): value for name, value in last.headers.items()},
            words=self.text,
            reason=refused.json()["reason"] if refused else "",
            error=f"{type(self.error).__name__}: {self.error}" if self.error else "",
            receipt=read_receipt(last.headers),
            presented=payment.headers if payment else {},
            first_s=self.first_s,
            last_s=self.last_s,
        )
