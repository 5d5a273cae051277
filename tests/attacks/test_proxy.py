"""Proxy attacks, against the whole gateway over sockets: no free way to the upstream, nothing carried across."""

import asyncio
import gzip
import json
import zlib
from typing import Any

import aiohttp
import pytest

from obol.core.offer import Api
from tests.fakes.model_server import Behaviour, FakeModelServer
from tests.fakes.raw_client import RawAnswer, RawClient, chunked, head, post
from tests.fakes.raw_server import FINISH, RESET, Part, RawConnection, RawServer
from tests.gateway.fixtures import MakeShop
from tests.gateway.shop import CHAT, MODEL, Shop, chat

BODY = json.dumps(chat()).encode()


async def raw(shop: Shop, data: bytes) -> RawAnswer:
    """One raw request on a connection of its own, and its answer."""
    async with RawClient(shop.url) as client:
        await client.send(data)
        return await client.answer()


def assert_upstream_untouched(shop: Shop) -> None:
    """Nothing but our own questions at the start reached the upstream."""
    assert [request.raw_path for request in shop.upstream.requests if request.method != "GET"] == []
    assert shop.upstream.calls == []


# ------------------------------------------------------------------------------------------------------------- paths

TRICKS = [
    "/v1/chat%2Fcompletions",
    "/v1%2fchat/completions",
    "/v1/chat/%63ompletions",
    "/v1/chat/completions/",
    "/v1/chat/completions%3F",
    "/v1/chat/completions%00",
    "/v1/chat/completions;x=1",
    "/v1/chat//completions",
    "//v1/chat/completions",
    "/./v1/chat/completions",
    "/v1/./chat/completions",
    "/v1/models/../chat/completions",
    "/v1/models/..%2fchat/completions",
    "/x/../v1/chat/completions",
    "/v1/chat/completions/..",
    "/V1/chat/completions",
    "/v1/Chat/Completions",
    "/v1\\chat\\completions",
    "/v1/chat/completions#x",
    "/services/other/v1/chat/completions",
    "/services/inference//v1/chat/completions",
    "/services/inference/../v1/chat/completions",
    "/services/inference/api/generate",
    "/services/inference",
    "http://127.0.0.1/v1/chat/completions",
    "http://127.0.0.1:1/",
    "/tokenize",
    "/props",
    "/slots",
    "/metrics",
    "/v1/load_lora_adapter",
    "/v1/audio/speech",
    "/",
    "*",
]


@pytest.mark.parametrize("path", TRICKS)
async def test_another_spelling_of_a_path_is_404_even_with_a_payment(shop: Shop, path: str) -> None:
    answer = await raw(shop, post(path, BODY, shop.payment()))
    assert answer.status in (400, 404), answer
    assert_upstream_untouched(shop)
    assert await shop.ledger_rows() == []


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "post", "PROPFIND"])
async def test_other_methods_are_not_sold(shop: Shop, method: str) -> None:
    fields = {"Host": "shop", "Content-Length": str(len(BODY)), **shop.payment()}
    async with RawClient(shop.url) as client:
        await client.send(head(method, CHAT, fields) + BODY)
        answer = await client.answer(has_body=method != "HEAD")
    assert answer.status in (400, 404), answer
    assert_upstream_untouched(shop)


async def test_connect_opens_no_tunnel(shop: Shop) -> None:
    async with RawClient(shop.url) as client:
        await client.send(head("CONNECT", f"127.0.0.1:{shop.upstream.port}", {"Host": "x"}))
        assert (await client.answer()).status == 404
        await client.send(post(CHAT, BODY))
    assert_upstream_untouched(shop)


