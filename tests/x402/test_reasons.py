import re

from x402.mechanisms.evm import constants

from obol.x402.reasons import Reason


def test_reasons_are_stable_snake_case_codes() -> None:
    assert all(re.fullmatch(r"[a-z][a-z0-9_]+", reason) for reason in Reason)


def test_the_verifiers_reasons_are_those_of_the_specification() -> None:
    prefix = "invalid_exact_evm_payload_"
    assert {
        Reason.VALID_AFTER: prefix + "authorization_valid_after",
        Reason.VALID_BEFORE: prefix + "authorization_valid_before",
        Reason.VALUE_MISMATCH: prefix + "authorization_value_mismatch",
        Reason.RECIPIENT_MISMATCH: prefix + "recipient_mismatch",
        Reason.SIGNATURE: prefix + "signature",
    } == {reason: reason.value for reason in Reason if reason.value.startswith(prefix)}


def test_the_reasons_of_permit2_are_those_of_the_official_sdk() -> None:
    official = {value for name, value in vars(constants).items() if name.startswith("ERR_PERMIT2_")}
    ours = {reason.value for reason in Reason if reason.name.startswith("PERMIT2_")}
    assert ours - official == {"permit2_invalid_nonce", "permit2_payment_too_early"}  # only in its code
