"""What replies to `/settle` mean, by status and reason."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from obol.adapters.settle_replies import read_settlement
from obol.x402.facilitator import SettleOutcome
from obol.x402.reasons import Reason
from tests.adapters.payments import requirements, unsigned

WANTED = requirements()
PAID = unsigned(WANTED)
TRANSACTION = "0x" + "ab" * 32


def read(status: int, **reply: object) -> SettleOutcome:
    return read_settlement(status, msgspec.json.encode(reply), PAID, WANTED).outcome


def no(status: int, reason: str, transaction: str = "") -> SettleOutcome:
    return read(status, success=False, errorReason=reason, transaction=transaction)


@pytest.mark.parametrize("status", [200, 400, 402, 403, 422])
def test_a_definite_no_under_an_answers_status_is_one(status: int) -> None:
    assert no(status, "insufficient_funds") is SettleOutcome.FAILED
    assert no(status, "transaction_failed", TRANSACTION) is SettleOutcome.FAILED


@pytest.mark.parametrize("status", [301, 408, 425, 429, 500, 502, 503])
def test_a_no_of_a_server_in_trouble_is_none(status: int) -> None:
    assert no(status, "insufficient_funds") is SettleOutcome.UNKNOWN


@pytest.mark.parametrize("status", [200, 202, 400, 500, 504])
def test_pending_is_pending_under_any_status_and_keeps_its_transaction(status: int) -> None:
    body = {"success": False, "errorReason": "settlement_pending", "transaction": TRANSACTION}
    settlement = read_settlement(status, msgspec.json.encode(body), PAID, WANTED)
    assert (settlement.outcome, settlement.transaction) == (SettleOutcome.PENDING, TRANSACTION)


@pytest.mark.parametrize("status", [201, 400, 500])
def test_a_yes_under_another_status_is_not_believed(status: int) -> None:
    assert read(status, success=True, transaction=TRANSACTION, network=WANTED.network) is SettleOutcome.UNKNOWN


def test_what_our_own_facilitator_refuses_before_sending_is_definite() -> None:
    for reason in (Reason.FAILURE_BUDGET, Reason.SIGNATURE, Reason.VALID_BEFORE, Reason.PERMIT2_ALLOWANCE_REQUIRED):
        assert no(200, reason) is SettleOutcome.FAILED


def test_what_may_have_moved_is_not_definite() -> None:
    for reason in (Reason.AUTHORIZATION_USED, Reason.PERMIT2_NONCE_USED, Reason.DUPLICATE, Reason.TRANSACTION_FAILED):
        assert no(200, reason) is SettleOutcome.UNKNOWN


@given(st.integers(100, 599), st.text(max_size=60), st.booleans())
def test_a_reason_that_nobody_knows_proves_nothing(status: int, reason: str, has_transaction: bool) -> None:
    outcome = no(status, f"x{reason}", TRANSACTION if has_transaction else "")
    assert outcome is SettleOutcome.UNKNOWN


@given(st.integers(100, 599), st.binary(max_size=80))
def test_nonsense_is_not_known(status: int, body: bytes) -> None:
    assert read_settlement(status, body, PAID, WANTED).outcome is SettleOutcome.UNKNOWN
