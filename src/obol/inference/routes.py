"""The only doors: which method and path is which inference API. Everything else does not exist.

A raw path matches when it is, byte for byte, the canonical spelling of a door. A server behind us may decode, fold or
normalise a path in its own way (`/v1/chat%2Fcompletions` reaches the model on most), so no other spelling is let in,
and what goes upstream is our constant, never the client's bytes.

Query strings are not sent upstream, except these, each in its one spelling:
`api-version=<letters, digits, . and ->` for the OpenAI APIs (Azure's clients) and `beta=true` for Anthropic messages.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from urllib.parse import unquote_to_bytes

from obol.core.offer import OPENAI_APIS, Api

SALE_PATHS: Mapping[Api, str] = MappingProxyType(
    {
        Api.CHAT: "/v1/chat/completions",
        Api.COMPLETIONS: "/v1/completions",
        Api.EMBEDDINGS: "/v1/embeddings",
        Api.RESPONSES: "/v1/responses",
        Api.MESSAGES: "/v1/messages",
        Api.OLLAMA_CHAT: "/api/chat",
        Api.OLLAMA_GENERATE: "/api/generate",
        Api.OLLAMA_EMBED: "/api/embed",
    }
)
"""Where each API is sold, and the path that its sales go to upstream."""

MODELS_PATH = "/v1/models"

_API_OF_PATH = MappingProxyType({path: api for api, path in SALE_PATHS.items()})
_API_VERSION = re.compile(r"api-version=[0-9A-Za-z.-]{1,32}")
_BETA = re.compile(r"beta=true")
_SERVICE = re.compile(r"/services/([A-Za-z0-9][A-Za-z0-9_-]{0,62})(/[\x21-\x7e]*)")
_RAW_MODEL_ID = re.compile(r"(?:[A-Za-z0-9._~!$'()*+,=:@/-]|%[0-9A-Fa-f]{2}){1,768}")
_MODEL_ID_MAX_CHARS = 256


class RouteKind(StrEnum):
    """What a door leads to."""

    SALE = "sale"
    MODELS = "models"
    """The list of what is sold: free."""
    MODEL = "model"
    """One of them: free."""


@dataclass(frozen=True, slots=True)
class Route:
    """A matched door. `api` and `target` (path with the kept query, for upstream) are set for sales only."""

    kind: RouteKind
    api: Api | None = None
    target: str = ""
    model_id: str = ""
    """Decoded, for `RouteKind.MODEL`."""


def match(method: str, raw_target: str) -> Route | None:
    """The door of a request line's method and raw origin-form target (path, with or without query), or None: 404."""
    path, _, query = raw_target.partition("?")
    if method == "POST":
        api = _API_OF_PATH.get(path)
        return None if api is None else Route(RouteKind.SALE, api, SALE_PATHS[api] + _kept_query(api, query))
    if method not in {"GET", "HEAD"}:
        return None
    if path == MODELS_PATH:
        return Route(RouteKind.MODELS)
    if path.startswith(MODELS_PATH + "/"):
        model_id = _decode_model_id(path[len(MODELS_PATH) + 1 :])
        return None if model_id is None else Route(RouteKind.MODEL, model_id=model_id)
    return None


def split_service(raw_target: str) -> tuple[str, str] | None:
    """The offer name and the remaining raw target of `/services/<name>/…`; None when it is not of that form.

    For gateways behind an ingress that keeps the prefix. What remains is still only what `match` says it is.
    """
    found = _SERVICE.fullmatch(raw_target)
    return None if found is None else (found[1], found[2])


def _kept_query(api: Api, query: str) -> str:
    """The allowed parameter, with its question mark, or nothing; of two, the first."""
    allowed = _API_VERSION if api in OPENAI_APIS else _BETA if api is Api.MESSAGES else None
    if allowed is None or not query:
        return ""
    kept = next((part for part in query.split("&") if allowed.fullmatch(part)), None)
    return "" if kept is None else f"?{kept}"


def _decode_model_id(raw: str) -> str | None:
    """The model id of the path's rest: percent-decoded once, strict UTF-8, printable, no empty or dot segments."""
    if _RAW_MODEL_ID.fullmatch(raw) is None:
        return None
    try:
        model_id = unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        return None
    if len(model_id) > _MODEL_ID_MAX_CHARS or not model_id.isprintable():
        return None
    return None if {"", ".", ".."} & set(model_id.split("/")) else model_id
