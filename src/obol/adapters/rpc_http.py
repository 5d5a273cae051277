"""JSON-RPC over HTTP to the nodes of one chain, in order of preference; every reply is read as if it were hostile.

A call goes to the endpoint that worked last; where it does not answer, or not with what JSON-RPC says, the next one is
asked. So it is where an endpoint answers an error of its own that is not about what was asked: a limit, a missing key,
a method that it does not have, a block that it does not have yet. All of our calls may be repeated: they read, or send
a signed transaction that exists once. An endpoint is asked for its chain id before anything else, so that a list never
mixes two chains. Sources: JSON-RPC 2.0, EIP-1474, and what nodes and their hosts are seen to answer.
"""

import itertools
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec
import structlog

from obol.adapters.evm_refusals import Meaning, meaning_of
from obol.adapters.facilitator_http import PLAIN_HTTP_HOSTS
from obol.errors import ChainUnavailableError, ObolError, SettingsError

MAX_REPLY_BYTES = 8 * 1024 * 1024
TIMEOUT_S = 10.0
_LOGS = "eth_getLogs"
_LIMIT_EXCEEDED = -32005
_NODES_CODES = frozenset({429, -32001, -32005, -32007, -32016, -32029, -32601, -32603})
"""Under which nodes say something of themselves: limit exceeded, not allowed, no such method, internal error."""
_BUSY_CODES = frozenset({429, -32005, -32016, -32603})
"""Those of them under which a signer says that it is busy."""
_NODES_STATUSES = frozenset({401, 429})
_NODES_WORDS = re.compile(
    "rate.?limit|request limit|too many requests|quota|unauthori[sz]ed|forbidden|api key"
    "|not found|unknown block|beyond|future|outofrange"  # it is behind
)
_RANGE_WORDS = re.compile("range|results|logs|blocks|response size|query")
_FAILED_WORDS = re.compile(
    "revert|out of gas|outofgas|intrinsic gas|gas required exceeds|evm error|vm execution error|invalid opcode"
)
_FAILED_CODES = frozenset({3, -32015})
"""Of a call that failed on the chain."""
_KEY_LIKE = re.compile(r"[A-Za-z0-9_-]{6,}")
_TEXT_LIMIT = 200


class RpcRefusedError(ObolError):
    """The node answered an error about what was asked: a call that fails on the chain, a range of logs that is too
    wide, a transaction that it does not take. `data` as the node gave it.

    `is_last_word`: no endpoint was asked before it that may have done what was asked and not said so.
    """

    reason = "rpc_refused"

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.data = data
        self.is_last_word = True


class _Error(msgspec.Struct, frozen=True):
    code: int
    message: str = ""
    data: Any = None


class _Reply(msgspec.Struct, frozen=True):
    jsonrpc: str
    id: int
    result: Any = msgspec.UNSET
    error: _Error | None = None


