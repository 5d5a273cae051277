"""Presigned payments: unique nonces, one key, made for whatever requirements a seller's own 402 states."""

import http.client
import secrets
import time
from dataclasses import dataclass

from bench.offer import PATH, USDC, request_body
from bench.programs import HOST, Program
from obol.adapters.signer_local import LocalSigner
from obol.core.networks import DEFAULT_CATALOGUE
from obol.x402.client import choose, payment_headers, read_challenge, sign_exact
from obol.x402.headers import PAYMENT_SIGNATURE
from obol.x402.models import PaymentRequirements

TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, headers and body of one request."""

    status: int
    headers: dict[str, str]
    body: bytes


def post(program: Program, body: bytes, headers: dict[str, str] | None = None) -> Answer:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection(HOST, program.port, timeout=TIMEOUT_S)
    try:
        connection.request("POST", PATH, body, {"Content-Type": "application/json", **(headers or {})})
        response = connection.getresponse()
        return Answer(response.status, dict(response.getheaders()), response.read())
    finally:
        connection.close()


def quoted(program: Program) -> PaymentRequirements:
    """What a seller asks for. Raises `PeerProtocolError` when it answers anything but a 402."""
    answer = post(program, request_body())
    return choose(read_challenge(answer.status, answer.headers, answer.body), DEFAULT_CATALOGUE)


class Wallet:
    """Signs as many payments as are asked for."""

    def __init__(self) -> None:
        self._signer = LocalSigner.generate()

    def headers(self, requirements: PaymentRequirements, count: int) -> list[str]:
        """Values for `PAYMENT-SIGNATURE`, each good for one sale within the next minutes."""
        now_s = time.time()
        return [
            payment_headers(
                sign_exact(self._signer, requirements, USDC, now_s=now_s, nonce=secrets.token_bytes(32)), 2
            )[PAYMENT_SIGNATURE]
            for _ in range(count)
        ]
