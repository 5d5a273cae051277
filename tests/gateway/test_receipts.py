"""What the answers of a sale say of its payment, to clients of both generations."""

from dataclasses import replace

import pytest
from aiohttp.test_utils import make_mocked_request

from obol.core.networks import DEFAULT_CATALOGUE
from obol.core.payment import State
from obol.core.sale import ClaimKey, Sale
from obol.gateway.call import Call
from obol.gateway.receipts import ReceiptHeaders
from obol.x402.facilitator import Settlement, SettleOutcome
from obol.x402.headers import PAYMENT_RESPONSE, X_PAYMENT_RESPONSE, decode_header
from obol.x402.models import SettleResponse

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


def receipt(sale: Sale = SALE, *, base_path: str = "") -> ReceiptHeaders:
    call = Call(make_mocked_request("POST", "/v1/chat/completions"), "the-id", 0.0)
    call.base_path = base_path
    return ReceiptHeaders(call, sale, DEFAULT_CATALOGUE)


def said(headers: dict[str, str], name: str = PAYMENT_RESPONSE) -> SettleResponse:
    return decode_header(headers[name], SettleResponse)


def test_a_stream_that_is_not_settled_yet_says_success_without_a_transaction() -> None:
    headers = receipt().under_way()
    response = said(headers)
    assert (response.success, response.transaction, response.network) == (True, "", "eip155:84532")
    assert (response.payer or "").lower() == PAYER
    assert headers["X-Obol-Settlement"] == "pending"


def test_the_v1_header_has_the_networks_legacy_name() -> None:
    headers = receipt().settled("0xabc")
    assert said(headers).network == "eip155:84532"
    assert said(headers, X_PAYMENT_RESPONSE).network == "base-sepolia"
    assert said(headers, X_PAYMENT_RESPONSE).transaction == "0xabc"
    assert headers["X-Obol-Receipt"] == "/receipts/" + SALE.id
    assert headers["Cache-Control"] == "private, no-store"


def test_a_refused_settlement_is_no_success() -> None:
    response = said(receipt().refused(Settlement(SettleOutcome.FAILED, "", "insufficient_funds")))
    assert (response.success, response.error_reason) == (False, "insufficient_funds")


@pytest.mark.parametrize("outcome", [SettleOutcome.PENDING, SettleOutcome.UNKNOWN])
def test_a_settlement_that_nobody_knows_is_called_pending_and_never_refused(outcome: SettleOutcome) -> None:
    response = said(receipt().refused(Settlement(outcome, "0xabc", "timeout")))
    assert (response.success, response.error_reason, response.transaction) == (False, "settlement_pending", "0xabc")


def test_an_answer_that_costs_nothing_says_that_no_money_moved() -> None:
    headers = receipt().unused("upstream_timeout")
    assert (said(headers).success, said(headers).error_reason) == (False, "upstream_timeout")
    assert headers["X-Obol-Settlement"] == "released"


def test_an_owed_answer_says_that_money_moved_and_more_is_to_come() -> None:
    headers = receipt().owed("0xabc")
    assert (said(headers).success, said(headers).transaction) == (True, "0xabc")
    assert headers["X-Obol-Settlement"] == "owed"


@pytest.mark.parametrize(
    ("state", "success"), [(State.SETTLED, True), (State.SETTLE_FAILED, False), (State.WAIVED, None)]
)
def test_a_used_payment_is_told_what_came_of_it(state: State, success: bool | None) -> None:
    headers = receipt(replace(SALE, state=state, transaction="0xabc")).used()
    assert headers["X-Obol-Receipt"] == "/receipts/" + SALE.id
    if success is None:
        assert PAYMENT_RESPONSE not in headers
    else:
        assert said(headers).success is success


def test_the_receipts_address_is_under_the_path_that_buyers_see() -> None:
    assert receipt(base_path="/services/x").address() == {"X-Obol-Receipt": f"/services/x/receipts/{SALE.id}"}
