"""What an authorization can be held against without a chain: the terms that were asked for, and its window.

The same checks for sellers and facilitators, with the reasons that the official facilitators give, which differ by
transfer method. Source: x402 `exact` scheme on EVM.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from obol.core.networks import Asset, TransferMethod
from obol.x402.authorization import Authorization, Permit
from obol.x402.facilitator import Refused
from obol.x402.permit2 import EXACT_PROXY
from obol.x402.reasons import Reason

SETTLE_MARGIN_S = 6
"""What must be left of the window, so that a settlement can still be mined; the official facilitator asks the same."""


@dataclass(frozen=True, slots=True)
class MethodReasons:
    """What the same flaw is called under one transfer method."""

    recipient: Reason
    value: Reason
    valid_after: Reason
    valid_before: Reason
    signature: Reason
    used: Reason
    other_method: Reason
    """The payment is for this method, the asset is moved by the other."""


REASONS: Mapping[TransferMethod, MethodReasons] = MappingProxyType(
    {
        TransferMethod.EIP3009: MethodReasons(
            recipient=Reason.RECIPIENT_MISMATCH,
            value=Reason.VALUE_MISMATCH,
            valid_after=Reason.VALID_AFTER,
            valid_before=Reason.VALID_BEFORE,
            signature=Reason.SIGNATURE,
            used=Reason.AUTHORIZATION_USED,
            other_method=Reason.NOT_EIP3009,
        ),
        TransferMethod.PERMIT2: MethodReasons(
            recipient=Reason.PERMIT2_RECIPIENT_MISMATCH,
            value=Reason.PERMIT2_AMOUNT_MISMATCH,
            valid_after=Reason.PERMIT2_NOT_YET_VALID,
            valid_before=Reason.PERMIT2_DEADLINE_EXPIRED,
            signature=Reason.PERMIT2_SIGNATURE,
            used=Reason.PERMIT2_NONCE_USED,
            other_method=Reason.INVALID_PAYLOAD,
        ),
    }
)


def misfit(authorization: Authorization, asset: Asset, *, pay_to: str, amount_atomic: int | None) -> Refused | None:
    """Why an authorization does not pay exactly this amount of `asset` to `pay_to` (lower case), or None."""
    reasons = REASONS[authorization.method]
    if authorization.method is not asset.transfer_method:
        text = f"{asset.symbol} is moved by {asset.transfer_method}, not by {authorization.method}"
        return Refused(reasons.other_method, text)
    if authorization.permit is not None:
        refused = _permit_misfit(authorization.permit, asset)
        if refused is not None:
            return refused
    if authorization.to != pay_to:
        return Refused(reasons.recipient, "authorized for another recipient")
    if authorization.value_atomic != amount_atomic:
        return Refused(reasons.value, f"authorized is not exactly the amount of {amount_atomic}")
    return None


def outside_window(authorization: Authorization, now_s: float, *, margin_s: float = SETTLE_MARGIN_S) -> Refused | None:
    """Why an authorization cannot be settled now, as far as its window says, or None.

    `now_s` in Unix seconds; `margin_s`: what must be left of the window.
    """
    reasons = REASONS[authorization.method]
    if authorization.valid_after_s > now_s:
        return Refused(reasons.valid_after, "the authorization is not valid yet")
    if authorization.valid_before_s < now_s + margin_s:
        return Refused(reasons.valid_before, "the authorization has expired or is about to")
    return None


def _permit_misfit(permit: Permit, asset: Asset) -> Refused | None:
    """Permit2 moves any token to whoever the spender chooses: both must be the right ones."""
    if permit.spender != EXACT_PROXY:
        return Refused(Reason.PERMIT2_SPENDER, "the spender is not the x402 exact proxy")
    if permit.token != asset.address.lower():
        return Refused(Reason.PERMIT2_TOKEN_MISMATCH, "authorized for another token")
    return None
