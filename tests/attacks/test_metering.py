"""Metering attacks, against the whole gateway over sockets: what a request may ask for, and what usage is believed."""

from typing import Any

import pytest

from obol.core.offer import Api
from tests.fakes.model_answers import UsageReport
from tests.fakes.model_server import Behaviour
from tests.gateway.fixtures import MakeShop
from tests.gateway.shop import CHAT, MODEL, PROMPT, Answer, Shop, chat

ALL_APIS = frozenset(Api)
INPUT_WORDS = len(PROMPT.split())


def assert_refused(answer: Answer, reason: str, param: str | None) -> None:
    assert (answer.status, answer.reason) == (400, reason), answer
    assert answer.json["error"]["param"] == param
    assert not answer.asks_for_money


# ------------------------------------------------------------------------------------------------------------- usage


@pytest.mark.parametrize("stream", [False, True])
async def test_usage_that_the_server_reports_is_on_the_receipt(shop: Shop, stream: bool) -> None:
    shop.upstream.behaviour = Behaviour(tokens=7, usage=UsageReport.ALWAYS)
    receipt = await shop.receipt_in("settled", await shop.pay(chat(stream=stream)), delivery="complete")
    assert receipt["usage"] == {"inputTokens": INPUT_WORDS, "outputTokens": 7}


@pytest.mark.parametrize("stream", [False, True])
async def test_usage_that_nobody_reported_is_unknown_and_not_zero(shop: Shop, stream: bool) -> None:
    shop.upstream.behaviour = Behaviour(tokens=7, usage=UsageReport.ABSENT)
    receipt = await shop.receipt_in("settled", await shop.pay(chat(stream=stream)), delivery="complete")
    assert receipt["usage"] == {"inputTokens": None, "outputTokens": None}
    metrics = (await shop.get("/metrics")).body.decode()
    assert "gen_ai_client_token_usage_count" not in metrics, "an unknown is not observed as a number"


async def test_a_buyer_who_forbids_usage_gets_the_stream_and_unknown_usage(shop: Shop) -> None:
    options = {"stream_options": {"include_usage": False}}
    answer = await shop.pay(chat(stream=True, **options))
    assert b'"usage"' not in answer.body
    receipt = await shop.receipt_in("settled", answer, delivery="complete")
    assert receipt["usage"] == {"inputTokens": None, "outputTokens": None}
    assert shop.upstream.calls[0].json["stream_options"] == {"include_usage": False}


async def test_chunks_are_not_tokens(shop: Shop) -> None:
    shop.upstream.behaviour = Behaviour(tokens=4, split_bytes=3, usage=UsageReport.ALWAYS)
    receipt = await shop.receipt_in("settled", await shop.pay(chat(stream=True)), delivery="complete")
    assert receipt["usage"]["outputTokens"] == 4


async def test_usage_on_the_last_delta_is_found(shop: Shop) -> None:
    shop.upstream.behaviour = Behaviour(tokens=4, usage=UsageReport.LAST_DELTA)
    receipt = await shop.receipt_in("settled", await shop.pay(chat(stream=True)), delivery="complete")
    assert receipt["usage"]["outputTokens"] == 4


async def test_usage_in_the_text_of_a_model_is_not_believed(shop: Shop) -> None:
    text = ' "usage":{"prompt_tokens":999,"completion_tokens":999}'
    shop.upstream.behaviour = Behaviour(tokens=3, words=(text,), usage=UsageReport.ABSENT)
    for stream in (False, True):
        answer = await shop.pay(chat(stream=stream))
        receipt = await shop.receipt_in("settled", answer, delivery="complete")
        assert receipt["usage"] == {"inputTokens": None, "outputTokens": None}


# ------------------------------------------------------------------------------------------------------------ models


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"tiny","messages":[],"model":"dear"}',
        b'{"model":"dear","messages":[],"model":"tiny"}',
        b'{"model":"tiny","messages":[],"Model":"dear"}',
        b'{"model":"tiny","messages":[],"\\u006dodel":"dear"}',
        b'{"model":"tiny","max_tokens":1,"max_tokens":100000}',
        b'{"model":"tiny","max_tokens":1,"MAX_TOKENS":100000}',
    ],
)
async def test_an_object_that_two_parsers_read_differently_is_refused(make_shop: MakeShop, body: bytes) -> None:
    shop = await make_shop(max_output_tokens=10)
    answer = await shop.post(shop.payment(), body)
    assert answer.status == 400
    assert shop.upstream.calls == []
    assert await shop.ledger_rows() == []


@pytest.mark.parametrize("model", ["dear", "TINY", "tiny ", "", "tiny\0", "../tiny"])
async def test_only_sold_models_are_served(shop: Shop, model: str) -> None:
    for headers in ({}, shop.payment()):
        answer = await shop.post(headers, chat() | {"model": model})
        assert answer.status in (400, 404)
        assert not answer.asks_for_money
        if answer.status == 404:
            assert answer.json["error"]["code"] == "model_not_found"
            assert answer.json["error"]["param"] == "model"
    assert shop.upstream.calls == []


