"""What is known before payment: the offer's state, and the size, shape and limits of a request."""

import asyncio
import json
from typing import Any

import msgspec
import pytest

from tests.fakes.model_discovery import Flavour
from tests.fakes.model_server import FakeModelServer
from tests.fakes.raw_client import RawClient, chunked, head, post
from tests.gateway.fixtures import MakeShop
from tests.gateway.shop import CHAT, MODEL, Answer, Shop, chat

LIMIT = 2000


def body_of(size: int) -> bytes:
    """A chat request of exactly so many bytes."""
    empty = json.dumps(chat(pad="")).encode()
    return json.dumps(chat(pad="x" * (size - len(empty)))).encode()


def assert_refused(answer: Answer, status: int, reason: str, param: str | None = None) -> None:
    assert (answer.status, answer.reason, answer.json["error"]["param"]) == (status, reason, param), answer
    assert not answer.asks_for_money


# -------------------------------------------------------------------------------------------------------------- size


async def test_a_body_at_the_limit_passes_and_one_byte_more_is_413(make_shop: MakeShop) -> None:
    shop = await make_shop(max_body_bytes=LIMIT)
    assert (await shop.post(None, body_of(LIMIT))).status == 402
    assert_refused(await shop.post(shop.payment(), body_of(LIMIT + 1)), 413, "body_too_large")
    assert shop.upstream.calls == []


async def test_a_declared_gigabyte_is_refused_before_any_of_it_is_read(make_shop: MakeShop) -> None:
    shop = await make_shop(max_body_bytes=LIMIT)
    async with RawClient(shop.url) as client:
        await client.send(post(CHAT, b"", shop.payment(), length=10**9))
        answer = await client.answer()
    assert (answer.status, answer.json["reason"]) == (413, "body_too_large")


async def test_chunks_beyond_the_limit_are_refused_before_their_end(make_shop: MakeShop) -> None:
    shop = await make_shop(max_body_bytes=LIMIT)
    async with RawClient(shop.url) as client:
        await client.send(chunked(CHAT, *[b"x" * 500] * 5, headers=shop.payment(), end=False))
        assert (await client.answer()).status == 413


async def test_chunks_within_the_limit_are_a_body_like_any_other(shop: Shop) -> None:
    whole = msgspec.json.encode(chat())
    async with RawClient(shop.url) as client:
        await client.send(chunked(CHAT, *[bytes([byte]) for byte in whole], headers=shop.payment()))
        assert (await client.answer()).status == 200
    assert shop.upstream.calls[0].body == whole


async def test_a_client_that_asks_first_is_told_to_continue_only_when_its_body_is_welcome(make_shop: MakeShop) -> None:
    shop = await make_shop(max_body_bytes=LIMIT)
    fields = {"Host": "x", "Expect": "100-continue", **shop.payment()}
    whole = body_of(200)
    async with RawClient(shop.url) as client:
        await client.send(head("POST", CHAT, {**fields, "Content-Length": str(LIMIT + 1)}))
        assert (await client.answer()).status == 413
    async with RawClient(shop.url) as client:
        await client.send(head("POST", CHAT, {**fields, "Content-Length": str(len(whole))}))
        assert (await client.answer()).status == 100
        await client.send(whole)
        assert (await client.answer()).status == 200


@pytest.mark.parametrize("rest", [b"zz\r\n", b"-5\r\nhello\r\n", b"5\r\nhello!!\r\n0\r\n\r\n"])
async def test_framing_that_turns_into_nonsense_is_the_clients_mistake(make_shop: MakeShop, rest: bytes) -> None:
    shop = await make_shop(body_timeout_s=0.2)
    async with RawClient(shop.url) as client:
        await client.send(chunked(CHAT, b'{"model":', headers=shop.payment(), end=False))
        await asyncio.sleep(0.05)  # so that the head and the nonsense are read apart
        await client.send(rest)
        answer = await client.answer()
    assert answer.status in (400, 408), "the reader of a body is not told of its framing: its patience ends it"
    assert [line for line in shop.logged if line["level"] == "error"] == []
    assert await shop.ledger_rows() == []


