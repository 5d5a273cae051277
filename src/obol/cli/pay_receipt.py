"""The receipt of `obol pay`: what is known of the payment, with the seller's final word where it comes soon."""

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from obol.cli.output import one_line

if TYPE_CHECKING:
    from obol.buyer.payment import Payment

TRIES = 6
PAUSE_S = 0.5
TRY_TIMEOUT_S = 3.0
MAX_RECEIPT_BYTES = 64 * 1024

_FINAL = frozenset({"settled", "settle_failed", "waived", "released", "owed"})


def wait_for_receipt(payment: "Payment") -> dict[str, Any] | None:
    """The seller's receipt once it is final, or as it stands after a few tries, or None when it cannot be had.

    Asked of the paid origin only: a seller does not choose whom else we call.
    """
    import httpx2

    if httpx2.URL(payment.receipt_url).origin != httpx2.URL(payment.url).origin:
        return None
    receipt: dict[str, Any] | None = None
    with httpx2.Client(timeout=TRY_TIMEOUT_S) as client:
        for attempt in range(TRIES):
            if attempt:
                time.sleep(PAUSE_S)
            try:
                receipt = _fetch(client, payment.receipt_url) or receipt
            except httpx2.TransportError:
                return receipt
            if receipt is None or receipt.get("transaction") or receipt.get("state") in _FINAL:
                return receipt
    return receipt


def _fetch(client: Any, url: str) -> dict[str, Any] | None:
    body = b""
    with client.stream("GET", url) as response:
        if response.status_code != 200:
            return None
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > MAX_RECEIPT_BYTES:
                return None
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def presented_words(payment: "Payment") -> str:
    """What to say before an earlier run's payment is presented again."""
    return f"presenting the payment of {_what(payment)} that an earlier run left open: no other is signed"


def ignored_words(payment: "Payment") -> str:
    """What to say before another one is signed beside it."""
    return (
        f"WARNING: a payment of {_what(payment)} for this same request is kept and not resolved: it may have been "
        "paid. With --new-payment another is signed, and both may be paid"
    )


def _what(payment: "Payment") -> str:
    return f"{payment.amount} {payment.asset.symbol} on {payment.network} to {payment.pay_to}"


def receipt_record(payment: "Payment", final: Mapping[str, Any] | None, *, kept: str) -> dict[str, Any]:
    """Everything that is known, for programs. `state` is the seller's own word, None where it did not say; `kept` the
    file that the payment is in, "" where it is resolved."""
    final = final or {}
    return {
        "status": payment.status.value,
        "amount": payment.amount,
        "amount_atomic": str(payment.amount_atomic),
        "asset": payment.asset.symbol,
        "asset_address": payment.asset.address,
        "network": payment.network,
        "pay_to": payment.pay_to,
        "transaction": payment.transaction or _text(final.get("transaction")) or "",
        "receipt_url": payment.receipt_url,
        "state": _text(final.get("state")),
        "reason": payment.reason or _text(final.get("reason")) or "",
        "valid_before_s": payment.valid_before_s,
        "kept": kept,
    }


def receipt_words(record: Mapping[str, Any]) -> str:
    """The same for people."""
    kept = f"\n  kept in {record['kept']}: the same command presents this payment again" if record["kept"] else ""
    return f"{_end_words(record)}{kept}"


def _end_words(record: Mapping[str, Any]) -> str:
    what = f"{record['amount']} {record['asset']} on {record['network']} to {record['pay_to']}"
    receipt = f"\n  receipt: {one_line(record['receipt_url'])}" if record["receipt_url"] else ""
    reason = f" ({one_line(record['reason'])})" if record["reason"] else ""
    if record["status"] == "unpaid":
        return f"not paid: {what}{reason}{receipt}"
    if record["status"] != "paid":
        return (
            f"payment of {what} was sent, and whether it moved is not known{reason}: do not assume it did not{receipt}"
        )
    if record["transaction"]:
        return f"paid {what}\n  transaction: {one_line(record['transaction'])}{receipt}"
    if record["state"] == "waived":
        return f"presented {what}; the seller verified it and will not settle it{receipt}"
    if record["state"] in ("settle_failed", "released"):
        return f"not paid: {what}; the seller could not settle it{reason}{receipt}"
    return f"paid {what}\n  settles later: {one_line(record['receipt_url']) or 'the seller named no receipt'}"


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
