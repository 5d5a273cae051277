import base64
import json

from x402.http.utils import decode_payment_response_header

from obol.x402.models import SettleResponse
from obol.x402.receipts import settle_header

PAYER = "0x" + "ab" * 20


def test_the_official_sdk_reads_the_settlement_header() -> None:
    response = SettleResponse(True, "0x" + "cd" * 32, "eip155:84532", PAYER)
    theirs = decode_payment_response_header(settle_header(response))
    assert (True, response.transaction, response.network, PAYER) == (
        theirs.success,
        theirs.transaction,
        theirs.network,
        theirs.payer,
    )


def test_a_settlement_that_is_under_way_has_an_empty_transaction() -> None:
    text = settle_header(SettleResponse(True, "", "eip155:84532", PAYER))
    assert json.loads(base64.b64decode(text, validate=True)) == {
        "success": True,
        "transaction": "",
        "network": "eip155:84532",
        "payer": PAYER,
    }


def test_a_refusal_says_why_and_nothing_is_null() -> None:
    text = settle_header(SettleResponse(False, "", "eip155:84532", error_reason="insufficient_funds"))
    assert (json.loads(base64.b64decode(text, validate=True))) == {
        "success": False,
        "transaction": "",
        "network": "eip155:84532",
        "errorReason": "insufficient_funds",
    }
