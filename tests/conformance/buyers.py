"""The official clients, unmodified, each set up as its own README says: one function per client makes one purchase."""

import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from x402 import x402Client
from x402.http import x402HTTPClient
from x402.http.clients import x402HttpxClient
from x402.http.clients.httpx import PaymentError
from x402.mechanisms.evm.exact.register import register_exact_evm_client
from x402.schemas import PaymentCreatedContext

from tests.conformance import node
from tests.conformance.openai_buyers import buy_with_async_openai, buy_with_openai
from tests.conformance.purchase import PATH, Order, Outcome, Stopwatch, read_reason, read_receipt, read_words

Buy = Callable[[Order, Path], Coroutine[Any, Any, Outcome]]
"""The folder is where Node finds the scripts and the packages (`node.prepare`)."""


async def buy_with_python(order: Order, _: Path) -> Outcome:
    client = register_exact_evm_client(x402Client(), order.wallet)  # type: ignore[arg-type]
    presented: dict[str, str] = {}

    def keep(made: PaymentCreatedContext) -> None:
        presented.update(x402HTTPClient(client).encode_payment_signature_header(made.payment_payload))

    client.on_after_payment_creation(keep)
    watch = Stopwatch(order.notify)
    try:
        async with (
            x402HttpxClient(client, timeout=30) as http,
            http.stream("POST", order.url + PATH, json=order.body, headers=dict(order.headers)) as answer,
        ):
            async for chunk in answer.aiter_text():
                watch.saw(chunk)
    except PaymentError as error:
        return Outcome(None, presented=presented, error=str(error))
    return Outcome(
        status=answer.status_code,
        headers={name.lower(): value for name, value in answer.headers.items()},
        words=read_words(answer.status_code, watch.text),
        reason=read_reason(answer.status_code, watch.text),
        receipt=read_receipt(answer.headers),
        presented=presented,
        first_s=watch.first_s,
        last_s=watch.last_s,
    )


async def buy_with_fetch_v2(order: Order, folder: Path) -> Outcome:
    return await _buy_with_node("fetch_v2.mjs", order, folder)


async def buy_with_fetch_v1(order: Order, folder: Path) -> Outcome:
    return await _buy_with_node("fetch_v1.mjs", order, folder)


BUYERS: dict[str, Buy] = {
    "x402": buy_with_python,
    "@x402/fetch": buy_with_fetch_v2,
    "x402-fetch": buy_with_fetch_v1,
    "openai": buy_with_openai,
    "openai-async": buy_with_async_openai,
}
V1_BUYERS = frozenset({"x402-fetch"})
"""The others speak v2."""
OPENAI_BUYERS = frozenset({"openai", "openai-async"})
"""These pay through our own PaymentAuth."""


async def _buy_with_node(script: str, order: Order, folder: Path) -> Outcome:
    settings = {
        "OBOL_URL": order.url + PATH,
        "OBOL_KEY": "0x" + bytes(order.wallet.key).hex(),
        "OBOL_BODY": json.dumps(order.body),
        "OBOL_HEADERS": json.dumps(dict(order.headers)),
    }
    told: dict[str, Any] = {}
    async for told in node.run(folder, script, settings):
        if told.get("event") == "first_chunk":
            order.notify()
    return Outcome(
        status=told["status"],
        headers=told["headers"],
        words=read_words(told["status"], told["body"]),
        reason=read_reason(told["status"] or 0, told["body"]),
        error=told["error"],
        receipt=told["receipt"],
        presented={} if order.headers else told["presented"],
        first_s=told["first_s"],
        last_s=told["last_s"],
    )
