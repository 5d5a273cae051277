"""A facilitator somewhere else, over HTTP: always x402 v2 bodies, and every reply read as if it were hostile.

What counts as what (`settle`); anything that is not listed is UNKNOWN, because money may have moved:

    200 success:true, our network, our payer, a transaction        SETTLED
    200 success:false errorReason settlement_pending               PENDING
    200 success:false, a reason in `_UNDECIDED`                    UNKNOWN  the authorization may have been used by us
    200 success:false, a reason in `_REVERTED`, a transaction      FAILED   mined, and it moved nothing
    200 success:false, any other reason, a transaction             UNKNOWN  broadcast; its end was not seen
    200 success:false, any other reason, no transaction            FAILED

A refused connection is UNKNOWN too, although nothing was sent: the caller may have asked before, and asking again is
harmless. Source: x402 specification v2, section 7; reasons of the official facilitators.
"""

import re
from collections.abc import Mapping
from hashlib import sha256
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec

from obol.errors import FacilitatorUnavailableError, PeerProtocolError, SettingsError
from obol.x402.facilitator import Accepted, Refused, Settlement, SettleOutcome, VerifyOutcome
from obol.x402.models import FacilitatorRequest, PaymentPayload, PaymentRequirements, SupportedResponse, VerifyResponse

MAX_REPLY_BYTES = 64 * 1024
VERIFY_TIMEOUT_S = 5.0
SETTLE_TIMEOUT_S = 60.0
PLAIN_HTTP_HOSTS = frozenset({"localhost", "127.0.0.1", "::1", "host.docker.internal", "host.k3d.internal"})
"""Hosts that are this machine, as seen from it or from a container on it."""

_T = TypeVar("_T")
_PENDING = "settlement_pending"
_UNDECIDED = frozenset(
    {
        "invalid_exact_evm_nonce_already_used",  # used by whom? by an earlier ask of ours, or cancelled
        "nonce_already_used",
        "authorization_used_or_canceled",
        "duplicate_settlement",  # it moved; somebody else was told so
        "permit2_invalid_nonce",  # the same of Permit2
        "invalid_transaction_state",  # broadcast, state not understood
        "invalid_exact_evm_failed_to_execute_transfer",  # sending it failed, and it may have been sent
        "invalid_exact_evm_failed_to_get_receipt",  # broadcast, and nobody waited long enough
        "unexpected_settle_error",  # the facilitator does not know what happened to it
        "unexpected_error",
    }
)
_REVERTED = frozenset({"transaction_failed", "invalid_exact_evm_transaction_failed"})
"""With a transaction: it was mined and reverted. Without one: sending it failed, and it may have been sent."""
_BUSY = frozenset({408, 425, 429})
NO_ANSWER = frozenset(
    {
        "facilitator_unreachable",
        "facilitator_timeout",
        "facilitator_broken",
        "facilitator_error",
        "facilitator_nonsense",
    }
)
"""Reasons of an UNKNOWN that say nothing of the payment: the facilitator itself is at fault."""
_TRANSACTION = re.compile(r"0x[0-9a-fA-F]{64}", re.ASCII)
_MAX_LOG_INDEX = 2**31
_TEXT_LIMIT = 200
_CODE = re.compile(r"[A-Za-z0-9_.:-]{1,100}")


class _SettleReply(msgspec.Struct, frozen=True, rename="camel"):
    """`SettleResponse` as others send it: only `success` is there for sure."""

    success: bool
    transaction: str | None = None
    network: str | None = None
    payer: str | None = None
    amount: str | None = None
    error_reason: str | None = None
    error_message: str | None = None
    extra: Any = None


