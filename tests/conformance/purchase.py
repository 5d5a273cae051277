"""One purchase with any client: what is ordered, and what its user sees of it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from eth_account.signers.local import LocalAccount
from x402.http.utils import decode_payment_response_header

from obol.adapters.clock import SystemClock
from tests.conformance.shop import MODEL

PATH = "/v1/chat/completions"
TOKENS = 24
_CLOCK = SystemClock()


@dataclass(frozen=True)
class Order:
    """One chat completion. `headers` go with the first request already; `notify` is called, in the event loop, when the
    first chunk of the answer's body is here."""

    url: str
    wallet: LocalAccount
    stream: bool = False
    tokens: int = TOKENS
    headers: Mapping[str, str] = field(default_factory=dict)
    notify: Callable[[], None] = lambda: None

    @property
    def body(self) -> dict[str, Any]:
        messages = [{"role": "user", "content": "hi"}]
        return {"model": MODEL, "messages": messages, "max_tokens": self.tokens, "stream": self.stream}


@dataclass(frozen=True)
class Outcome:
    """What the client's user sees. `status` None: the client refused by itself, as `error` says."""

    status: int | None
    headers: Mapping[str, str] = field(default_factory=dict)
    """Of the last answer; names in lower case."""
    words: str = ""
    """The text of the completion."""
    reason: str = ""
    """The gateway's code, where it refused."""
    error: str = ""
    receipt: Mapping[str, Any] | None = None
    """`PAYMENT-RESPONSE` (v1: `X-PAYMENT-RESPONSE`) as the client's own decoder reads it."""
    presented: Mapping[str, str] = field(default_factory=dict)
    """The payment that the client made, as the header that carried it."""
    first_s: float = 0.0
    """When the first chunk was here, since the client was asked; and the last."""
    last_s: float = 0.0


class Stopwatch:
    """Chunks as they come, and when."""

    def __init__(self, notify: Callable[[], object]) -> None:
        self._notify = notify
        self._started_s = _CLOCK.monotonic_s()
        self.text = ""
        self.first_s = self.last_s = 0.0

    def saw(self, chunk: str) -> None:
        self.last_s = _CLOCK.monotonic_s() - self._started_s
        if not self.first_s:
            self.first_s = self.last_s
            self._notify()
        self.text += chunk


def read_receipt(headers: Mapping[str, str]) -> dict[str, Any] | None:
    """By the official Python decoder."""
    value = headers.get("payment-response")
    return decode_payment_response_header(value).model_dump(by_alias=True) if value else None


def read_words(status: int, body: str) -> str:
    """The text of a chat completion, from its JSON or its events; "" for an error."""
    if status != 200:
        return ""
    if body.startswith("{"):
        return str(json.loads(body)["choices"][0]["message"]["content"])
    *events, done, end = body.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    choices = [choice for event in events for choice in json.loads(event.removeprefix("data: "))["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def read_reason(status: int, body: str) -> str:
    """The gateway's code in the body of a refusal."""
    return str(json.loads(body).get("reason", "")) if status >= 400 else ""
