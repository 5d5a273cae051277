"""What a test buys with, and what it gets: request bodies, prices, whole answers."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from multidict import CIMultiDictProxy

from obol.core.networks import BASE_SEPOLIA, DEFAULT_CATALOGUE
from obol.x402.headers import PAYMENT_REQUIRED, PAYMENT_RESPONSE, decode_header
from obol.x402.models import PaymentRequired, SettleResponse

CHAT = "/v1/chat/completions"
MODEL = "tiny"
SELLER = "0x" + "11" * 20
PRICE = "0.01"
PRICE_ATOMIC = 10_000
FUNDS_ATOMIC = 100 * PRICE_ATOMIC
PROMPT = "what the buyer asks stays between the buyer and the model"
USDC = DEFAULT_CATALOGUE.asset(BASE_SEPOLIA, "usdc")
PATIENCE_S = 10.0

Json = dict[str, Any]


def chat(*, stream: bool = False, **more: Any) -> Json:
    """The body of a chat request."""
    return {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}], "stream": stream, **more}


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole HTTP answer; `payment` are the payment headers of its request."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes
    payment: Mapping[str, str] = field(default_factory=dict)

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def reason(self) -> str | None:
        """Our reason for a refusal, or None; a 402 names it in the challenge's text only."""
        try:
            return str(self.json["reason"])
        except (msgspec.MsgspecError, KeyError, TypeError):
            return None

    @property
    def challenge(self) -> PaymentRequired:
        """What a 402 asks for."""
        return decode_header(self.headers[PAYMENT_REQUIRED], PaymentRequired)

    @property
    def asks_for_money(self) -> bool:
        return self.status == 402 or PAYMENT_REQUIRED in self.headers

    @property
    def sale_id(self) -> str:
        return self.headers["X-Obol-Receipt"].removeprefix("/receipts/")

    @property
    def settlement(self) -> str:
        return self.headers["X-Obol-Settlement"]

    @property
    def payment_response(self) -> SettleResponse:
        return decode_header(self.headers[PAYMENT_RESPONSE], SettleResponse)


async def eventually(condition: Callable[[], bool], what: str = "") -> None:
    """Wait for something in this process that announces itself to nobody."""
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s, f"never happened: {what}"
        await asyncio.sleep(0.002)