class JsonRpc:
    """Client of `urls`, which must all be of one chain. `field` is named where a URL is refused; `log` is told when an
    endpoint stops answering, and when it answers again.

    URLs may hold keys: they are never shown. One event loop; `close` it there.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        timeout_s: float = TIMEOUT_S,
        field: str = "--rpc",
        log: structlog.typing.FilteringBoundLogger | None = None,
    ) -> None:
        """Raises `SettingsError` for no URL, or one that may not be used."""
        if not urls:
            raise SettingsError(field, "missing: give the URL of a node of the chain")
        self._urls = [_checked(url, field) for url in urls]
        self._field = field
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._ids = itertools.count(1)
        self._preferred = 0
        self._expected: int | None = None
        self._chain_ids: dict[int, int] = {}
        self._session: aiohttp.ClientSession | None = None
        self._log = log
        self._down: set[int] = set()
        self.round_trips = 0
        """HTTP requests made since the start."""

    async def chain_id(self) -> int:
        """The chain of every endpoint that answers.

        Raises `ChainUnavailableError` when none does, `SettingsError` when two are of different chains.
        """
        answers: set[int] = set()
        flaws: list[str] = []
        for endpoint in range(len(self._urls)):
            try:
                answers.add(await self._chain_of(endpoint))
            except _NotAnsweredError as error:
                flaws.append(self._note_down(endpoint, error))
        if not answers:
            raise ChainUnavailableError(f"no RPC endpoint says of which chain it is ({'; '.join(flaws)})")
        if len(answers) > 1:
            ids = " and ".join(map(str, sorted(answers)))
            raise SettingsError(self._field, f"the endpoints are of different chains: {ids}")
        return answers.pop()

    def expect(self, chain_id: int) -> None:
        """From now on, believe only endpoints of this chain."""
        self._expected = chain_id

    async def call(self, method: str, params: Sequence[Any]) -> Any:
        """The result of one call, from the first endpoint that answers.

        Raises `RpcRefusedError` where one says that what was asked cannot be, `ChainUnavailableError` when none
        answered.
        """
        flaws: list[str] = []
        first = self._preferred  # others may move it meanwhile: each endpoint is to be asked once
        for turn in range(len(self._urls)):
            endpoint = (first + turn) % len(self._urls)
            try:
                result = await self._ask(endpoint, method, params)
            except _NotAnsweredError as error:
                flaws.append(self._note_down(endpoint, error))
            except RpcRefusedError as refused:
                self._note_up(endpoint)
                refused.is_last_word = not flaws
                raise
            else:
                self._note_up(endpoint)
                return result
        raise ChainUnavailableError(f"no RPC endpoint answered {method} ({'; '.join(flaws)})")

    async def ask(self, method: str, params: Sequence[Any]) -> Any:
        """`call` to the first endpoint alone, whatever it says of chains: for a signer, which is of none."""
        try:
            return await self._post(0, method, params)
        except _NotAnsweredError as error:
            raise ChainUnavailableError(f"{_host(self._urls[0])} did not answer {method}: {error}") from None

    async def close(self) -> None:
        """Let go of connections. Idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _ask(self, endpoint: int, method: str, params: Sequence[Any]) -> Any:
        chain_id = await self._chain_of(endpoint)
        if self._expected is None:
            self._expected = chain_id
        if chain_id != self._expected:
            raise _NotAnsweredError(f"it is of chain {chain_id}, not {self._expected}")
        return await self._post(endpoint, method, params)

    def _note_up(self, endpoint: int) -> None:
        self._preferred = endpoint
        if endpoint in self._down:
            self._down.discard(endpoint)
            if self._log is not None:
                self._log.info("rpc_endpoint_up", endpoint=endpoint + 1, host=_host(self._urls[endpoint]))

    def _note_down(self, endpoint: int, error: "_NotAnsweredError") -> str:
        """What may be said of it."""
        host = _host(self._urls[endpoint])
        if endpoint not in self._down:
            self._down.add(endpoint)
            if self._log is not None:
                self._log.warning("rpc_endpoint_down", endpoint=endpoint + 1, host=host, error=str(error))
        return f"{host}: {error}"

    async def _chain_of(self, endpoint: int) -> int:
        """Asked once: a node does not change its chain."""
        if endpoint not in self._chain_ids:
            self._chain_ids[endpoint] = _chain_id(await self._post(endpoint, "eth_chainId", []))
        return self._chain_ids[endpoint]

    async def _post(self, endpoint: int, method: str, params: Sequence[Any]) -> Any:
        number = next(self._ids)
        asked = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        try:
            status, body = await self._exchange(endpoint, msgspec.json.encode(asked))
        except _TooLongError as error:
            if method == _LOGS:  # fewer blocks have fewer of them
                raise RpcRefusedError(_LIMIT_EXCEEDED, str(error)) from None
            raise
        except TimeoutError:
            raise _NotAnsweredError("no answer in time") from None
        except (aiohttp.ClientError, OSError):
            raise _NotAnsweredError("no connection, or it broke") from None
        reply = _reply(status, body)
        if reply.jsonrpc != "2.0" or reply.id != number:
            raise _NotAnsweredError("its reply is to another question")
        return _result(reply, method, status, self._urls[endpoint])

    async def _exchange(self, endpoint: int, body: bytes) -> tuple[int, bytes]:
        self.round_trips += 1
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        async with self._open().post(
            self._urls[endpoint], data=body, headers=headers, timeout=self._timeout, allow_redirects=False
        ) as response:
            content = bytearray()
            async for chunk in response.content.iter_any():
                content += chunk
                if len(content) > MAX_REPLY_BYTES:
                    response.close()
                    raise _TooLongError
            return response.status, bytes(content)

    def _open(self) -> aiohttp.ClientSession:
        """Lazily: a session belongs to a running event loop."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                auto_decompress=False,  # a compressed bomb stays small, and is nonsense
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("Accept-Encoding", "User-Agent"),
            )
        return self._session


class _NotAnsweredError(Exception):
    """One endpoint did not answer, or not as JSON-RPC says. The text names no address."""


class _TooLongError(_NotAnsweredError):
    def __init__(self) -> None:
        super().__init__("its reply is too long")


def _reply(status: int, body: bytes) -> _Reply:
    """Nodes answer their own errors under other statuses too; without such an answer a status is a failure."""
    try:
        return msgspec.json.decode(body, type=_Reply)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        what = f"it answered {status}" if status != 200 else "its reply is not JSON-RPC"
        raise _NotAnsweredError(what) from None


def _result(reply: _Reply, method: str, status: int, url: str) -> Any:
    if reply.error is not None:
        text = _text(reply.error.message, url)
        if not _is_about_the_question(method, reply.error, status):
            raise _NotAnsweredError(f"it failed with {reply.error.code}: {text}")
        raise RpcRefusedError(reply.error.code, text, reply.error.data)
    if reply.result is msgspec.UNSET:
        raise _NotAnsweredError("its reply holds no result")
    return reply.result


def _is_about_the_question(method: str, error: _Error, status: int) -> bool:
    """Whether a node says something of what was asked, rather than of itself. Codes alone do not tell: nodes use the
    same ones for both. What is not known counts against ranges and transactions, and for nothing else."""
    code, text = error.code, error.message.lower()
    match method:
        case "eth_call":
            return code in _FAILED_CODES or _FAILED_WORDS.search(text) is not None or _is_hex(error.data)
        case "eth_getLogs":
            if status in _NODES_STATUSES or _NODES_WORDS.search(text):
                return False
            return code not in _NODES_CODES or _RANGE_WORDS.search(text) is not None
        case "eth_sendRawTransaction":
            is_nodes_own = code in _NODES_CODES or status in _NODES_STATUSES
            return not is_nodes_own or meaning_of(text) is not Meaning.UNCLEAR
        case "eth_signTransaction":
            return code not in _BUSY_CODES
    return False


def _is_hex(data: Any) -> bool:
    """What a contract returned as it reverted; nodes give it as it is, or in an object."""
    given = data.get("data") if isinstance(data, dict) else data
    return isinstance(given, str) and given.startswith("0x") and len(given) > 2


def _chain_id(result: Any) -> int:
    try:
        return int(result, 16)
    except (TypeError, ValueError):
        raise _NotAnsweredError("its chain id is not a number") from None


def _checked(url: str, field: str) -> str:
    """https to anywhere; plain http only to this machine: whoever can change a reply decides who was paid."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise SettingsError(field, "not a URL") from None
    if parts.scheme not in ("http", "https") or not host or parts.fragment or not url.isascii():
        raise SettingsError(field, "must be a URL such as https://rpc.example")
    if parts.scheme == "http" and host not in PLAIN_HTTP_HOSTS:
        allowed = ", ".join(sorted(PLAIN_HTTP_HOSTS))
        raise SettingsError(field, f"must be https: plain http is allowed only to {allowed}")
    return url


def _host(url: str) -> str:
    """What may be shown of a URL: its path and query can hold a key."""
    return urlsplit(url).hostname or "?"


def _text(text: str, url: str) -> str:
    """A peer's words, made harmless: printable, short, and without what its URL may hold of a key: some repeat it."""
    for word in _KEY_LIKE.findall(url.partition("://")[2].partition("/")[2] + " " + (urlsplit(url).password or "")):
        text = text.replace(word, "***")
    return "".join(c for c in text[:_TEXT_LIMIT] if c.isprintable())