NATIVE = {"/api/chat": Api.OLLAMA_CHAT, "/api/generate": Api.OLLAMA_GENERATE, "/api/embed": Api.OLLAMA_EMBED}
NATIVE_BODIES: dict[str, dict[str, Any]] = {
    "/api/chat": {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]},
    "/api/generate": {"model": MODEL, "prompt": "hi"},
    "/api/embed": {"model": MODEL, "input": "hi"},
}


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", path) for path in (*NATIVE, "/api/pull", "/api/push", "/api/create", "/api/copy", "/api/show")]
    + [("DELETE", "/api/delete"), ("GET", "/api/tags"), ("GET", "/api/ps"), ("GET", "/api/version")],
)
async def test_native_apis_are_closed(shop: Shop, method: str, path: str) -> None:
    fields = {"Host": "shop", "Content-Length": str(len(BODY)), **shop.payment()}
    assert (await raw(shop, head(method, path, fields) + BODY)).status == 404
    assert path not in [request.path for request in shop.upstream.requests if request.method != "GET"]
    assert await shop.ledger_rows() == []


@pytest.mark.parametrize("path", NATIVE)
async def test_native_apis_work_once_sold_and_alone(make_shop: MakeShop, path: str) -> None:
    shop = await make_shop(apis=frozenset({NATIVE[path]}))
    assert (await shop.pay(NATIVE_BODIES[path], path=path)).status == 200
    for other in (CHAT, *(set(NATIVE) - {path}), "/api/pull"):
        assert (await shop.post(shop.payment(), NATIVE_BODIES.get(other, chat()), path=other)).status == 404
    assert [call.path for call in shop.upstream.calls] == [path]


async def test_what_reaches_the_upstream_is_our_path_without_the_query(shop: Shop) -> None:
    answer = await shop.pay(path=f"{CHAT}?key=secret&x=1")
    assert answer.status == 200
    assert [call.raw_path for call in shop.upstream.calls] == [CHAT]


# --------------------------------------------------------------------------------------------------------- smuggling


def smuggled(payment: dict[str, str]) -> dict[str, bytes]:
    """Requests that two parsers may cut differently; each has a second request inside."""
    hidden = post(CHAT, BODY)
    both = {**payment, "Transfer-Encoding": "chunked", "Content-Length": "6"}
    fields = {"Host": "shop", **payment}
    lf = head("POST", CHAT, {**fields, "Content-Length": str(len(BODY))}).replace(b"\r\n", b"\n") + BODY
    return {
        "te_and_cl": head("POST", CHAT, {**fields, **both}) + b"0\r\n\r\n" + hidden,
        "cl_and_te": post(CHAT, BODY, {**payment, "Transfer-Encoding": "identity"}) + hidden,
        "two_lengths": head("POST", CHAT, {**fields, "Content-Length": f"{len(BODY)}\r\nContent-Length: 0"}) + BODY,
        "length_list": head("POST", CHAT, {**fields, "Content-Length": f"{len(BODY)}, {len(BODY)}"}) + BODY + hidden,
        "length_plus": head("POST", CHAT, {**fields, "Content-Length": f"+{len(BODY)}"}) + BODY + hidden,
        "length_hex": head("POST", CHAT, {**fields, "Content-Length": hex(len(BODY))}) + BODY + hidden,
        "length_minus": head("POST", CHAT, {**fields, "Content-Length": "-1"}) + BODY,
        "blank_before_colon": head("POST", CHAT, {**fields, "Content-Length ": str(len(BODY))}) + BODY + hidden,
        "bare_lf": lf + hidden,
        "bare_cr": head("POST", CHAT, {**fields, "X": "a\rContent-Length: 5"}) + BODY,
        "folded": head("POST", CHAT, {**fields, "Transfer-Encoding": "\r\n chunked"}) + b"0\r\n\r\n" + hidden,
        "te_x": head("POST", CHAT, {**fields, "Transfer-Encoding": "xchunked"}) + b"0\r\n\r\n" + hidden,
        "te_twice": head("POST", CHAT, {**fields, "Transfer-Encoding": "chunked, chunked"}) + b"0\r\n\r\n" + hidden,
        "nul": head("POST", CHAT, {**fields, "X": "a\0b", "Content-Length": str(len(BODY))}) + BODY,
        "chunk_lf": chunked(CHAT, BODY, headers=payment).replace(b"0\r\n\r\n", b"0\n\n") + hidden,
        "chunk_ext_lf": chunked(CHAT, BODY, headers=payment).replace(b"%x\r\n" % len(BODY), b"%x;a\n" % len(BODY)),
        "chunk_negative": chunked(CHAT, headers=payment, end=False) + b"-1\r\n" + BODY + b"\r\n0\r\n\r\n" + hidden,
        "chunk_huge": chunked(CHAT, headers=payment, end=False) + b"f" * 17 + b"\r\n" + BODY + b"\r\n0\r\n\r\n",
        "chunk_0x": chunked(CHAT, headers=payment, end=False) + b"0x5\r\n12345\r\n0\r\n\r\n" + hidden,
        "two_hosts": head("POST", CHAT, {**fields, "Host": f"a\r\nHost: b\r\nContent-Length: {len(BODY)}"}) + BODY,
        "payment_twice": post(CHAT, BODY, {**payment, "X": "1\r\n" + head("", "", payment).decode().split("\r\n")[1]}),
    }


