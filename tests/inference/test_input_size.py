"""The bound of the input tokens."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obol.core.offer import Api, RequestLimits
from obol.errors import MalformedRequestError
from obol.inference.input_size import REQUEST_ALLOWANCE, TEXT_ALLOWANCE, TOOLS_ALLOWANCE, check_input, input_bound
from obol.inference.request import read_request


def bound(api: Api = Api.CHAT, **fields: Any) -> int | None:
    return input_bound(read_request(api, json.dumps({"model": "m", **fields}).encode()))


def user(content: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": content}]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=4))
def test_no_text_has_more_tokens_than_the_bound(texts: list[str]) -> None:
    least = sum(len(text.encode()) for text in texts)
    found = bound(messages=[{"role": "user", "content": text} for text in texts])
    assert found is not None
    assert found >= least + 16 * len(texts)


def test_escapes_and_indentation_do_not_count() -> None:
    messages = user("é" * 100)
    escaped = json.dumps({"model": "m", "messages": messages}, indent=8).encode()
    plain = json.dumps({"model": "m", "messages": messages}, ensure_ascii=False).encode()
    assert input_bound(read_request(Api.CHAT, escaped)) == input_bound(read_request(Api.CHAT, plain))
    assert bound(messages=messages) == len('{"messages":[{"role":"user","content":""}]}') + 200 + REQUEST_ALLOWANCE


def test_tools_and_system_texts_count() -> None:
    tools = [{"type": "function", "function": {"name": "f", "description": "x" * 1000}}]
    found = bound(messages=user("a"), tools=tools)
    assert found is not None
    assert found > 1000 + TOOLS_ALLOWANCE
    assert (bound(Api.MESSAGES, system="y" * 500, messages=[]) or 0) > 500
    assert (bound(Api.RESPONSES, instructions="y" * 500, input="a") or 0) > 500


@pytest.mark.parametrize("prompt", [list(range(500)), [list(range(250)), list(range(250))]])
def test_token_ids_count_one_each(prompt: object) -> None:
    assert bound(Api.COMPLETIONS, prompt=prompt, temperature=0.5) == 500 + TEXT_ALLOWANCE + len("{}")


def test_parameters_are_not_input() -> None:
    assert bound(prompt="", stop=["x" * 500], user="u" * 500) == REQUEST_ALLOWANCE + len("{}")


@pytest.mark.parametrize(
    ("api", "fields"),
    [
        (Api.CHAT, {"messages": user([{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}])}),
        (Api.CHAT, {"messages": user([{"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}])}),
        (Api.RESPONSES, {"input": user([{"type": "input_image", "image_url": "x"}])}),
        (Api.RESPONSES, {"input": "a", "previous_response_id": "resp_1"}),
        (Api.RESPONSES, {"input": "a", "conversation": "conv_1"}),
        (Api.RESPONSES, {"input": "a", "prompt": {"id": "pmpt_1"}}),
        (Api.MESSAGES, {"messages": user([{"type": "document", "source": {"type": "text", "data": "x"}}])}),
        (Api.OLLAMA_CHAT, {"messages": [{"role": "user", "content": "a", "images": ["AAAA"]}]}),
        (Api.COMPLETIONS, {"prompt": {"prompt_string": "a", "multimodal_data": ["AA"]}}),
    ],
)
def test_what_cannot_be_read_off_the_request_has_no_bound(api: Api, fields: dict[str, Any]) -> None:
    assert bound(api, **fields) is None


def test_an_escaped_media_type_does_not_hide() -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":[{"type":"image\\u005furl","image_url":{"url":"x"}}]}]}'
    assert input_bound(read_request(Api.CHAT, body)) is None


def test_tools_that_are_about_files_are_text() -> None:
    schema = {"type": "object", "properties": {"file": {"type": "string"}, "image": {"type": "string"}}}
    assert bound(messages=user('{"type":"image"}'), tools=[{"type": "function", "parameters": schema}]) is not None


def test_text_that_is_not_utf8_is_refused() -> None:
    asked = read_request(Api.CHAT, b'{"model":"m","messages":[{"content":"\xff"}]}')
    with pytest.raises(MalformedRequestError):
        input_bound(asked)


def test_the_tokenizers_count_decides_where_there_is_one() -> None:
    asked = read_request(Api.CHAT, json.dumps({"model": "m", "messages": user("a" * 400)}).encode())
    limits = RequestLimits(max_input_tokens=300)
    assert check_input(asked, limits, counted=300) is None
    found = check_input(asked, limits, counted=301)
    assert found is not None
    assert (found.reason, "301" in found.message) == ("input_limit_exceeded", True)
    by_bound = check_input(asked, limits)
    assert by_bound is not None
    assert by_bound.reason == "input_limit_exceeded"


def test_unknown_input_is_refused_under_a_limit_only() -> None:
    asked = read_request(Api.RESPONSES, b'{"model":"m","input":"a","previous_response_id":"r"}')
    found = check_input(asked, RequestLimits(max_input_tokens=10**9))
    assert found is not None
    assert found.reason == "input_not_countable"
    assert check_input(asked, RequestLimits()) is None
