"""A seller program on a real port, in a thread of its own: `with FakeSeller() as seller: seller.then(Drop())`.

Honest unless told otherwise: verifies each payment with the real verifier, serves each authorization once, and answers
409 with the receipt afterwards. Behaviours are used up by paid requests, one each, in order.
"""

import asyncio
import json
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import msgspec
from aiohttp import web

from obol.core.networks import BASE_SEPOLIA, DEFAULT_CATALOGUE, Asset
from obol.x402.challenge import build_challenge
from obol.x402.exact import ExactVerifier, Verified
from obol.x402.gas_sponsoring import TokenPermit
from obol.x402.headers import PAYMENT_REQUIRED, PAYMENT_RESPONSE, PAYMENT_SIGNATURE, X_PAYMENT, read_presented
from obol.x402.models import PaymentRequirements, ResourceInfo, SettleResponse
from obol.x402.receipts import settle_header

USDC = DEFAULT_CATALOGUE.asset(BASE_SEPOLIA, "usdc")
PAY_TO = "0x209693Bc6afc0C5328bA36FaF03C514EF312287C"
TRANSACTION = "0x" + "ab" * 32
WORDS = ("Three ", "small ", "words.")


@dataclass(frozen=True)
class Serve:
    """The answer, with a receipt. `settled` False: the transaction comes later, at the receipt's address."""

    settled: bool = True
    has_receipt: bool = True


@dataclass(frozen=True)
class Answer:
    """This status, with this settlement in the head (None: without one); nothing is served or claimed."""

    status: int
    settlement: SettleResponse | None = None
    headers: dict[str, str] = field(default_factory=dict)
    code: str | None = None


@dataclass(frozen=True)
class Challenge:
    """402 to a paid request."""

    error: str = "insufficient_funds"


@dataclass(frozen=True)
class Drop:
    """Closes the connection without an answer. `claims` says whether the authorization counts as used."""

    claims: bool = False


@dataclass(frozen=True)
class Break:
    """Serves, but closes the connection in the middle of the body."""


@dataclass(frozen=True)
class Hang:
    """Answers after `release`."""


Behaviour = Serve | Answer | Challenge | Drop | Break | Hang


@dataclass(frozen=True)
class Seen:
    """One paid request."""

    nonce: str
    value_atomic: int
    path: str
    header: str
    authorization: str | None
    permit: TokenPermit | None = None