@pytest.mark.parametrize("case", sorted(smuggled({"X-PAYMENT": "x"})))
async def test_a_request_that_two_parsers_may_cut_differently_is_refused(shop: Shop, case: str) -> None:
    async with RawClient(shop.url) as client:
        await client.send(smuggled(shop.payment())[case])
        answer = await client.answer()
        assert answer.status == 400, answer
        if case != "payment_twice":
            assert await client.rest() == b"", "the connection ends: what follows has no meaning"
    assert_upstream_untouched(shop)
    assert await shop.ledger_rows() == []


async def test_what_is_not_http_is_answered_and_logged_without_its_bytes(shop: Shop) -> None:
    secret = "s3cret-payment"
    answer = await raw(shop, f"POST {CHAT} HTTP/1.1\nPAYMENT-SIGNATURE: {secret}\n\n".encode())
    assert answer.status == 400
    assert answer.json["reason"] == "malformed_request"
    assert answer.json["request_id"] == answer.header("X-Request-Id")
    assert secret.encode() not in answer.body
    assert secret not in repr(shop.logged)


async def test_one_payment_pipelined_twice_is_one_request_upstream(shop: Shop) -> None:
    request = post(CHAT, BODY, shop.payment())
    async with RawClient(shop.url) as client:
        await client.send(request * 3)
        statuses = [(await client.answer()).status for _ in range(3)]
    assert statuses == [200, 409, 409]
    assert len(shop.upstream.calls) == 1


async def test_a_pipelined_request_does_not_inherit_the_payment_of_the_one_before(shop: Shop) -> None:
    async with RawClient(shop.url) as client:
        await client.send(post(CHAT, BODY, shop.payment()) + post(CHAT, BODY))
        assert [(await client.answer()).status for _ in range(2)] == [200, 402]
    assert len(shop.upstream.calls) == 1


async def test_chunk_extensions_and_trailers_go_nowhere(shop: Shop) -> None:
    size = b"%x" % len(BODY)
    start = chunked(CHAT, headers={**shop.payment(), "Trailer": "X-PAYMENT"}, end=False)
    data = start + size + b';a="b";c\r\n' + BODY + b"\r\n0\r\nX-Trailing: secret\r\n\r\n"
    assert (await raw(shop, data)).status == 200
    call = shop.upstream.calls[0]
    assert call.body == BODY
    assert call.header("Content-Length") == str(len(BODY))
    assert call.header("X-Trailing") is call.header("Trailer") is call.header("Transfer-Encoding") is None


async def test_an_upgrade_is_not_made_and_what_follows_is_not_tunnelled(shop: Shop) -> None:
    upgrade = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABk"}
    answer = await raw(shop, post(CHAT, BODY, {**shop.payment(), **upgrade}))
    assert answer.status in (200, 400), "the body may or may not be read; nothing is switched"
    assert answer.header("Upgrade") is None
    for call in shop.upstream.calls:
        assert call.header("Upgrade") is call.header("HTTP2-Settings") is None


# ------------------------------------------------------------------------------------------- headers to the upstream