async def test_a_client_that_leaves_in_the_middle_of_its_body_leaves_nothing_behind(shop: Shop) -> None:
    async with RawClient(shop.url) as client:
        await client.send(post(CHAT, b'{"model"', shop.payment(), length=1000))
    assert (await shop.pay()).status == 200
    await shop.until_states("settled")
    assert [line for line in shop.logged if line["level"] == "error"] == []


# ------------------------------------------------------------------------------------------------------------- shape


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"not json", None),
        (b"[]", None),
        (b"null", None),
        (b'{"messages":[]}', "model"),
        (b'{"model":7}', "model"),
        (b'{"model":"tiny","stream":"yes"}', "stream"),
        (b'{"model":"tiny","n":0}', "n"),
        (b'{"model":"tiny","n":1.5}', "n"),
        (b'{"model":"tiny","stream_options":7}', "stream_options"),
        (b"\xff\xfe", None),
        (b"[" * 100_000, None),
        (b'{"model":' * 50_000, None),
    ],
    ids=lambda value: repr(value)[:30],
)
async def test_what_cannot_be_read_is_refused_before_payment(shop: Shop, body: bytes, param: str | None) -> None:
    for headers in ({}, shop.payment()):
        assert_refused(await shop.post(headers, body), 400, "malformed_request", param)
    assert shop.upstream.calls == []
    assert await shop.ledger_rows() == []


async def test_an_unknown_model_is_refused_before_payment(shop: Shop) -> None:
    answer = await shop.post(None, chat() | {"model": "dear"})
    assert_refused(answer, 404, "model_not_found", "model")
    assert "'dear'" in answer.json["error"]["message"]


# ------------------------------------------------------------------------------------------------------ input tokens


async def generic(make_shop: MakeShop, **config: Any) -> tuple[Shop, FakeModelServer]:
    """A shop before a server that has no tokenizer."""
    server = FakeModelServer(models=(MODEL,), flavour=Flavour.GENERIC)
    await server.start()
    return await make_shop(upstream=server, **config), server


async def test_without_a_tokenizer_the_bound_decides(make_shop: MakeShop) -> None:
    shop, server = await generic(make_shop, max_input_tokens=300)
    assert (await shop.post()).status == 402
    long = chat() | {"messages": [{"role": "user", "content": "word " * 60}]}
    answer = await shop.post(None, long)
    assert_refused(answer, 400, "input_tokens_exceeded")
    assert "(estimated)" in answer.json["error"]["message"]
    await server.stop()


async def test_a_server_that_cannot_count_now_is_an_outage_and_not_a_refusal(make_shop: MakeShop) -> None:
    shop = await make_shop(max_input_tokens=5)
    shop.upstream.is_healthy = False
    answer = await shop.post()
    assert_refused(answer, 503, "upstream_down")
    assert answer.headers["Retry-After"]


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
async def test_input_that_nobody_can_count_is_refused_where_input_is_limited(make_shop: MakeShop, kind: str) -> None:
    shop = await make_shop(max_input_tokens=10_000)
    body = chat() | {"messages": [{"role": "user", "content": [{"type": kind, kind: {"url": "data:x"}}]}]}
    assert_refused(await shop.post(None, body), 400, "input_tokens_exceeded")


async def test_where_input_is_not_limited_nothing_is_counted(shop: Shop) -> None:
    body = chat() | {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}]}
    assert (await shop.post(None, body)).status == 402


# ------------------------------------------------------------------------------------------------------------- state


async def test_the_offers_state_comes_before_the_shape_of_a_request(make_shop: MakeShop) -> None:
    shop = await make_shop()
    await shop.upstream.stop()
    await shop.pay()
    for body in (b"not json", msgspec.json.encode(chat())):
        assert_refused(await shop.post(None, body), 503, "upstream_down")
