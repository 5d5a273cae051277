import pytest

from obol.buyer.payment import PaymentStatus
from obol.buyer.verdict import judge
from obol.x402.headers import PAYMENT_RESPONSE, X_PAYMENT_RESPONSE
from obol.x402.models import SettleResponse
from obol.x402.receipts import settle_header


def settlement(*, success: bool, transaction: str = "", reason: str | None = None) -> str:
    response = SettleResponse(
        success=success, transaction=transaction, network="eip155:84532", error_reason=reason, payer="0x" + "1" * 40
    )
    return settle_header(response)


def test_without_a_receipt_nothing_counts_as_paid() -> None:
    assert PaymentStatus.PAID not in {judge(status_code, {}).status for status_code in range(100, 600)}


@pytest.mark.parametrize("status_code", [200, 204, 302, 408, 409, 500, 502, 504])
def test_without_a_receipt_what_may_have_been_served_is_unknown(status_code: int) -> None:
    assert judge(status_code, {}).status is PaymentStatus.UNKNOWN


@pytest.mark.parametrize("status_code", [400, 402, 403, 404, 413, 429, 503])
def test_what_is_declined_before_settling_is_unpaid(status_code: int) -> None:
    assert judge(status_code, {}).status is PaymentStatus.UNPAID


@pytest.mark.parametrize("status_code", [200, 402, 409, 500])
@pytest.mark.parametrize("header", [PAYMENT_RESPONSE, X_PAYMENT_RESPONSE, "payment-response"])
def test_a_receipt_of_success_is_payment_whatever_the_status(status_code: int, header: str) -> None:
    verdict = judge(status_code, {header: settlement(success=True, transaction="0xab")})

    assert (verdict.status, verdict.transaction) == (PaymentStatus.PAID, "0xab")


@pytest.mark.parametrize(
    ("status_code", "transaction", "reason", "expected"),
    [
        (402, "", "insufficient_funds", PaymentStatus.UNPAID),
        (402, "", None, PaymentStatus.UNPAID),
        (402, "0xab", "transaction_failed", PaymentStatus.UNKNOWN),
        (402, "", "settlement_pending", PaymentStatus.UNKNOWN),
        (
            200,
            "",
            "no_output",
            PaymentStatus.UNPAID,
        ),  # an answer that costs nothing; held all the same until it expires
    ],
)
def test_a_receipt_of_failure_is_believed_only_when_nothing_was_broadcast(
    status_code: int, transaction: str, reason: str | None, expected: PaymentStatus
) -> None:
    header = settlement(success=False, transaction=transaction, reason=reason)

    assert judge(status_code, {PAYMENT_RESPONSE: header}).status is expected


@pytest.mark.parametrize("junk", ["!", "e30=", "bm90IGpzb24="])
def test_a_receipt_that_cannot_be_read_says_nothing(junk: str) -> None:
    assert judge(200, {PAYMENT_RESPONSE: junk}).status is PaymentStatus.UNKNOWN