async def test_payment_credentials_and_hop_by_hop_headers_never_reach_the_upstream(make_shop: MakeShop) -> None:
    shop = await make_shop(upstream_authorization="Bearer sellers-own")
    forbidden = {
        "Authorization": "Bearer buyers-own",
        "X-Api-Key": "key",
        "Api-Key": "key",
        "Cookie": "session=1",
        "Proxy-Authorization": "Basic x",
        "Connection": "close, Accept, X-Secret",
        "X-Secret": "1",
        "Keep-Alive": "timeout=5",
        "TE": "trailers",
        "X-Forwarded-For": "192.0.2.1",
        "X-Forwarded-Host": "evil.example",
        "Forwarded": "for=192.0.2.1",
        "X-Real-IP": "192.0.2.1",
        "X-PAYMENT-EXTRA": "1",
        "Accept-Encoding": "gzip",
        "Range": "bytes=0-1",
        "X-Request-Id": "chosen-by-the-buyer",
    }
    answer = await raw(shop, post(CHAT, BODY, {**shop.payment(), **forbidden, "Accept": "application/json"}))
    assert answer.status == 200
    sent = {name.lower(): value for name, value in shop.upstream.calls[0].headers}
    assert sent.pop("authorization") == "Bearer sellers-own"
    assert sent.pop("x-request-id") == answer.header("X-Request-Id") != "chosen-by-the-buyer"
    assert set(sent) <= {"host", "content-type", "content-length", "accept"}
    assert sent["host"] == f"127.0.0.1:{shop.upstream.port}"
    assert not set(forbidden.values()) & set(sent.values())


@pytest.mark.parametrize("version", [1, 2])
async def test_neither_payment_header_reaches_the_upstream(shop: Shop, version: int) -> None:
    assert (await shop.pay(version=version)).status == 200
    names = {name.lower() for name, _ in shop.upstream.calls[0].headers}
    assert not {name for name in names if "payment" in name}


async def test_without_a_credential_of_the_seller_none_is_sent(shop: Shop) -> None:
    await shop.post({**shop.payment(), "Authorization": "Bearer buyers-own"})
    assert shop.upstream.calls[0].header("Authorization") is None


FORGED = {
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Prefix": "/evil",
    "X-Forwarded-Port": "1",
    "X-Original-URL": "/evil",
    "X-Rewrite-URL": "/evil",
    "Forwarded": "host=evil.example;proto=https",
}


async def test_forwarding_headers_are_not_believed(shop: Shop) -> None:
    answer = await shop.post({**FORGED, "Host": "shop.example"})
    assert answer.challenge.resource.url == f"http://shop.example{CHAT}"
    assert answer.json["accepts"][0]["resource"] == f"http://shop.example{CHAT}"
    assert b"evil" not in answer.body


async def test_the_public_url_of_the_seller_wins_over_the_host_header(make_shop: MakeShop) -> None:
    shop = await make_shop(public_url="https://sells.example/llm/")
    answer = await shop.post({**FORGED, "Host": "evil.example"})
    assert answer.challenge.resource.url == f"https://sells.example/llm{CHAT}"


async def test_a_request_without_a_host_gets_no_internal_name(shop: Shop) -> None:
    answer = await raw(shop, f"POST {CHAT} HTTP/1.0\r\nContent-Length: {len(BODY)}\r\n\r\n".encode() + BODY)
    assert answer.status == 402
    assert answer.json["accepts"][0]["resource"] == f"http://127.0.0.1{CHAT}"


# ---------------------------------------------------------------------------------------------- headers to the buyer

INTERNAL = {
    "Server": "vllm/0.1 internal-host",
    "Set-Cookie": "session=internal-host",
    "Location": "http://internal-host/",
    "Content-Location": "http://internal-host/",
    "Via": "1.1 internal-host",
    "X-Backend": "internal-host",
    "X-Powered-By": "internal-host",
    "Link": "<http://internal-host/>",
    "WWW-Authenticate": "Basic realm=internal-host",
    "Alt-Svc": 'h2="internal-host:443"',
    "Refresh": "0; url=http://internal-host/",
    "Access-Control-Allow-Origin": "http://internal-host",
    "PAYMENT-RESPONSE": "internal-host",
    "PAYMENT-REQUIRED": "internal-host",
    "X-Obol-Receipt": "/receipts/internal-host",
    "Cache-Control": "public, max-age=internal-host",
    "Connection": "X-Named",
    "X-Named": "internal-host",
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [200, 500])
async def test_the_upstreams_own_headers_never_reach_the_buyer(shop: Shop, status: int, stream: bool) -> None:
    shop.upstream.behaviour = Behaviour(status=status, headers={**INTERNAL, "OpenAI-Processing-Ms": "5"})
    answer = await shop.pay(chat(stream=stream))
    assert answer.status == status
    assert "internal-host" not in repr(answer.headers)
    assert answer.headers["Server"] == "obol"
    assert answer.headers["OpenAI-Processing-Ms"] == "5"
    assert not {"Set-Cookie", "Location", "PAYMENT-REQUIRED"} & set(answer.headers)


