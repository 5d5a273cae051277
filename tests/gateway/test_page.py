"""The page that a person sees: what is sold, and nothing that was slipped in."""

import pytest

from obol.gateway.page import quote_page
from tests.gateway.fixtures import MakeShop
from tests.gateway.live import make_offer
from tests.gateway.shop import CHAT, PRICE, SELLER, USDC, Shop

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
EVIL = "<script>alert('1')</script>\"&"


def test_the_page_says_what_for_how_much_to_whom_and_how() -> None:
    page = quote_page(make_offer(price="0.25", name="qwen", models=("big", "small")), "https://x.example/v1/y")
    for shown in ("qwen", "0.25 USDC", "base-sepolia", "eip155:84532", USDC.address, SELLER, "big, small"):
        assert shown in page
    assert "obol pay https://x.example/v1/y --model big" in page
    assert "--max-price 0.25" in page


def test_the_page_stays_under_the_prefix_and_shows_a_body_that_fits_the_api() -> None:
    chat = quote_page(make_offer(), "https://x.example/services/a/v1/chat/completions")
    assert 'href="https://x.example/services/a/v1/models"' in chat
    assert "--prompt" in chat
    embeddings = quote_page(make_offer(), "https://x.example/v1/embeddings")
    assert 'href="https://x.example/v1/models"' in embeddings
    assert "-d @request.json" in embeddings


@pytest.mark.parametrize("field", ["description", "model", "resource"])
def test_everything_from_outside_is_escaped(field: str) -> None:
    offer = make_offer(
        models=(EVIL,) if field == "model" else ("tiny",),
        **({field: EVIL} if field == "description" else {}),
    )
    page = quote_page(offer, EVIL if field == "resource" else "http://x/")
    assert "<script" not in page
    assert "&lt;script&gt;alert(&#x27;1&#x27;)&lt;/script&gt;&quot;&amp;" in page


def test_braces_in_a_description_are_only_braces() -> None:
    assert "{price}{0}" in quote_page(make_offer(description="{price}{0}"), "http://x/")


async def test_a_browser_gets_the_page_with_status_402_where_programs_post(shop: Shop) -> None:
    answer = await shop.get(CHAT, BROWSER)
    assert answer.status == 402
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-store"
    assert f"{PRICE} USDC" in answer.body.decode()
    assert answer.challenge.resource.url == shop.url + CHAT, "a wallet in the browser can still read the terms"


async def test_a_browser_that_posts_gets_the_page_too(shop: Shop) -> None:
    answer = await shop.post(BROWSER)
    assert answer.status == 402
    assert answer.body.startswith(b"<!doctype html>")


async def test_the_front_page_is_for_browsers_only(shop: Shop) -> None:
    page = await shop.get("/", BROWSER)
    assert (page.status, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert not page.asks_for_money
    for accept in ({}, {"Accept": "*/*"}, {"Accept": "application/json, text/html"}):
        assert (await shop.get("/", accept)).reason == "not_found"


async def test_programs_get_json_where_browsers_get_a_page(shop: Shop) -> None:
    assert (await shop.get(CHAT, {"Accept": "application/json"})).status == 404
    assert (await shop.post({"Accept": "application/json, text/html"})).json["x402Version"] == 1


async def test_a_forged_host_does_not_become_markup(shop: Shop) -> None:
    answer = await shop.get("/", {**BROWSER, "Host": 'x"><script>alert(1)</script>'})
    assert b"<script" not in answer.body


async def test_there_is_no_page_of_what_is_not_sold_or_not_paid(make_shop: MakeShop, shop: Shop) -> None:
    assert (await shop.get("/v1/messages", BROWSER)).status == 404
    assert (await shop.get("/nowhere", BROWSER)).reason == "not_found"
    await shop.restart(no_payment_gate=True)
    assert (await shop.get("/", BROWSER)).status == 404
