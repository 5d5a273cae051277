"""A facilitator somewhere else, over HTTP: always x402 v2 bodies, and every reply read as if it were hostile.

A refused connection is UNKNOWN too, although nothing was sent: the caller may have asked before, and asking again is
harmless. What a reply means is in `settle_replies.py`. Source: x402 specification v2, section 7.
"""

from collections.abc import Mapping
from hashlib import sha256
from types import MappingProxyType
from typing import TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec

from obol.adapters.settle_replies import harmless, read_settlement, reason_code, unknown
from obol.errors import FacilitatorUnavailableError, PeerProtocolError, SettingsError
from obol.x402.facilitator import Accepted, Refused, Settlement, SettleOutcome, VerifyOutcome
from obol.x402.models import FacilitatorRequest, PaymentPayload, PaymentRequirements, SupportedResponse, VerifyResponse

MAX_REPLY_BYTES = 64 * 1024
VERIFY_TIMEOUT_S = 5.0
SETTLE_TIMEOUT_S = 60.0
PLAIN_HTTP_HOSTS = frozenset({"localhost", "127.0.0.1", "::1", "host.docker.internal", "host.k3d.internal"})
"""Hosts that are this machine, as seen from it or from a container on it."""

_T = TypeVar("_T")
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
        status, reply = await self._ask("POST", "/verify", _request(payload, requirements))
        answer = _decode(reply, VerifyResponse, "/verify")
        if status != 200 and answer.is_valid:
            raise PeerProtocolError(f"the facilitator answered {status} to /verify")
        if not answer.is_valid:
            return Refused(reason_code(answer.invalid_reason) or "unspecified", harmless(answer.invalid_message))
        payer = payload.payer.lower()
        if answer.payer is not None and answer.payer.lower() != payer:
            raise PeerProtocolError("the facilitator accepted the payment of somebody else")
        return Accepted(payer)

    async def settle(self, payload: PaymentPayload, requirements: PaymentRequirements) -> Settlement:
        """See the port."""
        try:
            key = _idempotency_key(payload, requirements)
            status, body = await self._exchange("POST", "/settle", _request(payload, requirements), key)
        except aiohttp.ClientConnectorError:
            message = "no connection to the facilitator: nothing was sent"
            return Settlement(SettleOutcome.UNKNOWN, "", "facilitator_unreachable", message, is_unsent=True)
        except TimeoutError:
            return unknown("facilitator_timeout", "the facilitator did not answer in time")
        except (aiohttp.ClientError, OSError):
            return unknown("facilitator_broken", "the connection to the facilitator broke")
        return read_settlement(status, body, payload, requirements)

    async def supported(self) -> SupportedResponse:
        """See the port."""
        status, reply = await self._ask("GET", "/supported")
        if status != 200:
            raise PeerProtocolError(f"the facilitator answered {status} to /supported")
        return _decode(reply, SupportedResponse, "/supported")

    async def close(self) -> None:
        """See the port."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Status and body of an answer, for calls that change nothing: a 200, or a 4xx, under which some refuse."""
        try:
            status, reply = await self._exchange(method, path, body)
        except aiohttp.ServerDisconnectedError:  # most often a kept connection that the peer had just closed
            status, reply = await self._again(method, path, body)
        except (aiohttp.ClientError, OSError) as error:
            raise FacilitatorUnavailableError(f"the facilitator could not be asked: {_kind(error)}") from error
        if status >= 500 or status in _BUSY:
            raise FacilitatorUnavailableError(f"the facilitator answered {status} to {path}")
        if status != 200 and not 400 <= status < 500:
            raise PeerProtocolError(f"the facilitator answered {status} to {path}")
        return status, reply

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


def _kind(error: Exception) -> str:
    """A word without addresses."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return "no connection" if isinstance(error, aiohttp.ClientConnectorError) else "the connection broke"