@pytest.mark.parametrize(
    "data",
    [
        post(CHAT, BODY),
        post(CHAT, BODY, {"X-PAYMENT": "junk"}),
        post("/nowhere", b""),
        head("GET", "/health", {"Host": "x"}),
        head("GET", "/status", {"Host": "x"}),
        head("GET", "/v1/models", {"Host": "x"}),
        head("GET", "/", {"Host": "x", "Accept": "text/html"}),
        b"not http\r\n\r\n",
        post(CHAT, b"", length=10**9),
    ],
    ids=["402", "400", "404", "health", "status", "models", "page", "not-http", "413"],
)
async def test_no_answer_names_what_it_is_built_from(shop: Shop, data: bytes) -> None:
    answer = await raw(shop, data)
    assert answer.header("Server") == "obol"
    assert b"aiohttp" not in repr(answer).lower().encode()
    assert b"python" not in repr(answer).lower().encode()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed_and_nobody_pays(make_shop: MakeShop, status: int) -> None:
    async with FakeModelServer(models=(MODEL,)) as elsewhere:
        shop = await make_shop()
        shop.upstream.behaviour = Behaviour(status=status, redirect_to=elsewhere.url + CHAT)
        answer = await shop.pay()
        assert (answer.status, answer.reason) == (502, "upstream_refused")
        assert "Location" not in answer.headers
        assert str(elsewhere.port) not in repr(answer)
        assert elsewhere.requests == []
    assert await shop.states() == ["released"]


@pytest.mark.parametrize("status", [401, 402, 403, 407])
async def test_an_upstream_that_refuses_the_seller_is_never_a_402(shop: Shop, status: int) -> None:
    shop.upstream.behaviour = Behaviour(status=status, body=b'{"x402Version":1,"accepts":[]}', headers=INTERNAL)
    answer = await shop.pay()
    assert (answer.status, answer.reason) == (502, "upstream_refused")
    assert not answer.asks_for_money
    assert await shop.states() == ["released"]


async def test_the_upstreams_429_passes_with_its_retry_after_and_costs_nothing(shop: Shop) -> None:
    shop.upstream.behaviour = Behaviour(status=429, headers={"Retry-After": "17"})
    payment = shop.payment()
    answer = await shop.post(payment)
    assert (answer.status, answer.headers["Retry-After"]) == (429, "17")
    assert not answer.asks_for_money
    shop.upstream.behaviour = Behaviour()
    assert (await shop.post(payment)).status == 200


@pytest.mark.parametrize("status", [400, 404, 422, 500, 503])
async def test_upstream_errors_pass_as_they_are_cost_nothing_and_claim_no_payment(shop: Shop, status: int) -> None:
    shop.upstream.behaviour = Behaviour(status=status, body=b'{"error":{"message":"as it is"}}')
    payment = shop.payment()
    answer = await shop.post(payment)
    assert (answer.status, answer.body) == (status, b'{"error":{"message":"as it is"}}')
    assert not answer.payment_response.success, "official clients read this header: nothing was paid"
    assert await shop.transfers() == []
    shop.upstream.behaviour = Behaviour()
    assert (await shop.post(payment)).status == 200


# -------------------------------------------------------------------------------------------------- odd upstreams

PLAIN = b'{"choices":[{"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]}'
EVENT = b'data: {"choices":[{"delta":{"content":"hi"}}]}\n\n'
MODELS = b'{"object":"list","data":[{"id":"tiny","object":"model"}]}'