class HttpFacilitator:
    """Implements `x402.facilitator.Facilitator` by asking `url`. Waits in seconds.

    `headers` go with every request (a bearer token, an API key) and are never shown. No redirect is followed.
    Raises `SettingsError` naming `field` for an address that may not be used. One event loop; `close` it there.
    """

    def __init__(
        self,
        url: str,
        *,
        verify_timeout_s: float = VERIFY_TIMEOUT_S,
        settle_timeout_s: float = SETTLE_TIMEOUT_S,
        headers: Mapping[str, str] = MappingProxyType({}),
        field: str = "--facilitator",
    ) -> None:
        self.url = facilitator_url(url, field=field)
        self.verify_timeout_s = verify_timeout_s
        self.settle_timeout_s = settle_timeout_s
        self._headers = dict(headers)
        self._session: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        names = dict.fromkeys(self._headers, "***")
        return f"HttpFacilitator({self.url!r}, headers={names})"

    async def verify(self, payload: PaymentPayload, requirements: PaymentRequirements) -> VerifyOutcome:
        """See the port. A payer other than the authorization's is nonsense, not an answer."""
        reply = await self._ask("POST", "/verify", _request(payload, requirements))
        answer = _decode(reply, VerifyResponse, "/verify")
        if not answer.is_valid:
            return Refused(_code(answer.invalid_reason) or "unspecified", _text(answer.invalid_message))
        payer = payload.payer.lower()
        if answer.payer is not None and answer.payer.lower() != payer:
            raise PeerProtocolError("the facilitator accepted the payment of somebody else")
        return Accepted(payer)

    async def settle(self, payload: PaymentPayload, requirements: PaymentRequirements) -> Settlement:
        """See the port, and the table above."""
        try:
            key = _idempotency_key(payload, requirements)
            status, body = await self._exchange("POST", "/settle", _request(payload, requirements), key)
        except aiohttp.ClientConnectorError:
            message = "no connection to the facilitator: nothing was sent"
            return Settlement(SettleOutcome.UNKNOWN, "", "facilitator_unreachable", message, is_unsent=True)
        except TimeoutError:
            return _unknown("facilitator_timeout", "the facilitator did not answer in time")
        except (aiohttp.ClientError, OSError):
            return _unknown("facilitator_broken", "the connection to the facilitator broke")
        if status != 200:
            return _unknown("facilitator_error", f"the facilitator answered {status}")
        try:
            reply = msgspec.json.decode(body, type=_SettleReply)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return _unknown("facilitator_nonsense", "the facilitator's answer is not a settle response")
        return _settlement(reply, payload, requirements)

    async def supported(self) -> SupportedResponse:
        """See the port."""
        return _decode(await self._ask("GET", "/supported"), SupportedResponse, "/supported")

    async def close(self) -> None:
        """See the port."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """The body of a 200, for calls that change nothing."""
        try:
            status, reply = await self._exchange(method, path, body)
        except aiohttp.ServerDisconnectedError:  # most often a kept connection that the peer had just closed
            status, reply = await self._again(method, path, body)
        except (aiohttp.ClientError, OSError) as error:
            raise FacilitatorUnavailableError(f"the facilitator could not be asked: {_kind(error)}") from error
        if status >= 500 or status in _BUSY:
            raise FacilitatorUnavailableError(f"the facilitator answered {status} to {path}")
        if status != 200:
            raise PeerProtocolError(f"the facilitator answered {status} to {path}")
        return reply

    async def _again(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        try:
            return await self._exchange(method, path, body)
        except (aiohttp.ClientError, OSError) as error:
            raise FacilitatorUnavailableError(f"the facilitator could not be asked: {_kind(error)}") from error

    async def _exchange(
        self, method: str, path: str, body: bytes | None, idempotency_key: str = ""
    ) -> tuple[int, bytes]:
        """One request; raises what aiohttp raises. More than the reply limit is cut, which no decoder accepts."""
        timeout = aiohttp.ClientTimeout(total=self.settle_timeout_s if path == "/settle" else self.verify_timeout_s)
        headers = {"Accept": "application/json", "Content-Type": "application/json", **self._headers}
        if idempotency_key:
            headers["Idempotency-Key"] = idempotency_key
        async with self._open().request(
            method, self.url + path, data=body, headers=headers, timeout=timeout, allow_redirects=False
        ) as response:
            return response.status, await _read(response)

    def _open(self) -> aiohttp.ClientSession:
        """Lazily: a session belongs to a running event loop."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                auto_decompress=False,  # a compressed bomb stays small, and is nonsense
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("Accept-Encoding", "User-Agent"),
            )
        return self._session


