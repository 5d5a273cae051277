"""How many input tokens a request can hold at most, known without a tokenizer.

A token of a byte-level vocabulary stands for at least one byte, so text never has more tokens than UTF-8 bytes. The
bound is the size of the body's texts, lists and objects as compact JSON (no escapes but the necessary ones): names and
brackets count too, which is at least 28 bytes for a chat message and more than a chat template adds for one. Arrays of
token ids count one for each id. On top come the allowances below.

It is a bound, four times too high for English text: use it to accept, and to refuse only where the upstream has no
tokenizer. Images, audio, files and stored conversations have no bound that can be read off the request.
"""

import re
from typing import Any

import msgspec

from obol.core.offer import Api, RequestLimits
from obol.errors import MalformedRequestError
from obol.inference.request import InferenceRequest, LimitExceeded

REQUEST_ALLOWANCE = 64
"""Tokens for what a chat template puts around a request: begin mark, default system text, generation prompt."""

TEXT_ALLOWANCE = 4
"""The same for completions and embeddings, which have no template: begin and end marks."""

TOOLS_ALLOWANCE = 512
"""Tokens for what a chat template explains about calling tools."""

_NOT_INPUT = frozenset({"model", "stop", "user", "metadata", "logit_bias", "stream_options"})
_TOKEN_ARRAYS = ("prompt", "input", "context")
_ELSEWHERE = ("previous_response_id", "conversation", "prompt_embeds", "multimodal_data")
"""Fields that point to input which is not in the request."""

_MEDIA = re.compile(
    rb'"type":"(?:input_)?(?:image|image_url|audio|audio_url|video|video_url|file|document)"'
    rb'|"images":\[[^\]]|"multimodal_data":'
)


def input_bound(request: InferenceRequest) -> int | None:
    """An upper bound of the input tokens, or None where the request alone does not tell.

    Raises `MalformedRequestError` for text that is not valid UTF-8 or numbers out of range.
    """
    try:
        content: dict[str, Any] = msgspec.json.decode(request.body)
        token_ids = sum(_take_token_ids(content, name) for name in _TOKEN_ARRAYS)
        texts = {name: value for name, value in content.items() if _may_be_input(name, value)}
        compact = msgspec.json.encode(texts)
    except (msgspec.MsgspecError, UnicodeDecodeError, OverflowError, RecursionError) as error:
        message = "the request holds text or numbers that cannot be read"
        raise MalformedRequestError(message, reason="invalid_json") from error
    if not _is_text(content, compact):
        return None
    tools = TOOLS_ALLOWANCE if content.get("tools") or content.get("functions") else 0
    allowance = TEXT_ALLOWANCE if request.api in {Api.COMPLETIONS, Api.EMBEDDINGS} else REQUEST_ALLOWANCE
    return len(compact) + token_ids + allowance + tools


def check_input(
    request: InferenceRequest, limits: RequestLimits, *, counted: int | None = None
) -> LimitExceeded | None:
    """Whether the input is within the limit: by the tokenizer's count where there is one, else by the bound."""
    limit = limits.max_input_tokens
    if limit is None:
        return None
    tokens = input_bound(request) if counted is None else counted
    if tokens is None:
        message = "this offer limits input tokens, and the tokens of images, audio, files or stored input are not known"
        return LimitExceeded("input_not_countable", message, None)
    if tokens <= limit:
        return None
    amount = f"at most {tokens} (estimated)" if counted is None else str(tokens)
    message = f"the input is {amount} tokens; this offer allows {limit}"
    return LimitExceeded("input_limit_exceeded", message, None)


def _is_text(content: dict[str, Any], compact: bytes) -> bool:
    stored_prompt = "input" in content and isinstance(content.get("prompt"), dict)  # Responses: a prompt by its id
    return not stored_prompt and not any(content.get(name) for name in _ELSEWHERE) and _MEDIA.search(compact) is None


def _may_be_input(name: str, value: object) -> bool:
    return bool(value) and isinstance(value, str | list | dict) and name not in _NOT_INPUT


def _take_token_ids(content: dict[str, Any], name: str) -> int:
    """Count an array of token ids, or of such arrays, and empty it; 0 when it is something else."""
    value = content.get(name)
    if not isinstance(value, list) or not value:
        return 0
    arrays = value if isinstance(value[0], list) else [value]
    if not all(isinstance(array, list) and all(type(token) is int for token in array) for array in arrays):
        return 0
    content[name] = []
    return sum(map(len, arrays))
