import inspect
import json

import pytest

from obol import errors
from obol.gateway.replies import ERRORS, MESSAGES, REPLIES, Reason, Refusal, error_body, refusal_of

MONEY = {Reason.NO_MATCHING_REQUIREMENT, Reason.PAYMENT_INVALID, Reason.SETTLEMENT_FAILED}
OURS = {errors.ChainUnavailableError, errors.SettingsError, errors.IllegalTransitionError}
BUYERS = {errors.BudgetExceededError, errors.PaymentRefusedError, errors.UnpayableError}
"""Errors of the buyer's side, which no sale meets."""
TREE = [error for _, error in inspect.getmembers(errors, inspect.isclass) if issubclass(error, errors.ObolError)]
LEAVES = [error for error in TREE if not error.__subclasses__()]
SECRET = "http://10.0.0.7:8000 0xsignature"


def an_error(kind: type[errors.ObolError]) -> errors.ObolError:
    return errors.SettingsError("--flag", SECRET) if kind is errors.SettingsError else kind(SECRET)


def test_every_reason_has_a_reply_and_every_reply_a_reason() -> None:
    assert set(REPLIES) == set(Reason)


def test_every_error_that_a_sale_may_meet_has_a_reason() -> None:
    assert set(ERRORS) == set(LEAVES) - OURS - BUYERS


@pytest.mark.parametrize("kind", sorted(OURS | BUYERS | {errors.ObolError}, key=str))
def test_whatever_else_is_our_bug(kind: type[errors.ObolError]) -> None:
    assert refusal_of(an_error(kind)).reason is Reason.INTERNAL


def test_402_is_said_only_where_paying_helps() -> None:
    assert {reason for reason, reply in REPLIES.items() if reply.status == 402} == MONEY


@pytest.mark.parametrize("reason", list(Reason))
def test_the_status_fits_the_reason(reason: Reason) -> None:
    reply = REPLIES[reason]
    assert 400 <= reply.status < 600
    assert (reply.type == "rate_limit_error") == (reply.status == 429)
    assert reply.type == "payment_error" or (reply.type == "server_error") == (reply.status >= 500)
    assert reply.retriable or reply.status not in (408, 429, 503, 504)


@pytest.mark.parametrize("kind", sorted(ERRORS, key=str))
def test_an_outage_says_when_to_come_back_and_nothing_of_the_inside(kind: type[errors.ObolError]) -> None:
    refusal = refusal_of(an_error(kind))
    reply = REPLIES[refusal.reason]
    assert (refusal.retry_after_s is not None) == (reply.status >= 500 and reply.retriable)
    if reply.status >= 500:
        assert refusal.message == MESSAGES[refusal.reason]
        assert SECRET not in error_body(refusal, "id").decode()


def test_our_bugs_do_not_show_what_they_are_about() -> None:
    assert SECRET not in refusal_of(errors.IllegalTransitionError(SECRET)).message


def test_a_malformed_request_names_its_field_and_its_code() -> None:
    error = errors.MalformedRequestError("`n` must be 1", param="n", reason="unsupported_value")
    refusal = refusal_of(error)
    assert (refusal.param, refusal.code, refusal.message) == ("n", "unsupported_value", "`n` must be 1")


def test_the_body_has_openais_shape_and_ours_beside_it() -> None:
    refusal = Refusal(Reason.MODEL_NOT_FOUND, "the model is not sold here", param="model")
    assert json.loads(error_body(refusal, "7")) == {
        "error": {
            "message": "the model is not sold here",
            "type": "invalid_request_error",
            "code": "model_not_found",
            "param": "model",
        },
        "reason": "model_not_found",
        "retriable": False,
        "request_id": "7",
    }