def facilitator_url(text: str, *, field: str = "--facilitator") -> str:
    """The address without its trailing slash. Raises `SettingsError` naming `field`.

    https to anywhere; plain http only to this machine: whoever can change a reply decides who was paid.
    """
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise SettingsError(field, "not a URL") from None
    if parts.scheme not in ("http", "https") or not host:
        raise SettingsError(field, "must be a URL such as https://facilitator.example")
    if parts.username is not None or parts.query or parts.fragment or not text.isascii() or not text.isprintable():
        raise SettingsError(field, "must be a plain URL: no credentials, query or fragment in it")
    if parts.scheme == "http" and host not in PLAIN_HTTP_HOSTS:
        allowed = ", ".join(sorted(PLAIN_HTTP_HOSTS))
        raise SettingsError(field, f"must be https: plain http is allowed only to {allowed}")
    return text.rstrip("/")


def _request(payload: PaymentPayload, requirements: PaymentRequirements) -> bytes:
    return msgspec.json.encode(FacilitatorRequest(payment_payload=payload, payment_requirements=requirements))


def _idempotency_key(payload: PaymentPayload, requirements: PaymentRequirements) -> str:
    """The same whenever this payment is asked about, after a restart too: we claim payments, so being told twice that
    one is settled serves nobody twice."""
    signed = payload.payload.signed
    parts = (requirements.network, requirements.asset, signed.from_, signed.nonce, requirements.pay_to)
    return sha256("/".join(parts).lower().encode()).hexdigest()


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """At most `MAX_REPLY_BYTES`; b"" for more, so that half a reply is never taken for a whole one."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_REPLY_BYTES:
            response.close()
            return b""
    return bytes(body)


def _decode(body: bytes, kind: type[_T], path: str) -> _T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise PeerProtocolError(f"the facilitator's answer to {path} is not what x402 says") from error


def _settlement(reply: _SettleReply, payload: PaymentPayload, requirements: PaymentRequirements) -> Settlement:
    reason, message, transaction = _code(reply.error_reason), _text(reply.error_message), _text(reply.transaction)
    if reply.success:
        flaw = _flaw(reply, payload, requirements)
        if flaw:
            return _unknown("facilitator_nonsense", f"the facilitator says it settled, but {flaw}")
        return Settlement(SettleOutcome.SETTLED, transaction, log_index=_log_index(reply))
    if reason == _PENDING:
        return Settlement(SettleOutcome.PENDING, transaction, reason, message)
    is_broadcast = _TRANSACTION.fullmatch(transaction) is not None
    if reason in _UNDECIDED or is_broadcast != (reason in _REVERTED):
        return Settlement(SettleOutcome.UNKNOWN, transaction, reason, message)
    return Settlement(SettleOutcome.FAILED, transaction, reason or "unspecified", message)


def _log_index(reply: _SettleReply) -> int | None:
    """Our own facilitator's; anything else in its place is no information."""
    index = reply.extra.get("logIndex") if isinstance(reply.extra, dict) else None
    return index if type(index) is int and 0 <= index < _MAX_LOG_INDEX else None


def _flaw(reply: _SettleReply, payload: PaymentPayload, requirements: PaymentRequirements) -> str:
    """Why a `success: true` does not say that this payment was settled; "" when it does."""
    if _TRANSACTION.fullmatch(reply.transaction or "") is None:
        return "names no transaction"
    if reply.network != requirements.network:
        return "names another network"
    if reply.payer is not None and reply.payer.lower() != payload.payer.lower():
        return "names another payer"
    if reply.amount is not None and reply.amount != requirements.amount:
        return "names another amount"
    return ""


def _unknown(reason: str, message: str) -> Settlement:
    return Settlement(SettleOutcome.UNKNOWN, "", reason, message)


def _kind(error: Exception) -> str:
    """A word without addresses."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return "no connection" if isinstance(error, aiohttp.ClientConnectorError) else "the connection broke"


def _text(text: str | None) -> str:
    """A peer's words, made harmless: printable and short."""
    kept = (text or "")[:_TEXT_LIMIT]
    return kept if kept.isprintable() else "".join(c for c in kept if c.isprintable())


def _code(text: str | None) -> str:
    """A peer's reason where it is a code: buyers see reasons, and a sentence in its place may name the peer's hosts."""
    return text if text and _CODE.fullmatch(text) else ("unspecified" if text else "")
