"""A facilitator program on a real port, honest or hostile: `async with FakeFacilitator() as f: f.behaviour = …`.

Without `inner` it believes every payment and moves make-believe money once per (payer, nonce). With a port (such as
`DevnetFacilitator`) the truth is that one's, and the behaviours only spoil what is told about it.
"""

import asyncio
import hashlib
import json
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import msgspec
from aiohttp import web

from obol.x402.facilitator import Accepted, Facilitator, Refused, Settlement, SettleOutcome, VerifyOutcome
from obol.x402.models import (
    FacilitatorRequest,
    PaymentPayload,
    PaymentRequirements,
    SettleResponse,
    SupportedKind,
    SupportedResponse,
    VerifyResponse,
)

HUGE_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Ok:
    """Says what is true."""


@dataclass(frozen=True)
class RefuseVerify:
    """`/verify`: isValid false."""

    reason: str = "insufficient_funds"
    status: int = 200


@dataclass(frozen=True)
class RefuseSettle:
    """`/settle`: 200 with success false; no money moves."""

    reason: str = "insufficient_funds"
    transaction: str = ""


@dataclass(frozen=True)
class SlowVerify:
    """`/verify` answers after `release` is set."""


@dataclass(frozen=True)
class SlowSettle:
    """`/settle` moves the money, and answers, after `release` is set."""


@dataclass(frozen=True)
class SettleThenHang:
    """`/settle` moves the money at once; the answer comes after `release` is set: usually too late."""


@dataclass(frozen=True)
class BadGateway:
    """502 from `/verify` and `/settle`, after moving the money or without."""

    after_settling: bool


@dataclass(frozen=True)
class Drop:
    """`/settle` ends in a closed connection, after moving the money or without."""

    after_settling: bool


@dataclass(frozen=True)
class Pending:
    """`settlement_pending` for the first `times` asks of `/settle`, the truth afterwards."""

    times: int
    transaction: str = "0x" + "be" * 32


@dataclass(frozen=True)
class Lie:
    """`/settle`: these fields overwrite what is true; no money moves."""

    success: bool = True
    transaction: str = "0x" + "f0" * 32
    network: str | None = None
    payer: str | None = None


@dataclass(frozen=True)
class Garbage:
    """200 with these bytes from both, perhaps under a Content-Encoding."""

    body: bytes = b'{"success": tru'
    encoding: str = ""


@dataclass(frozen=True)
class WrongStatus:
    """The truth, under this status, from both."""

    status: int


@dataclass(frozen=True)
class Huge:
    """200 with a true answer, followed by megabytes of blanks."""


@dataclass(frozen=True)
class Redirect:
    """307 from both, to this address."""

    location: str


Behaviour = (
    Ok
    | RefuseVerify
    | RefuseSettle
    | SlowVerify
    | SlowSettle
    | SettleThenHang
    | BadGateway
    | Drop
    | Pending
    | Lie
    | Garbage
    | WrongStatus
    | Huge
    | Redirect
)


class MakeBelieve:
    """A `Facilitator` that accepts everything; `settle` moves once per (payer, nonce)."""

    def __init__(self, networks: tuple[str, ...] = ("eip155:84532",)) -> None:
        self.networks = networks
        self.moved: dict[tuple[str, str], str] = {}

    async def verify(self, payload: PaymentPayload, requirements: PaymentRequirements) -> VerifyOutcome:
        return Accepted(payload.payer.lower())

    async def settle(self, payload: PaymentPayload, requirements: PaymentRequirements) -> Settlement:
        signed = payload.payload.signed
        key = (signed.from_.lower(), signed.nonce.lower())
        transaction = "0x" + hashlib.sha256("/".join(key).encode()).hexdigest()
        return Settlement(SettleOutcome.SETTLED, self.moved.setdefault(key, transaction))

    async def supported(self) -> SupportedResponse:
        return SupportedResponse([SupportedKind(2, "exact", network) for network in self.networks])

    async def close(self) -> None:
        return None


