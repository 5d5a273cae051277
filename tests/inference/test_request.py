"""What a request asks for, the limits, and the body that goes upstream."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obol.core.offer import Api, Model, RequestLimits
from obol.errors import MalformedRequestError
from obol.inference.request import InferenceRequest, check_limits, prepare_body, read_request

SAME = Model("m", "m")
UNLIMITED = RequestLimits()
GENERATING = [api for api in Api if api not in {Api.EMBEDDINGS, Api.OLLAMA_EMBED}]


def request(api: Api = Api.CHAT, **fields: Any) -> InferenceRequest:
    return read_request(api, json.dumps({"model": "m", **fields}).encode())


def refusal(body: bytes | dict[str, Any], api: Api = Api.CHAT) -> tuple[str, str | None]:
    with pytest.raises(MalformedRequestError) as caught:
        read_request(api, body if isinstance(body, bytes) else json.dumps(body).encode())
    return caught.value.reason, caught.value.param


def limited(asked: InferenceRequest, limit: int = 100) -> tuple[str, str | None] | None:
    found = check_limits(asked, RequestLimits(max_output_tokens=limit))
    return None if found is None else (found.reason, found.param)


def prepared(asked: InferenceRequest, limit: int | None = 100, model: Model = SAME) -> dict[str, Any]:
    content = json.loads(prepare_body(asked, model, RequestLimits(max_output_tokens=limit)))
    assert isinstance(content, dict)
    return content


def test_the_model_and_stream_are_read() -> None:
    asked = request(stream=True, stream_options={"include_usage": False})
    assert (asked.model, asked.stream, asked.include_usage, asked.choices) == ("m", True, False, 1)


@pytest.mark.parametrize("stream", [{}, {"stream": None}])
def test_ollama_streams_unless_told_not_to(stream: dict[str, Any]) -> None:
    assert request(Api.OLLAMA_CHAT, **stream).stream
    assert request(Api.OLLAMA_GENERATE, **stream).stream
    assert not request(Api.OLLAMA_CHAT, stream=False).stream
    assert not request(Api.CHAT, **stream).stream


@pytest.mark.parametrize("api", [Api.EMBEDDINGS, Api.OLLAMA_EMBED])
def test_embeddings_are_never_a_stream(api: Api) -> None:
    assert not request(api, stream=True).stream


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, ("missing_required_parameter", "model")),
        ({"model": None}, ("invalid_type", "model")),
        ({"model": 1}, ("invalid_type", "model")),
        ({"model": ""}, ("invalid_type", "model")),
        ({"model": ["m"]}, ("invalid_type", "model")),
        (b'{"model":"\xff"}', ("invalid_type", "model")),
        ({"model": "m", "stream": 1}, ("invalid_type", "stream")),
        ({"model": "m", "stream": "true"}, ("invalid_type", "stream")),
        ({"model": "m", "n": 0}, ("invalid_value", "n")),
        ({"model": "m", "n": True}, ("invalid_type", "n")),
        ({"model": "m", "n": 1.0}, ("invalid_type", "n")),
        ({"model": "m", "best_of": "3"}, ("invalid_type", "best_of")),
        ({"model": "m", "options": []}, ("invalid_type", "options")),
        (b'{"model":"m","options":{"num_predict":1,"num_predict":-1}}', ("duplicate_parameter", "num_predict")),
        ({"model": "m", "stream_options": 1}, ("invalid_type", "stream_options")),
        ({"model": "m", "stream_options": {"include_usage": 1}}, ("invalid_type", "stream_options.include_usage")),
        ({"model": "m", "Model": "x"}, ("invalid_parameter_name", "model")),
        ({"model": "m", "MAX_TOKENS": 9}, ("invalid_parameter_name", "max_tokens")),
        (b'{"model":"m","max_tokens":1,"max_tokens":9}', ("duplicate_parameter", "max_tokens")),
        (b'{"model":"m","messages":[],"mess\\u0061ges":[1]}', ("duplicate_parameter", None)),
        (b"[" * 200_000, ("invalid_json", None)),
        (b'{"model":' + b"[" * 200_000, ("invalid_json", None)),
    ],
)
def test_a_request_that_cannot_be_read_is_refused(
    body: bytes | dict[str, Any], expected: tuple[str, str | None]
) -> None:
    assert refusal(body) == expected


def test_prompts_are_not_in_the_repr() -> None:
    assert "secret" not in repr(request(messages=[{"role": "user", "content": "secret"}]))


@pytest.mark.parametrize(
    "name", ["max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict", "num_predict"]
)
@pytest.mark.parametrize("api", GENERATING)
def test_every_spelling_of_the_output_limit_is_checked_on_every_api(api: Api, name: str) -> None:
    assert limited(request(api, **{name: 100})) is None
    assert limited(request(api, **{name: 101})) == ("output_limit_exceeded", name)


@pytest.mark.parametrize("api", GENERATING)
def test_the_option_of_ollama_is_checked_on_every_api(api: Api) -> None:
    assert limited(request(api, options={"num_predict": 100})) is None
    assert limited(request(api, options={"num_predict": 101})) == ("output_limit_exceeded", "options.num_predict")


@pytest.mark.parametrize("value", [0, -1, -2, 1.5, 100.0, "5", True, [], {}, 10**30, 1e300])
def test_an_output_limit_that_may_mean_none_is_refused(value: object) -> None:
    for asked in (request(max_tokens=value), request(Api.OLLAMA_CHAT, options={"num_predict": value})):
        found = limited(asked)
        assert found is not None
        assert found[0] in {"invalid_output_limit", "output_limit_exceeded"}


def test_several_spellings_are_each_checked_and_the_largest_counts() -> None:
    asked = request(max_tokens=5, max_completion_tokens=101)
    assert asked.max_output_tokens == 101
    assert limited(asked) == ("output_limit_exceeded", "max_completion_tokens")


def test_null_is_absent() -> None:
    asked = request(max_tokens=None, n=None, options=None, stream_options=None)
    assert asked.output_asked == ()
    assert limited(asked) is None


@pytest.mark.parametrize("name", ["n", "n_cmpl", "best_of"])
def test_completions_multiply_the_output(name: str) -> None:
    assert limited(request(Api.CHAT, max_tokens=50, **{name: 2})) is None
    assert limited(request(Api.CHAT, max_tokens=51, **{name: 2})) == ("output_limit_exceeded", "max_tokens")
    assert limited(request(Api.CHAT, **{name: 101})) == ("output_limit_exceeded", "n")


@pytest.mark.parametrize(
    ("prompt", "choices"),
    [
        ("a", 1),
        (["a"], 1),
        (["a", "b"], 2),
        ([1, 2, 3], 1),
        ([[1], [2, 3]], 2),
        ([], 1),
        ([12, "a", 3], 1),
        ([1, 10**30], 1),
    ],
)
def test_several_prompts_multiply_the_output(prompt: object, choices: int) -> None:
    assert request(Api.COMPLETIONS, prompt=prompt).choices == choices
    assert request(Api.COMPLETIONS, prompt=prompt, n=3).choices == 3 * choices


def test_without_a_limit_nothing_is_refused() -> None:
    assert check_limits(request(max_tokens=-1, n=1000), UNLIMITED) is None


@pytest.mark.parametrize("api", [Api.EMBEDDINGS, Api.OLLAMA_EMBED])
def test_embeddings_have_no_output_limit(api: Api) -> None:
    asked = request(api, max_tokens=-1)
    assert limited(asked) is None
    assert prepare_body(asked, SAME, RequestLimits(max_output_tokens=5)) is asked.body


@pytest.mark.parametrize("api", list(Api))
def test_the_body_is_the_clients_own_unless_it_must_change(api: Api) -> None:
    asked = request(api, temperature=0.1)
    assert prepare_body(asked, SAME, UNLIMITED) is asked.body


@pytest.mark.parametrize(
    ("api", "expected"),
    [
        (Api.CHAT, {"max_tokens": 100}),
        (Api.COMPLETIONS, {"max_tokens": 100}),
        (Api.RESPONSES, {"max_output_tokens": 100}),
        (Api.MESSAGES, {"max_tokens": 100}),
        (Api.OLLAMA_CHAT, {"options": {"num_predict": 100}}),
        (Api.OLLAMA_GENERATE, {"options": {"num_predict": 100}}),
    ],
)
def test_an_absent_output_limit_is_set_in_the_spelling_that_servers_obey(api: Api, expected: dict[str, Any]) -> None:
    assert prepared(request(api)) == {"model": "m"} | expected
    obeyed = request(api, **expected)
    assert prepare_body(obeyed, SAME, RequestLimits(max_output_tokens=100)) is obeyed.body


def test_other_options_of_ollama_stay() -> None:
    asked = request(Api.OLLAMA_CHAT, options={"seed": 1, "num_predict": None})
    assert prepared(asked)["options"] == {"seed": 1, "num_predict": 100}


def test_a_spelling_that_some_servers_ignore_is_repeated_in_the_obeyed_one() -> None:
    assert prepared(request(max_completion_tokens=7))["max_tokens"] == 7
    assert prepared(request(Api.RESPONSES, max_tokens=7))["max_output_tokens"] == 100


def test_the_limit_is_shared_among_completions() -> None:
    assert prepared(request(n=3))["max_tokens"] == 33


def test_the_served_model_replaces_the_public_one() -> None:
    assert prepared(request(), limit=None, model=Model("m", "served/é")) == {"model": "served/é"}


def test_usage_in_the_stream_is_left_as_the_client_wrote_it() -> None:
    asked = request(stream=True, stream_options={"include_usage": False})
    assert prepared(asked)["stream_options"] == {"include_usage": False}
    assert "stream_options" not in prepared(request(stream=True))


def test_a_changed_body_keeps_the_other_values_to_the_byte() -> None:
    body = '{"model":"m" , "big":123456789012345678901234567890,"f":1.10,"e":1e400,"u":"é\\u00e9😀","o":{"a":1, "a":2}}'
    changed = prepare_body(read_request(Api.CHAT, body.encode()), Model("m", "x"), RequestLimits(max_output_tokens=5))
    expected = (
        '{"model":"x","big":123456789012345678901234567890,"f":1.10,"e":1e400,'
        '"u":"é\\u00e9😀","o":{"a":1, "a":2},"max_tokens":5}'
    )
    assert changed.decode() == expected


output_values = st.none() | st.integers(-3, 300) | st.floats(0, 300) | st.sampled_from(["9", True, "", -1])


@given(
    st.sampled_from(GENERATING),
    st.dictionaries(
        st.sampled_from(["max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict"]), output_values
    ),
    st.none() | output_values,
    st.integers(1, 5),
    st.integers(1, 200),
)
def test_no_accepted_request_can_generate_more_than_the_limit(
    api: Api, asked: dict[str, Any], option: object, n: int, limit: int
) -> None:
    read = request(api, **asked, n=n, options={"num_predict": option})
    limits = RequestLimits(max_output_tokens=limit)
    if check_limits(read, limits) is not None:
        return
    body = json.loads(prepare_body(read, SAME, limits))
    spellings = [*asked, "max_tokens", "max_output_tokens"]
    present = [body[name] for name in spellings if body.get(name) is not None]
    if body["options"]["num_predict"] is not None:
        present.append(body["options"]["num_predict"])
    assert present
    assert all(type(value) is int and 1 <= value * n <= limit for value in present)


@pytest.mark.parametrize("api", [Api.OLLAMA_CHAT, Api.OLLAMA_GENERATE, Api.OLLAMA_EMBED])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"keep_alive": 0}, "keep_alive"),
        ({"keep_alive": "1h"}, "keep_alive"),
        ({"options": {"num_ctx": 262144}}, "options.num_ctx"),
        ({"options": {"temperature": 0, "num_gpu": 0}}, "options.num_gpu"),
    ],
)
def test_a_buyer_cannot_make_ollama_unload_or_reload_its_model(api: Api, fields: dict[str, Any], param: str) -> None:
    assert refusal({"model": "m", **fields}, api) == ("not_for_sale", param)


def test_other_ollama_options_are_the_buyers() -> None:
    assert request(Api.OLLAMA_CHAT, options={"temperature": 0.5, "seed": 1}).model == "m"
