"""Building answers: refusals, quotes, and what passes in either direction."""

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from obol.gateway.answers import headers_to_buyer, headers_to_upstream, quote, refuse, wants_page
from obol.gateway.call import Call
from obol.gateway.replies import REPLIES, Reason, Refusal
from obol.x402.headers import PAYMENT_REQUIRED, decode_header
from obol.x402.models import PaymentRequired
from tests.gateway.live import make_live


def call(**headers: str) -> Call:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Call(make_mocked_request("POST", "/v1/chat/completions", headers=named), "the-id", 0.0)


def test_only_named_headers_go_upstream_and_the_request_id_is_ours() -> None:
    given = call(Content_Type="application/json", Authorization="Bearer x", X_Request_Id="theirs", OpenAI_Beta="a")
    sent = headers_to_upstream(given)
    assert sorted(sent) == [("Content-Type", "application/json"), ("OpenAI-Beta", "a"), ("X-Request-Id", "the-id")]


def test_only_named_headers_come_back() -> None:
    passed = [
        "Content-Type",
        "Content-Encoding",
        "Content-Language",
        "Retry-After",
        "OpenAI-Model",
        "anthropic-ratelimit",
    ]
    others = ["Server", "Set-Cookie", "Location", "Via", "X-Request-Id", "Cache-Control", "Content-Length", "Date"]
    assert list(headers_to_buyer([(name, "v") for name in passed + others])) == passed


def test_a_refusal_says_when_to_come_back_and_where_the_receipt_is() -> None:
    refusal = Refusal(Reason.PAYMENT_IN_USE, "in use", retry_after_s=3, headers={"X-Obol-Receipt": "/receipts/1"})
    answer = refuse(call(), refusal)
    assert (answer.status, answer.content_type) == (409, "application/json")
    assert answer.headers["Retry-After"] == "3"
    assert answer.headers["X-Obol-Receipt"] == "/receipts/1"
    assert answer.headers["X-Request-Id"] == "the-id"
    assert PAYMENT_REQUIRED not in answer.headers


@pytest.mark.parametrize("reason", list(Reason))
def test_clients_that_retry_by_themselves_are_told_where_it_is_no_use(reason: Reason) -> None:
    answer = refuse(call(), Refusal(reason, "no"))
    assert (answer.headers.get("x-should-retry") == "false") is not REPLIES[reason].retriable


def test_a_quote_after_a_bad_payment_says_what_was_wrong() -> None:
    refusal = Refusal(Reason.PAYMENT_INVALID, "the payment is not valid: expired")
    answer = quote(call(), make_live(), "http://x/v1/chat/completions", refusal)
    assert answer.status == 402
    assert decode_header(answer.headers[PAYMENT_REQUIRED], PaymentRequired).error == refusal.message
    assert isinstance(answer.body, bytes)
    assert refusal.message.encode() in answer.body


@pytest.mark.parametrize(
    ("accept", "page"),
    [("text/html", True), ("text/html,*/*", True), ("*/*", False), ("", False), ("application/json,text/html", False)],
)
def test_a_browser_names_html_before_anything_else(accept: str, page: bool) -> None:
    request: web.BaseRequest = call(Accept=accept).request
    assert wants_page(request) is page
