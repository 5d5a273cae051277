"""The request that carries a payment: a copy of the one that was asked to pay, and it pays no one else."""

import hashlib
from collections.abc import Mapping

import httpx2

from obol.x402.headers import PAYMENT_SIGNATURE, X_PAYMENT


class PaymentHeaders(httpx2.Headers):
    """Headers that put a payment on the wire and nowhere else.

    The client copies a request's headers when it follows a redirect. What is only in `raw`, which is what transports
    send, is not copied: a redirect never takes the payment along, and no hook that prints headers shows it.
    """

    def __init__(self, headers: httpx2.Headers, payment: Mapping[str, str]) -> None:
        super().__init__(headers)
        self._payment = [(name.encode("ascii"), value.encode("ascii")) for name, value in payment.items()]

    @property
    def raw(self) -> list[tuple[bytes, bytes]]:
        return [*super().raw, *self._payment]


def paid_request(asked: httpx2.Request, payment: Mapping[str, str]) -> httpx2.Request:
    """The same request again, with a payment. Its body must have been read, so that it can be sent a second time."""
    paid = httpx2.Request(asked.method, asked.url, stream=asked.stream, extensions=asked.extensions)
    paid.headers = PaymentHeaders(asked.headers, payment)
    return paid


def has_payment(request: httpx2.Request) -> bool:
    """True when the caller put a payment on the request: ours would be a second one."""
    return PAYMENT_SIGNATURE in request.headers or X_PAYMENT in request.headers


def fingerprint(request: httpx2.Request) -> str:
    """What makes two requests the same purchase: method, address and body, not headers that count retries."""
    digest = hashlib.sha256(f"{request.method} {request.url}\n".encode())
    digest.update(request.content)
    return digest.hexdigest()
