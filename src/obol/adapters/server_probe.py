"""Asking a model server, over HTTP, what it is, what it offers, and how many tokens an input has.

For the start of a program and for checks before a sale, never for the answer itself. Redirects are not followed and
answers are read up to a bound. Error texts name the server's address: they are for the seller, not for a reply.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp

from obol.errors import (
    PeerProtocolError,
    UpstreamBrokenError,
    UpstreamError,
    UpstreamTimeoutError,
    UpstreamUnavailableError,
)
from obol.inference.input_size import input_bound
from obol.inference.request import InferenceRequest
from obol.inference.routes import MODELS_PATH
from obol.inference.servers import (
    PROBE_PATHS,
    ModelInfo,
    ProbeAnswer,
    ServerType,
    TokenizerCall,
    count_plan,
    detect,
    is_healthy,
    parse_count,
    parse_models,
    parse_template,
    text_call,
)

MAX_ANSWER_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ProbedServer:
    """What a server said about itself."""

    server_type: ServerType
    models: tuple[ModelInfo, ...]
    healthy: bool


class ServerProbe:
    """Questions to one model server, over kept connections.

    `auth` is the value of the Authorization header, e.g. "Bearer …"; None sends none. `timeout_s` is for each question.
    """

    def __init__(self, base_url: str, *, auth: str | None = None, timeout_s: float = 2.0) -> None:
        self._base_url = base_url.rstrip("/")
        self._headers = {"Accept-Encoding": "identity"}
        if auth is not None:
            self._headers["Authorization"] = auth
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        if self._session is not None:
            await self._session.close()

    async def probe(self) -> ProbedServer:
        """Find out what the server is.

        Raises `UpstreamUnavailableError` when there is no model server, it wants another credential, or it lists no
        models in OpenAI's format; `UpstreamTimeoutError` when it does not answer in time.
        """
        models = await self._get(MODELS_PATH)
        if models.status in {401, 403}:
            message = f"{self._base_url} wants a credential: it answered {models.status} to {MODELS_PATH}"
            raise UpstreamUnavailableError(message, reason="upstream_unauthorized")
        rest = await asyncio.gather(*(self._get_if_any(path) for path in PROBE_PATHS if path != MODELS_PATH))
        answers = {MODELS_PATH: models} | {path: answer for path, answer in rest if answer is not None}
        server_type = detect(answers)
        if server_type is None:
            raise UpstreamUnavailableError(self._no_model_server(models))
        return ProbedServer(server_type, self._models(models), is_healthy(server_type, answers))

    async def count_input_tokens(self, server_type: ServerType, request: InferenceRequest, served_model: str) -> int:
        """Exactly how many tokens the server makes of the input, by its own tokenizer and chat template.

        Raises `UpstreamError` with reason `not_countable` when the server or the request (images, audio, stored input)
        has no such count, and its subclasses when the server could not be asked or did not answer sensibly.
        """
        plan = None if input_bound(request) is None else count_plan(server_type, request, served_model)
        if plan is None:
            raise UpstreamError("the server has no tokenizer for this request", reason="not_countable")
        try:
            calls = plan.calls
            if plan.template is not None:
                text = parse_template(await self._post(plan.template))
                calls = (text_call(server_type, text, served_model),)
            return sum([parse_count(await self._post(call)) for call in calls])
        except PeerProtocolError as error:
            raise UpstreamBrokenError(str(error)) from error

    def _models(self, answer: ProbeAnswer) -> tuple[ModelInfo, ...]:
        if answer.status != 200:
            raise UpstreamUnavailableError(self._no_model_server(answer))
        try:
            return parse_models(answer.body)
        except PeerProtocolError as error:
            raise UpstreamUnavailableError(self._no_model_server(answer)) from error

    def _no_model_server(self, models: ProbeAnswer) -> str:
        hint = " (give the address without /v1)" if self._base_url.endswith("/v1") else ""
        return (
            f"{self._base_url} is not an OpenAI-compatible model server: it answered {models.status}"
            f" to {MODELS_PATH} and no list of models{hint}"
        )

    async def _get_if_any(self, path: str) -> tuple[str, ProbeAnswer | None]:
        """An answer that may be missing: the server lists models, whatever else it does not have."""
        try:
            return path, await self._get(path)
        except UpstreamError:
            return path, None

    async def _get(self, path: str) -> ProbeAnswer:
        return await self._ask("GET", path, None)

    async def _post(self, call: TokenizerCall) -> bytes:
        answer = await self._ask("POST", call.path, call.body)
        if answer.status in {404, 405, 501}:
            raise UpstreamError(f"the server has no {call.path}", reason="not_countable")
        if answer.status != 200:
            raise UpstreamBrokenError(f"the server answered {answer.status} to {call.path}")
        return answer.body

    async def _ask(self, method: str, path: str, body: bytes | None) -> ProbeAnswer:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout, auto_decompress=False)
        headers = self._headers if body is None else self._headers | {"Content-Type": "application/json"}
        url = self._base_url + path
        try:
            async with self._session.request(method, url, data=body, headers=headers, allow_redirects=False) as answer:
                content = await _read_bounded(answer)
                return ProbeAnswer(answer.status, _lower(answer.headers), content)
        except TimeoutError as error:
            raise UpstreamTimeoutError(f"{self._base_url} did not answer in time") from error
        except aiohttp.ClientConnectorError as error:
            message = f"nothing listens at {self._base_url}: start the model server, or correct the address"
            raise UpstreamUnavailableError(message) from error
        except aiohttp.ClientError as error:
            raise UpstreamUnavailableError(f"{self._base_url} does not answer as an HTTP server") from error


async def probe(base_url: str, *, auth: str | None = None, timeout_s: float = 2.0) -> ProbedServer:
    """`ServerProbe.probe`, once."""
    server = ServerProbe(base_url, auth=auth, timeout_s=timeout_s)
    try:
        return await server.probe()
    finally:
        await server.close()


async def _read_bounded(answer: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for chunk in answer.content.iter_any():
        content += chunk
        if len(content) > MAX_ANSWER_BYTES:
            answer.close()
            raise UpstreamBrokenError(f"the server's answer is longer than {MAX_ANSWER_BYTES} bytes")
    return bytes(content)


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}
