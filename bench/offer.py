"""What every seller in the benchmark sells, and what a buyer sends: one chat completion, 1 kB in, 600 B out."""

import json
from typing import Any

from obol.core.networks import BASE_SEPOLIA, DEFAULT_CATALOGUE

MODEL = "bench"
NETWORK = BASE_SEPOLIA
USDC = DEFAULT_CATALOGUE.asset(NETWORK, "usdc")
PAY_TO = "0x209693Bc6afc0C5328bA36FaF03C514EF312287C"
PRICE = "0.001"
PATH = "/v1/chat/completions"

ANSWER = json.dumps(
    {
        "id": "chatcmpl-bench",
        "object": "chat.completion",
        "created": 0,
        "model": MODEL,
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "word " * 75}, "finish_reason": "stop"},
        ],
        "usage": {"prompt_tokens": 200, "completion_tokens": 75, "total_tokens": 275},
    },
    separators=(",", ":"),
)


def request_body(**fields: Any) -> bytes:
    """A request of about 1 kB; `fields` are added to it."""
    messages = [{"role": "user", "content": "tell me about it " * 54}]
    return json.dumps({"model": MODEL, "messages": messages, **fields}, separators=(",", ":")).encode()