class FakeSeller:
    """`url` is its origin; `paid` and `unpaid` what it saw. Change the attributes before the request they concern."""

    def __init__(self, *, price_atomic: int = 1000, asset: Asset = USDC, generation: str = "both") -> None:
        self.generation = generation
        """"both": v2 header and v1 body; "v1", "v2-body": only that body; "none": a 402 of something else."""
        self.requirements = requirements(asset, price_atomic)
        self.extensions: dict[str, Any] = {}
        self.extra_header = ""
        self.redirect_unpaid = ""
        self.unpaid_body: bytes | None = None
        self.paid: list[Seen] = []
        self.unpaid: list[str] = []
        self.bodies: list[bytes] = []
        self.claimed: set[str] = set()
        self.tells_used_by_receipt = True
        self.receipt_tries = 1
        self.arrived = threading.Event()
        """Set when a payment has arrived."""
        self._asset = asset
        self._behaviours: deque[Behaviour] = deque()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def then(self, *behaviours: Behaviour) -> None:
        """What the next paid requests meet."""
        self._behaviours.extend(behaviours)

    def release(self) -> None:
        """Let go of what hangs or is held."""
        self._loop.call_soon_threadsafe(self._released.set)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()

    async def _run(self) -> None:
        self._loop, self._released, self._stopped = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._ready.set()
        await self._stopped.wait()
        await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if request.path == "/free":
            return web.json_response({"free": True})
        if request.path == "/missing":
            return web.json_response({"error": {"message": "not here"}}, status=404)
        if request.path.startswith("/receipts/"):
            self.receipt_tries -= 1
            is_final = self.receipt_tries <= 0
            state, transaction = ("settled", TRANSACTION) if is_final else ("settling", "")
            return web.json_response({"state": state, "transaction": transaction})
        presented = read_presented(
            request.headers.getall(X_PAYMENT, []), request.headers.getall(PAYMENT_SIGNATURE, []), DEFAULT_CATALOGUE
        )
        if presented is None:
            return self._meet_unpaid(request)
        verdict = ExactVerifier(self.requirements, self._asset, max_validity_s=86400).verify(presented, time.time())
        if not isinstance(verdict, Verified):
            return self._challenge(request, str(verdict))
        self.bodies.append(body)
        nonce = verdict.authorization.nonce
        header = X_PAYMENT if X_PAYMENT in request.headers else PAYMENT_SIGNATURE
        sent_authorization = request.headers.get("Authorization")
        value_atomic, permit = verdict.authorization.value_atomic, presented.token_permit
        self.paid.append(Seen(nonce, value_atomic, request.path, header, sent_authorization, permit))
        self.arrived.set()
        return await self._meet_paid(request, body, nonce)

    def _meet_unpaid(self, request: web.Request) -> web.Response:
        if self.redirect_unpaid:
            return web.Response(status=307, headers={"Location": self.redirect_unpaid})
        self.unpaid.append(request.path)
        return self._challenge(request, "Payment required")

    async def _meet_paid(self, request: web.Request, body: bytes, nonce: str) -> web.StreamResponse:
        if nonce in self.claimed:
            receipt = self._receipt() if self.tells_used_by_receipt else {}
            return web.json_response({"error": {"code": "payment_used"}}, status=409, headers=receipt)
        behaviour = self._behaviours.popleft() if self._behaviours else Serve()
        match behaviour:
            case Answer(status, settlement, headers, code):
                settled = {PAYMENT_RESPONSE: settle_header(settlement)} if settlement else {}
                error = {"message": "no"} | ({"code": code} if code else {})
                return web.json_response({"error": error}, status=status, headers=settled | headers)
            case Challenge(error):
                return self._challenge(request, error)
            case Drop(claims):
                self.claimed.update({nonce} if claims else ())
                return _drop(request)
            case Hang():
                await self._released.wait()
                behaviour = Serve()
        self.claimed.add(nonce)
        if isinstance(behaviour, Break):
            return await self._break(request)
        headers = self._receipt(behaviour.settled) if behaviour.has_receipt else {}
        if b'"stream":true' in body.replace(b" ", b""):
            return await self._stream(request, headers)
        return web.json_response(_completion("".join(WORDS)), headers=headers)

    def _receipt(self, settled: bool = True) -> dict[str, str]:
        transaction = TRANSACTION if settled else ""
        response = SettleResponse(success=True, transaction=transaction, network=BASE_SEPOLIA.caip2)
        return {PAYMENT_RESPONSE: settle_header(response), "X-Obol-Receipt": "/receipts/sale-1"}

    def _challenge(self, request: web.Request, error: str) -> web.Response:
        resource = ResourceInfo(url=f"{self.url}{request.path}", description="One answer")
        both = build_challenge(self.requirements, BASE_SEPOLIA, resource, error=error, extensions=self.extensions)
        body, headers = both.body, {}
        if self.generation == "both":
            headers = {PAYMENT_REQUIRED: both.header}
        elif self.generation == "v2-body":
            required = {"x402Version": 2, "error": error, "accepts": [self.requirements]}
            body = msgspec.json.encode(required | {"resource": resource})
        elif self.generation == "none":
            body = b"please pay"
        return web.Response(status=402, body=body if self.unpaid_body is None else self.unpaid_body, headers=headers)

    async def _stream(self, request: web.Request, headers: dict[str, str]) -> web.StreamResponse:
        """The first word at once, the others after `release`."""
        response = web.StreamResponse(headers=headers | {"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(_event(_delta(WORDS[0])))
        await self._released.wait()
        for word in WORDS[1:]:
            await response.write(_event(_delta(word)))
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _break(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers=self._receipt() | {"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b'{"half": ')
        return _drop(request)


def requirements(asset: Asset, price_atomic: int, pay_to: str = PAY_TO) -> PaymentRequirements:
    """What a seller asks for."""
    return PaymentRequirements(
        scheme="exact",
        network=asset.network.caip2,
        amount=str(price_atomic),
        asset=asset.address,
        pay_to=pay_to,
        max_timeout_seconds=300,
        extra={
            "name": asset.eip712_name,
            "version": asset.eip712_version,
            "assetTransferMethod": asset.transfer_method.value,
        },
    )


def _drop(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def _completion(text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "c1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}


def _delta(text: str) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def _event(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()
