"""Building answers: what passes from the upstream, and what a receipt says in headers."""

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from obol.core.networks import DEFAULT_CATALOGUE
from obol.core.payment import State
from obol.core.sale import ClaimKey, Sale
from obol.gateway.answers import headers_to_buyer, headers_to_upstream, quote, receipt_headers, refuse, wants_page
from obol.gateway.call import Call
from obol.gateway.replies import Reason, Refusal
from obol.x402.facilitator import Settlement, SettleOutcome
from obol.x402.headers import PAYMENT_REQUIRED, PAYMENT_RESPONSE, X_PAYMENT_RESPONSE, decode_header
from obol.x402.models import PaymentRequired, SettleResponse
from tests.gateway.live import make_live

PAYER = "0x" + "ab" * 20
SALE = Sale(
    id="f" * 32,
    key=ClaimKey("eip155:84532", "0x" + "cd" * 20, PAYER, "0x" + "00" * 32),
    offer="inference",
    pay_to="0x" + "11" * 20,
    authorized_atomic=1,
    valid_before_s=1,
    api="chat",
    model="tiny",
    payload=b"secret",
    requirements=b"",
    created_s=0.0,
    state=State.SETTLING,
)


def call(**headers: str) -> Call:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Call(make_mocked_request("POST", "/v1/chat/completions", headers=named), "the-id", 0.0)


def said(headers: dict[str, str], name: str) -> SettleResponse:
    return decode_header(headers[name], SettleResponse)


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


def test_a_stream_that_is_not_settled_yet_says_success_without_a_transaction() -> None:
    headers = receipt_headers(SALE, None, DEFAULT_CATALOGUE)
    response = said(headers, PAYMENT_RESPONSE)
    assert (response.success, response.transaction, response.network) == (True, "", "eip155:84532")
    assert response.payer.lower() == PAYER if response.payer else False
    assert headers["X-Obol-Settlement"] == "pending"


def test_the_v1_header_has_the_networks_legacy_name() -> None:
    headers = receipt_headers(SALE, Settlement(SettleOutcome.SETTLED, "0xabc"), DEFAULT_CATALOGUE)
    assert said(headers, PAYMENT_RESPONSE).network == "eip155:84532"
    assert said(headers, X_PAYMENT_RESPONSE).network == "base-sepolia"
    assert said(headers, X_PAYMENT_RESPONSE).transaction == "0xabc"
    assert headers["X-Obol-Receipt"] == "/receipts/" + SALE.id
    assert headers["Cache-Control"] == "private, no-store"


def test_a_failed_settlement_is_no_success() -> None:
    failed = Settlement(SettleOutcome.FAILED, "", "insufficient_funds")
    assert not said(receipt_headers(SALE, failed, DEFAULT_CATALOGUE), PAYMENT_RESPONSE).success


def test_a_refusal_says_when_to_come_back_and_where_the_receipt_is() -> None:
    refusal = Refusal(Reason.PAYMENT_IN_USE, "in use", retry_after_s=3, sale_id=SALE.id)
    answer = refuse(call(), refusal)
    assert (answer.status, answer.content_type) == (409, "application/json")
    assert answer.headers["Retry-After"] == "3"
    assert answer.headers["X-Obol-Receipt"] == "/receipts/" + SALE.id
    assert answer.headers["X-Request-Id"] == "the-id"
    assert PAYMENT_REQUIRED not in answer.headers


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
