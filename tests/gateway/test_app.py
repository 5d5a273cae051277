"""The gateway's edge: which request goes where, and what each ending looks like."""

import asyncio

import aiohttp
import msgspec
import pytest

from obol.core.ledger import ClaimOutcome, Ledger
from obol.core.offer import Api
from obol.core.sale import NewSale, Sale
from obol.inference.routes import SALE_PATHS
from tests.fakes.model_server import Behaviour
from tests.fakes.raw_client import RawClient, head, post
from tests.gateway.failing_ledger import FailingLedger
from tests.gateway.fixtures import MakeShop
from tests.gateway.occupied import occupied, status, until_in_flight
from tests.gateway.shop import CHAT, MODEL, PROMPT, Answer, Shop, chat

BODIES = {
    Api.CHAT: chat(),
    Api.COMPLETIONS: {"model": MODEL, "prompt": "hi"},
    Api.EMBEDDINGS: {"model": MODEL, "input": "hi"},
    Api.RESPONSES: {"model": MODEL, "input": "hi"},
    Api.MESSAGES: {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5},
    Api.OLLAMA_CHAT: {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]},
    Api.OLLAMA_GENERATE: {"model": MODEL, "prompt": "hi"},
    Api.OLLAMA_EMBED: {"model": MODEL, "input": "hi"},
}
DEFAULT = [Api.CHAT, Api.COMPLETIONS, Api.EMBEDDINGS, Api.RESPONSES]
OTHERS = [api for api in Api if api not in DEFAULT]


def assert_error(answer: Answer, status: int, reason: str) -> None:
    """The one shape of every refusal."""
    assert (answer.status, answer.reason) == (status, reason), answer
    assert answer.headers["Content-Type"].startswith("application/json")
    assert set(answer.json) == {"error", "reason", "retriable", "request_id"}
    assert set(answer.json["error"]) == {"message", "type", "code", "param"}
    assert answer.json["request_id"] == answer.headers["X-Request-Id"]


# ------------------------------------------------------------------------------------------------------ what is sold


@pytest.mark.parametrize("api", DEFAULT)
async def test_the_openai_apis_are_sold_by_default(shop: Shop, api: Api) -> None:
    path = SALE_PATHS[api]
    quoted = await shop.post(None, BODIES[api], path=path)
    assert quoted.status == 402
    assert quoted.challenge.resource.url == shop.url + path
    assert (await shop.pay(BODIES[api], path=path)).status == 200
    assert [call.path for call in shop.upstream.calls] == [path]


@pytest.mark.parametrize("api", OTHERS)
async def test_other_apis_are_sold_only_when_the_offer_names_them(make_shop: MakeShop, shop: Shop, api: Api) -> None:
    path = SALE_PATHS[api]
    assert_error(await shop.post(shop.payment(), BODIES[api], path=path), 404, "not_found")
    await shop.restart(apis=frozenset({api}))
    assert (await shop.pay(BODIES[api], path=path)).status == 200
    assert_error(await shop.post(), 404, "not_found")


async def test_a_sale_under_its_services_path_is_the_same_sale(shop: Shop) -> None:
    answer = await shop.pay(path="/services/inference" + CHAT)
    assert answer.status == 200
    assert [call.path for call in shop.upstream.calls] == [CHAT]
    assert (await shop.get("/services/inference/health")).status == 200


async def test_every_answer_has_a_request_id_of_ours(shop: Shop) -> None:
    answers = [await shop.post(), await shop.pay(), await shop.post({"X-PAYMENT": "junk"})]
    ids = [answer.headers["X-Request-Id"] for answer in answers]
    assert len(set(ids)) == 3
    assert shop.upstream.calls[0].header("X-Request-Id") == ids[1]


# ------------------------------------------------------------------------------------------------------------ models