class FakeFacilitator:
    """`url` while entered. `verified` and `settle_asked` hold the requests as they came, `settled` the payloads whose
    money moved (each once). `settle_arrived` is set by each `/settle`, `release` lets held answers go."""

    def __init__(self, inner: Facilitator | None = None, behaviour: Behaviour | None = None) -> None:
        self.inner: Facilitator = inner or MakeBelieve()
        self.behaviour: Behaviour = behaviour or Ok()
        self.only_settles_badly = False
        """`/verify` says what is true, whatever `behaviour` is."""
        self.verified: list[FacilitatorRequest] = []
        self.settle_asked: list[FacilitatorRequest] = []
        self.settled: list[FacilitatorRequest] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.settle_arrived = asyncio.Event()
        self.release = asyncio.Event()
        self.url = ""
        self._transactions: set[str] = set()
        self._runner: web.AppRunner | None = None
        self._port = 0

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen; after `stop`, on the same port again."""
        app = web.Application()
        app.router.add_post("/verify", self._verify)
        app.router.add_post("/settle", self._settle)
        app.router.add_get("/supported", self._supported)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await site.start()
        self._port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self._port}"

    async def stop(self) -> None:
        """Refuse connections from now on. Held answers are let go."""
        self.release.set()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _read(self, request: web.Request) -> FacilitatorRequest:
        body = await request.read()
        self.bodies.append(json.loads(body))
        self.headers.append(dict(request.headers))
        return msgspec.json.decode(body, type=FacilitatorRequest)

    async def _verify(self, request: web.Request) -> web.StreamResponse:
        asked = await self._read(request)
        self.verified.append(asked)
        return await (self._verify_honestly(asked) if self.only_settles_badly else self._verify_as_told(asked))

    async def _verify_as_told(self, asked: FacilitatorRequest) -> web.StreamResponse:
        match self.behaviour:
            case RefuseVerify(reason, status):
                return _json(VerifyResponse(False, reason, payer=asked.payment_payload.payer), status)
            case SlowVerify():
                await self.release.wait()
        spoiled = self._spoiled()
        return spoiled if spoiled is not None else await self._verify_honestly(asked)

    async def _verify_honestly(self, asked: FacilitatorRequest) -> web.StreamResponse:
        outcome = await self.inner.verify(asked.payment_payload, asked.payment_requirements)
        if isinstance(outcome, Refused):
            return _json(VerifyResponse(False, outcome.reason, outcome.message or None))
        return self._told(VerifyResponse(True, payer=outcome.payer))

    async def _settle(self, request: web.Request) -> web.StreamResponse:
        asked = await self._read(request)
        self.settle_asked.append(asked)
        self.settle_arrived.set()
        unmoved = await self._before_moving(request, asked)
        if unmoved is not None:
            return unmoved
        settled = await self._move(asked)
        match self.behaviour:
            case SettleThenHang():
                await self.release.wait()
            case BadGateway():
                return web.Response(status=502)
            case Drop():
                return _drop(request)
        return self._told(settled)

    async def _before_moving(self, request: web.Request, asked: FacilitatorRequest) -> web.StreamResponse | None:
        """The answer when no money shall move, or None."""
        match self.behaviour:
            case RefuseSettle(reason, transaction):
                return _json(_answer(asked, success=False, transaction=transaction, reason=reason))
            case Lie() as lie:
                return _json(_lied(asked, lie))
            case Pending(times, transaction) if len(self.settle_asked) <= times:
                return _json(_answer(asked, success=False, transaction=transaction, reason="settlement_pending"))
            case Drop(after_settling=False):
                return _drop(request)
            case SlowSettle():
                await self.release.wait()
            case BadGateway(after_settling=True):
                return None
        return self._spoiled()

    async def _move(self, asked: FacilitatorRequest) -> SettleResponse:
        done = await self.inner.settle(asked.payment_payload, asked.payment_requirements)
        is_settled = done.outcome is SettleOutcome.SETTLED
        if is_settled and done.transaction not in self._transactions:
            self._transactions.add(done.transaction)
            self.settled.append(asked)
        return _answer(asked, success=is_settled, transaction=done.transaction, reason=done.reason or None)

    async def _supported(self, request: web.Request) -> web.StreamResponse:
        return self._spoiled() or _json(await self.inner.supported())

    def _spoiled(self) -> web.StreamResponse | None:
        """What all three endpoints answer under a behaviour that spoils them all."""
        match self.behaviour:
            case BadGateway():
                return web.Response(status=502)
            case Garbage(body, encoding):
                headers = {"Content-Encoding": encoding} if encoding else None
                return web.Response(body=body, content_type="application/json", headers=headers)
            case Redirect(location):
                return web.Response(status=307, headers={"Location": location})
        return None

    def _told(self, answer: msgspec.Struct) -> web.Response:
        """A true answer, told badly where the behaviour says so."""
        filler = b" " * HUGE_BYTES if isinstance(self.behaviour, Huge) else b""
        status = self.behaviour.status if isinstance(self.behaviour, WrongStatus) else 200
        return web.Response(body=msgspec.json.encode(answer) + filler, status=status, content_type="application/json")


def _json(answer: msgspec.Struct, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(answer), status=status, content_type="application/json")


def _answer(asked: FacilitatorRequest, *, success: bool, transaction: str, reason: str | None) -> SettleResponse:
    payer = asked.payment_payload.payer
    return SettleResponse(success, transaction, asked.payment_requirements.network, payer, reason)


def _lied(asked: FacilitatorRequest, lie: Lie) -> SettleResponse:
    true = _answer(asked, success=lie.success, transaction=lie.transaction, reason=None)
    return msgspec.structs.replace(true, network=lie.network or true.network, payer=lie.payer or true.payer)


def _drop(request: web.Request) -> web.Response:
    """Close the connection without an answer."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()
