"""What an answer to a paid request says about the money. Pure.

The settlement header decides where there is one: a seller's "not settled" is believed as far as it costs nothing,
because the amount stays held until the payload has expired. Without it only statuses by which a seller declines
before it settles count as unpaid; whatever else is not known is unknown, and never unpaid.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from obol.buyer.payment import PaymentStatus
from obol.errors import PeerProtocolError
from obol.x402.client import read_receipt
from obol.x402.models import SettleResponse

_PENDING = "settlement_pending"
"""The facilitators' word for broadcast but not confirmed: not a refusal, whatever `success` says."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known now; `reason` is the seller's code where the money did not move, or may not have."""

    status: PaymentStatus
    transaction: str = ""
    reason: str = ""


def judge(status_code: int, headers: Mapping[str, str]) -> Verdict:
    """The verdict on an answer to a paid request."""
    response = _read(headers)
    if response is None:
        return _judge_by_status(status_code)
    if response.success:
        return Verdict(PaymentStatus.PAID, response.transaction)
    reason = response.error_reason or "settlement_failed"
    if response.transaction or reason == _PENDING:
        return Verdict(PaymentStatus.UNKNOWN, response.transaction, reason)
    return Verdict(PaymentStatus.UNPAID, reason=reason)


def _judge_by_status(status_code: int) -> Verdict:
    if 200 <= status_code < 300:
        return Verdict(PaymentStatus.UNKNOWN, reason="no_receipt")
    # 408 and 409 are about a request that is or was being served; other 5xx may come after a settlement.
    if status_code == 503 or (400 <= status_code < 500 and status_code not in (408, 409)):
        return Verdict(PaymentStatus.UNPAID, reason=f"http_{status_code}")
    return Verdict(PaymentStatus.UNKNOWN, reason=f"http_{status_code}")


def _read(headers: Mapping[str, str]) -> SettleResponse | None:
    try:
        return read_receipt(headers)
    except PeerProtocolError:
        return None  # a receipt that cannot be read says nothing: as if there were none