async def test_models_are_free_and_only_those_that_are_sold(make_shop: MakeShop) -> None:
    shop = await make_shop(models=("org/shown:1=tiny",))
    entry = {"id": "org/shown:1", "object": "model", "created": 0, "owned_by": "inference"}
    assert (await shop.get("/v1/models")).json == {"object": "list", "data": [entry]}
    for spelling in ("org/shown:1", "org%2Fshown:1", "org%2fshown%3A1"):
        assert (await shop.get("/v1/models/" + spelling)).json == entry
    missing = await shop.get("/v1/models/tiny")
    assert_error(missing, 404, "model_not_found")
    assert missing.json["error"]["code"] == "model_not_found"


async def test_models_stay_free_while_nothing_can_be_sold(make_shop: MakeShop) -> None:
    shop = await make_shop(max_inflight=1)
    async with occupied(shop):
        assert (await shop.get("/v1/models")).status == 200
        assert (await shop.get("/health")).status == 200


@pytest.mark.parametrize("path", ["/v1/models", f"/v1/models/{MODEL}", "/health", "/ready", "/status", "/metrics"])
async def test_head_is_get_without_a_body(shop: Shop, path: str) -> None:
    async with RawClient(shop.url) as client:
        await client.send(head("HEAD", path, {"Host": "x"}) + head("GET", "/health", {"Host": "x"}))
        first = await client.answer(has_body=False)
        assert first.status == 200
        assert int(first.header("Content-Length") or 0) > 0
        assert (await client.answer()).json == {"status": "ok"}, "the next answer begins where the head ended"


# ------------------------------------------------------------------------------------------------------------- admin


async def test_status_and_metrics_can_have_an_address_of_their_own(make_shop: MakeShop) -> None:
    shop = await make_shop(admin_listen="127.0.0.1:0")
    for path in ("/status", "/metrics"):
        assert_error(await shop.get(path), 404, "not_found")
    admin = getattr(shop.gateway, "admin_url", None)
    assert admin is not None
    assert admin != shop.url
    for path in ("/status", "/metrics", "/health", "/ready"):
        async with shop.session.get(admin + path) as response:
            assert response.status == 200
    async with shop.session.post(admin + CHAT, json=chat(), headers=shop.payment()) as response:
        assert response.status == 404, "nothing is sold there"
    assert shop.upstream.calls == []


# ---------------------------------------------------------------------------------------------------------- draining


async def test_a_stopping_gateway_finishes_what_it_sold_and_sells_no_more(make_shop: MakeShop) -> None:
    shop = await make_shop()
    hold = asyncio.Event()
    shop.upstream.behaviour = Behaviour(hold_before_end=hold)
    async with shop.open(shop.payment(), chat(stream=True)) as response:
        await response.content.readany()
        stopping = asyncio.ensure_future(shop.stop())
        url = shop.url
        refused: int | None = None
        async with asyncio.timeout(5):
            while refused != 503:
                async with aiohttp.request("POST", url + CHAT, json=chat()) as second:
                    refused, body, fields = second.status, await second.read(), second.headers
        assert msgspec.json.decode(body)["reason"] == "draining"
        assert fields["Retry-After"]
        assert not stopping.done()
        hold.set()
        assert (await response.content.read()).endswith(b"data: [DONE]\n\n")
    await stopping
    assert await shop.states() == ["settled"]


async def test_a_stopping_gateway_does_not_wait_for_ever(make_shop: MakeShop) -> None:
    shop = await make_shop(drain_timeout_s=0.2)
    shop.upstream.behaviour = Behaviour(hold_between_tokens=asyncio.Event())
    async with shop.open(shop.payment(), chat(stream=True)) as response:
        await response.content.readany()
        async with asyncio.timeout(5):
            await shop.stop()
        with pytest.raises(aiohttp.ClientError):
            await response.content.read()
    await shop.until_states("settled")


# ------------------------------------------------------------------------------------------------------ free serving


