from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obol.core.networks import Asset, TransferMethod
from obol.x402.authorization import Authorization, Permit, parse_authorization
from obol.x402.checks import REASONS, SETTLE_MARGIN_S, misfit, outside_window
from obol.x402.permit2 import EXACT_PROXY
from obol.x402.reasons import Reason
from tests.x402.samples import NOW_S, OBOL, OBOL_REQUIREMENTS, PAY_TO, REQUIREMENTS, USDC, pay, pay_obol

BY_EIP3009 = parse_authorization(pay().payload)
BY_PERMIT2 = parse_authorization(pay_obol().payload)
STRANGER = "0x" + "77" * 20
both = pytest.mark.parametrize(
    ("authorization", "asset", "amount_atomic"),
    [(BY_EIP3009, USDC, int(REQUIREMENTS.amount)), (BY_PERMIT2, OBOL, int(OBOL_REQUIREMENTS.amount))],
)


def reason(authorization: Authorization, asset: Asset, amount_atomic: int) -> str | None:
    refused = misfit(authorization, asset, pay_to=PAY_TO.lower(), amount_atomic=amount_atomic)
    return None if refused is None else refused.reason


@both
def test_what_is_paid_exactly_fits(authorization: Authorization, asset: Asset, amount_atomic: int) -> None:
    assert reason(authorization, asset, amount_atomic) is None


@both
def test_another_recipient_or_amount_does_not_fit(
    authorization: Authorization, asset: Asset, amount_atomic: int
) -> None:
    names = REASONS[authorization.method]
    assert reason(replace(authorization, to=STRANGER), asset, amount_atomic) == names.recipient
    assert reason(authorization, asset, amount_atomic + 1) == names.value
    assert reason(authorization, asset, amount_atomic - 1) == names.value


def test_the_other_method_does_not_fit() -> None:
    assert reason(BY_EIP3009, OBOL, 1000) == Reason.NOT_EIP3009
    assert reason(BY_PERMIT2, USDC, int(OBOL_REQUIREMENTS.amount)) == Reason.INVALID_PAYLOAD


@pytest.mark.parametrize(
    ("permit", "expected"),
    [
        (Permit(OBOL.address.lower(), STRANGER), Reason.PERMIT2_SPENDER),
        (Permit(OBOL.address.lower(), "0x4020a4f3b7b90cca423b9fabcc0ce57c6c240002"), Reason.PERMIT2_SPENDER),
        (Permit(STRANGER, EXACT_PROXY), Reason.PERMIT2_TOKEN_MISMATCH),
        (Permit(USDC.address.lower(), EXACT_PROXY), Reason.PERMIT2_TOKEN_MISMATCH),
    ],
)
def test_only_the_exact_proxy_may_move_and_only_the_assets_token(permit: Permit, expected: Reason) -> None:
    assert reason(replace(BY_PERMIT2, permit=permit), OBOL, int(OBOL_REQUIREMENTS.amount)) == expected


@given(st.sampled_from([BY_EIP3009, BY_PERMIT2]), st.integers(-10, 10), st.integers(-10, 400))
def test_the_window_must_be_open_and_stay_so_for_a_settlement(
    authorization: Authorization, after: int, before: int
) -> None:
    now_s = int(NOW_S)
    refused = outside_window(
        replace(authorization, valid_after_s=now_s + after, valid_before_s=now_s + before), float(now_s)
    )
    names = REASONS[authorization.method]
    expected = names.valid_after if after > 0 else names.valid_before if before < SETTLE_MARGIN_S else None
    assert (None if refused is None else refused.reason) == expected


def test_each_method_has_its_own_reasons() -> None:
    assert set(REASONS) == set(TransferMethod)
    ours = [{getattr(REASONS[method], name) for name in REASONS[method].__slots__} for method in TransferMethod]
    assert not set.intersection(*ours)