def odd(*parts: Part) -> RawServer:
    """A model server that answers our questions at the start, and inference by these parts."""

    async def script(connection: RawConnection) -> None:
        await connection.read_request()
        if not connection.received.startswith(b"POST"):
            is_models = connection.received.startswith(b"GET /v1/models ")
            await connection.send(_plain(MODELS) if is_models else b"HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n")
            connection.finish()
            return
        for part in parts:
            await connection.play(part)
        if parts[-1] not in (FINISH, RESET):
            await connection.wait_for_peer_to_leave()

    return RawServer(script)


def _plain(body: bytes, *fields: bytes) -> bytes:
    lines = [b"HTTP/1.1 200 OK", b"Content-Type: application/json", b"Content-Length: %d" % len(body), *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def _stream(*fields: bytes) -> bytes:
    lines = [b"HTTP/1.1 200 OK", b"Content-Type: text/event-stream", *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def test_a_head_split_over_reads_and_interim_answers_are_understood(make_shop: MakeShop) -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: <http://internal-host/>\r\n\r\n"
    bits = [bytes([byte]) for byte in _plain(PLAIN)[:60]]
    async with odd(b"HTTP/1.1 100 Continue\r\n\r\n", interim, *bits, _plain(PLAIN)[60:]) as upstream:
        shop = await make_shop(upstream_url=upstream.url)
        answer = await shop.pay()
    assert (answer.status, answer.body) == (200, PLAIN)
    assert "Link" not in answer.headers


async def test_a_close_delimited_stream_is_complete_at_its_close(make_shop: MakeShop) -> None:
    async with odd(_stream(b"Connection: close"), EVENT, b"data: [DONE]\n\n", FINISH) as upstream:
        shop = await make_shop(upstream_url=upstream.url)
        answer = await shop.pay(chat(stream=True))
        await shop.receipt_in("settled", answer, delivery="complete")
    assert answer.body == EVENT + b"data: [DONE]\n\n"


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_an_answer_without_a_body_costs_nothing(make_shop: MakeShop, status: bytes) -> None:
    async with odd(b"HTTP/1.1 " + status + b"\r\n\r\n") as upstream:
        shop = await make_shop(upstream_url=upstream.url)
        answer = await shop.pay()
        assert not answer.asks_for_money
        assert await shop.transfers() == []
        assert await shop.states() == ["released"]


async def test_a_switch_of_protocols_is_refused(make_shop: MakeShop) -> None:
    async with odd(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n") as upstream:
        shop = await make_shop(upstream_url=upstream.url)
        answer = await shop.pay()
        assert (answer.status, answer.reason) == (502, "upstream_broken")


async def test_a_truncated_stream_reaches_the_buyer_as_truncated(make_shop: MakeShop) -> None:
    read = asyncio.Event()
    async with odd(_stream(b"Transfer-Encoding: chunked"), _chunk(EVENT), read, b"ff\r\npart", FINISH) as upstream:
        shop = await make_shop(upstream_url=upstream.url)
        async with shop.open(shop.payment(), chat(stream=True)) as response:
            assert await response.content.readany() == EVENT
            read.set()
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.content.read()
            sale = response.headers["X-Obol-Receipt"].removeprefix("/receipts/")
        await shop.receipt_in("settled", sale, delivery="broken_by_upstream")


@pytest.mark.parametrize(
    "parts",
    [
        (_plain(PLAIN)[:-5], FINISH),
        (_plain(PLAIN)[:-5], RESET),
        (_plain(b"")[:-4] + b"\r\nTransfer-Encoding: chunked\r\n\r\n", FINISH),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + _chunk(PLAIN), FINISH),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", FINISH),
        (b"not http at all\r\n\r\n", FINISH),
        (b"HTTP/1.1 999 X\r\nContent-Length: 0\r\n\r\n",),
        (FINISH,),
    ],
    ids=["short", "reset", "length-and-te", "no-last-chunk", "bad-chunk", "nonsense", "status-999", "closed"],
)
async def test_a_plain_answer_that_breaks_off_is_502_and_costs_nothing(
    make_shop: MakeShop, parts: tuple[Part, ...]
) -> None:
    async with odd(*parts) as upstream:
        shop = await make_shop(upstream_url=upstream.url)
        answer = await shop.pay()
        assert (answer.status, answer.reason) == (502, "upstream_broken")
        assert not answer.asks_for_money
        assert str(upstream.port) not in repr(answer), "no internal address in a reply"
        assert await shop.states() == ["released"]


async def test_an_early_error_while_the_body_is_being_sent_passes(make_shop: MakeShop) -> None:
    error = b'{"error":{"message":"too much"}}'
    early = b"HTTP/1.1 413 X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(error) + error

    async def script(connection: RawConnection) -> None:
        head = await connection.read_head()
        if head.startswith(b"POST"):
            await connection.send(early)
            await connection.wait_for_peer_to_leave()
        else:
            await connection.send(_plain(MODELS))
            connection.finish()

    async with RawServer(script) as upstream:
        shop = await make_shop(upstream_url=upstream.url)
        answer = await raw(shop, post(CHAT, json.dumps(chat(pad="x" * 4_000_000)).encode(), shop.payment()))
        assert (answer.status, answer.body) == (413, error)
        assert await shop.states() == ["released"]


@pytest.mark.parametrize("usage", [True, False])
async def test_a_stream_without_done_is_complete_when_its_framing_is(shop: Shop, usage: bool) -> None:
    shop.upstream.behaviour = Behaviour(done=False)
    more = {"stream_options": {"include_usage": usage}}
    answer = await shop.pay(chat(stream=True, **more))
    assert answer.status == 200
    assert b"[DONE]" not in answer.body
    await shop.receipt_in("settled", answer, delivery="complete")


async def test_a_compressed_bomb_passes_undecoded(make_shop: MakeShop) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    async with odd(_plain(bomb, b"Content-Encoding: gzip")) as upstream:
        shop = await make_shop(upstream_url=upstream.url)
        answer = await raw(shop, post(CHAT, BODY, shop.payment()))
    assert (answer.body, answer.header("Content-Encoding")) == (bomb, "gzip")


async def test_a_plain_answer_without_an_end_is_bounded(make_shop: MakeShop) -> None:
    endless = _chunk(b" " * 1_000_000)
    parts = (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", *[endless] * 80)
    async with odd(*parts) as upstream:
        shop = await make_shop(upstream_url=upstream.url)
        answer = await shop.pay()
        assert (answer.status, answer.reason) == (502, "upstream_broken")
        assert await shop.states() == ["released"]


async def test_a_stream_that_says_nothing_for_ever_is_not_held_for_ever(make_shop: MakeShop) -> None:
    pings = _chunk(b": ping\n\n" * 1000)
    async with odd(_stream(b"Transfer-Encoding: chunked"), *[pings] * 20, _chunk(EVENT), b"0\r\n\r\n") as upstream:
        shop = await make_shop(upstream_url=upstream.url)
        answer = await shop.pay(chat(stream=True))
        assert answer.status == 200
        assert answer.body.endswith(EVENT)
        await shop.receipt_in("settled", answer, delivery="complete")


async def test_a_request_body_is_not_decompressed(shop: Shop) -> None:
    bomb = zlib.compress(b" " * 50_000_000)
    for encoding in ("gzip", "deflate", "br", "zstd", "gzip, gzip"):
        answer = await raw(shop, post(CHAT, bomb, {**shop.payment(), "Content-Encoding": encoding}))
        assert (answer.status, answer.json["reason"]) == (400, "malformed_request")
    assert_upstream_untouched(shop)


# ------------------------------------------------------------------------------------------------------------ caching


async def test_a_quote_and_a_refusal_are_not_stored(shop: Shop) -> None:
    for answer in (await shop.post(), await shop.post({"X-PAYMENT": "junk"}), await shop.post(path="/nowhere")):
        assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_paid_answer_is_private_and_not_stored(shop: Shop, stream: bool) -> None:
    answer = await shop.pay(chat(stream=stream))
    assert answer.headers["Cache-Control"] == "private, no-store"
    assert answer.headers["X-Obol-Receipt"].startswith("/receipts/")