async def test_without_a_gate_answers_are_free_and_slots_still_count(make_shop: MakeShop) -> None:
    shop = await make_shop(no_payment_gate=True, max_inflight=1)
    answer = await shop.post(None, chat(stream=True))
    assert answer.status == 200
    assert not {"PAYMENT-RESPONSE", "X-Obol-Receipt"} & set(answer.headers)
    release = asyncio.Event()
    shop.upstream.behaviour = Behaviour(hold_before_head=release)
    async with RawClient(shop.url) as client:
        await client.send(post(CHAT, msgspec.json.encode(chat())))
        await until_in_flight(shop, 1)
        assert_error(await shop.post(), 429, "saturated")
        release.set()
        assert (await client.answer()).status == 200
    await until_in_flight(shop, 0)
    assert await shop.ledger_rows() == []


async def test_without_a_gate_who_leaves_the_queue_gives_the_place_back(make_shop: MakeShop) -> None:
    shop = await make_shop(no_payment_gate=True, max_inflight=1, max_queue_depth=1)
    release = asyncio.Event()
    shop.upstream.script = [Behaviour(hold_before_head=release)]
    first = asyncio.ensure_future(shop.post())
    await until_in_flight(shop, 1)
    async with RawClient(shop.url) as client:
        await client.send(post(CHAT, msgspec.json.encode(chat())))
        await until_in_flight(shop, 1, queued=1)
    await until_in_flight(shop, 1, queued=0)
    release.set()
    assert (await first).status == 200
    assert len(shop.upstream.calls) == 1


# -------------------------------------------------------------------------------------------------- counting and bugs


async def test_requests_are_counted_by_how_they_ended(make_shop: MakeShop) -> None:
    shop = await make_shop(max_inflight=1)
    payment = shop.payment()
    await shop.post()
    await shop.post(payment)
    await shop.post(payment)
    async with occupied(shop):
        await shop.post()
    shop.upstream.script = [Behaviour(status=500), Behaviour(status=302)]
    await shop.pay()
    await shop.pay()
    await shop.post(path="/nowhere")
    shop.upstream.script = [Behaviour(hold_before_head=asyncio.Event())]
    async with RawClient(shop.url) as client:
        await client.send(post(CHAT, msgspec.json.encode(chat()), shop.payment()))
        await until_in_flight(shop, 1)
    await until_in_flight(shop, 0)
    assert (await status(shop))["requests"] == {
        "buyer_gone": 1,
        "not_found": 1,
        "payment_used": 1,
        "quoted": 1,
        "saturated": 1,
        "served": 2,
        "upstream_error": 1,
        "upstream_refused": 1,
    }


class BrokenLedger(FailingLedger):
    """A ledger with a bug."""

    async def claim(self, sale: NewSale) -> ClaimOutcome:
        raise ValueError(f"secret {sale.payload!r}")

    async def sale(self, sale_id: str) -> Sale | None:
        raise ValueError("secret")


def broken(ledger: Ledger) -> Ledger:
    return BrokenLedger().wrap(ledger)


async def test_a_bug_is_500_says_nothing_of_itself_and_is_in_the_log(make_shop: MakeShop) -> None:
    shop = await make_shop(wrap_ledger=broken)
    for answer in (await shop.pay(), await shop.get("/receipts/" + "0" * 32)):
        assert_error(answer, 500, "internal")
        assert b"secret" not in answer.body
        assert answer.json["request_id"] in [line.get("request") for line in shop.logged]
    assert shop.upstream.calls == []


async def test_no_prompt_and_no_payment_reaches_the_log(shop: Shop) -> None:
    answers = [await shop.pay(), await shop.post({"X-PAYMENT": "junk"}), await shop.pay(chat(max_tokens=0))]
    shop.upstream.behaviour = Behaviour(status=500)
    answers.append(await shop.pay())
    text = repr(shop.logged)
    assert text != "[]"
    assert PROMPT not in text
    for answer in answers:
        for value in answer.payment.values():
            assert value not in text or value == "junk"


async def test_a_paid_request_is_logged_with_its_id_and_its_sale(shop: Shop) -> None:
    answer = await shop.pay(chat())
    (line,) = [line for line in shop.logged if line["event"] == "request"]
    assert (line["request"], line["sale"]) == (answer.headers["X-Request-Id"], answer.sale_id)
    assert (line["outcome"], line["offer"]) == ("served", "inference")
