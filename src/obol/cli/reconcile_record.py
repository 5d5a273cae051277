"""`obol reconcile --record`: what the chain proves of sales that were refused is written into the ledger.

One step of one sale at a time, and only from `settle_failed`: a sale that another has moved on meanwhile is left alone.
"""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from obol.cli.ledger_file import sales_of
from obol.core.ledger import Change, Ledger, SaleFilter
from obol.core.payment import Event, State
from obol.core.reconciliation import is_by_permit2, is_no_earlier
from obol.core.reconciliation_report import Finding, Kind, Report, TransferKey
from obol.core.sale import Delivery, Sale
from obol.errors import IllegalTransitionError, MalformedPaymentError
from obol.x402.authorization import Authorization, parse_authorization
from obol.x402.models import PaymentPayload, PaymentRequirements
from obol.x402.witness import USED_BEFORE

if TYPE_CHECKING:
    from obol.cli.reconcile_sources import Source

Proven = tuple[Sale, Finding]
"""A sale that was refused, and its own payment on the chain."""


async def record_paid(
    ledger: Ledger, source: "Source", report: Report, refused: SaleFilter, *, due_before_s: float
) -> list[Finding]:
    """Record every refused sale of `report` whose payment is proven; what was recorded, as it is recorded now.

    `refused`: the sales that are looked at. Everything is found out before anything is recorded.
    """
    proven = [one async for one in _by_nonce(ledger, report)]
    proven += [one async for one in _by_permit2(ledger, source, report, refused, due_before_s)]
    recorded = []
    for sale, finding in proven:
        now = await _record(ledger, sale, finding)
        if now is not None:
            recorded.append(_as_recorded(finding, now))
    return recorded


async def _by_nonce(ledger: Ledger, report: Report) -> AsyncIterator[Proven]:
    """Paid by EIP-3009: the report has it from the token's logs."""
    for finding in report.findings:
        if finding.is_recordable:
            sale = await ledger.sale(finding.sale)
            if sale is not None and _is_refused(sale):
                yield sale, finding


async def _by_permit2(
    ledger: Ledger, source: "Source", report: Report, refused: SaleFilter, due_before_s: float
) -> AsyncIterator[Proven]:
    """Paid by Permit2: the report only guesses, so whichever sale a transfer may be of is asked about by itself.

    A transfer proves one sale at most.
    """
    loose = _loose(report)
    if not loose:
        return
    async for sale in sales_of(ledger, refused):
        if not is_by_permit2(sale) or not _is_refused(sale) or sale.updated_s >= due_before_s:
            continue
        if not any(_may_be(finding, sale) for finding in loose.values()):
            continue
        payment = _payment_of(sale)
        key = None if payment is None else await source.transfer_of(*payment)
        if key is not None and key in loose and _may_be(loose[key], sale):
            yield sale, loose.pop(key)


def _loose(report: Report) -> dict[TransferKey, Finding]:
    """The transfers that no sale is surely paid by."""
    return {
        (finding.transaction.lower(), finding.log_index): finding
        for finding in report.findings
        if finding.kind in (Kind.UNRECORDED, Kind.UNEXPLAINED) and finding.log_index is not None
    }


def _is_refused(sale: Sale) -> bool:
    """Refused, and not because the money had paid for something else."""
    return sale.state is State.SETTLE_FAILED and sale.reason != USED_BEFORE


def _may_be(finding: Finding, sale: Sale) -> bool:
    return (finding.payer, finding.transferred_atomic) == (sale.key.payer, sale.authorized_atomic) and is_no_earlier(
        finding.time_s, sale.created_s
    )


def _payment_of(sale: Sale) -> tuple[PaymentPayload, PaymentRequirements] | None:
    """What the sale was claimed with; None where that is not what the sale says, and proves nothing of it."""
    try:
        payload = msgspec.json.decode(sale.payload, type=PaymentPayload)
        requirements = msgspec.json.decode(sale.requirements, type=PaymentRequirements)
        authorization = parse_authorization(payload.payload)
    except (msgspec.MsgspecError, MalformedPaymentError):  # `obol ledger check` says so
        return None
    return (payload, requirements) if _is_told_by(authorization, requirements, sale) else None


def _is_told_by(authorization: Authorization, requirements: PaymentRequirements, sale: Sale) -> bool:
    key = sale.key
    return (
        (authorization.payer, authorization.nonce) == (key.payer, key.nonce)
        and (requirements.network, requirements.asset.lower()) == (key.network, key.asset)
        and (requirements.pay_to.lower(), requirements.amount) == (sale.pay_to.lower(), str(sale.authorized_atomic))
    )


async def _record(ledger: Ledger, sale: Sale, finding: Finding) -> Sale | None:
    """The sale as it is recorded now; None where another has moved it on since it was read."""
    event = Event.FOUND_PAID_UNDELIVERED if sale.delivery is Delivery.NONE else Event.FOUND_PAID
    change = Change(
        settled_atomic=sale.authorized_atomic,
        transaction=finding.transaction,
        reason="",
        log_index=finding.log_index,
    )
    try:
        return await ledger.record(sale.id, [event], change)
    except IllegalTransitionError:
        return None


def _as_recorded(finding: Finding, sale: Sale) -> Finding:
    return replace(
        finding,
        kind=Kind.MATCHED,
        sale=sale.id,
        state=sale.state.value,
        recorded_atomic=sale.settled_atomic,
        is_alarm=False,
        is_recordable=False,
    )