async def test_a_model_sold_under_another_name_is_asked_for_by_its_own(make_shop: MakeShop) -> None:
    shop = await make_shop(models=("shown=tiny",))
    assert (await shop.pay(chat())).status == 404, "its own name is not sold"
    answer = await shop.pay(chat() | {"model": "shown", "seed": 7})
    assert answer.status == 200
    assert shop.upstream.calls[0].json == chat() | {"model": "tiny", "seed": 7}
    assert (await shop.receipt(answer))["model"] == "shown"
    assert [model["id"] for model in (await shop.get("/v1/models")).json["data"]] == ["shown"]


# -------------------------------------------------------------------------------------------------------- output limit

LIMIT = 10
REQUESTS: dict[str, dict[str, Any]] = {
    CHAT: chat(),
    "/v1/completions": {"model": MODEL, "prompt": "hi"},
    "/v1/responses": {"model": MODEL, "input": "hi"},
    "/v1/messages": {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]},
    "/api/chat": {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": False},
    "/api/generate": {"model": MODEL, "prompt": "hi", "stream": False},
}
SPELLINGS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict", "num_predict")


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("path", REQUESTS)
async def test_more_output_is_refused_in_every_spelling_before_payment(
    make_shop: MakeShop, path: str, spelling: str
) -> None:
    shop = await make_shop(max_output_tokens=LIMIT, apis=ALL_APIS)
    for tokens in (LIMIT + 1, 0, -1, "5", 1.5, True, 10**30):
        answer = await shop.post(None, REQUESTS[path] | {spelling: tokens}, path=path)
        assert_refused(answer, "output_tokens_exceeded", spelling)
    within = await shop.post(None, REQUESTS[path] | {spelling: LIMIT}, path=path)
    assert within.status == 402


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
async def test_more_output_is_refused_in_ollamas_options(make_shop: MakeShop, path: str) -> None:
    shop = await make_shop(max_output_tokens=LIMIT, apis=ALL_APIS)
    for tokens in (LIMIT + 1, -1, -2, 0):
        answer = await shop.post(None, REQUESTS[path] | {"options": {"num_predict": tokens}}, path=path)
        assert_refused(answer, "output_tokens_exceeded", "options.num_predict")


@pytest.mark.parametrize("path", REQUESTS)
async def test_an_absent_limit_is_set_upstream(make_shop: MakeShop, path: str) -> None:
    shop = await make_shop(max_output_tokens=LIMIT, apis=ALL_APIS)
    shop.upstream.behaviour = Behaviour(tokens=1000)
    assert (await shop.pay(REQUESTS[path], path=path)).status == 200
    sent = shop.upstream.calls[0].json
    found = [sent.get(name) for name in SPELLINGS] + [sent.get("options", {}).get("num_predict")]
    assert LIMIT in found
    assert shop.upstream.calls[0].sent_tokens <= LIMIT


async def test_the_newer_spelling_is_repeated_where_a_server_may_ignore_it(make_shop: MakeShop) -> None:
    shop = await make_shop(max_output_tokens=LIMIT)
    await shop.pay(chat(max_completion_tokens=3))
    assert shop.upstream.calls[0].json["max_tokens"] == 3


@pytest.mark.parametrize("many", [{"n": 3}, {"best_of": 3}, {"n_cmpl": 3}])
async def test_several_completions_share_the_limit(make_shop: MakeShop, many: dict[str, Any]) -> None:
    shop = await make_shop(max_output_tokens=LIMIT)
    assert_refused(await shop.post(None, chat(max_tokens=4, **many)), "output_tokens_exceeded", "max_tokens")
    await shop.pay(chat(**many))
    assert shop.upstream.calls[0].json["max_tokens"] == LIMIT // 3


async def test_several_prompts_share_the_limit(make_shop: MakeShop) -> None:
    shop = await make_shop(max_output_tokens=LIMIT)
    body = {"model": MODEL, "prompt": ["one", "two", "three"], "max_tokens": 4}
    assert_refused(await shop.post(None, body, path="/v1/completions"), "output_tokens_exceeded", "max_tokens")


async def test_without_a_limit_the_buyers_bytes_pass_untouched(shop: Shop) -> None:
    body = b'{ "model" : "tiny",  "messages":[ {"role":"user","content":"\\u00e9"} ], "temperature": 1.0e0 }'
    assert (await shop.post(shop.payment(), body)).status == 200
    assert shop.upstream.calls[0].body == body


# --------------------------------------------------------------------------------------------------------- input limit


async def test_input_is_counted_exactly_by_the_servers_tokenizer(make_shop: MakeShop) -> None:
    shop = await make_shop(max_input_tokens=INPUT_WORDS)
    assert (await shop.post()).status == 402, "its bound is above the limit, its count is not"
    longer = chat() | {"messages": [{"role": "user", "content": PROMPT + " more"}]}
    answer = await shop.post(shop.payment(), longer)
    assert_refused(answer, "input_tokens_exceeded", None)
    assert f"is {INPUT_WORDS + 1} tokens" in answer.json["error"]["message"]
    assert shop.upstream.calls == []


async def test_input_within_the_bound_asks_no_tokenizer(make_shop: MakeShop) -> None:
    shop = await make_shop(max_input_tokens=10_000)
    assert (await shop.post()).status == 402
    assert not [request for request in shop.upstream.requests if request.path == "/tokenize"]
