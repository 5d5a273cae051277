"""What a facilitator's reply to `/settle` means, read as if it were hostile.

What counts as what; anything that is not listed is UNKNOWN, because money may have moved:

    200 success:true, our network, our payer, a transaction          SETTLED
    any status, success:false errorReason settlement_pending         PENDING
    200 or 4xx, success:false, a reason in `_REVERTED`, a transaction   FAILED   mined, and it moved nothing
    200 or 4xx, success:false, a reason in `_DEFINITE`, no transaction  FAILED   it says why the payment is not good

Source: x402 specification v2, section 7; reasons of the official facilitators and of hosted ones.
"""

import re
from typing import Any

import msgspec

from obol.x402.facilitator import Settlement, SettleOutcome
from obol.x402.models import PaymentPayload, PaymentRequirements
from obol.x402.reasons import Reason

_PENDING = Reason.SETTLEMENT_PENDING.value
_REVERTED = frozenset({"transaction_failed", "invalid_exact_evm_transaction_failed", "settle_exact_failed_onchain"})
"""With a transaction: it was mined and reverted. Without one: sending it failed, and it may have been sent."""
_OWN = frozenset(Reason) - {
    Reason.AUTHORIZATION_USED,  # used by whom? by an earlier ask of ours, or cancelled
    Reason.PERMIT2_NONCE_USED,
    Reason.DEPLOYMENT_FAILED,  # others send the deployment first
    Reason.DUPLICATE,  # it moved; somebody else was told so
    Reason.INVALID_PAYLOAD,  # some say this of whatever they do not understand
    Reason.SETTLEMENT_PENDING,
    Reason.SIMULATION_FAILED,  # also where the authorization was used, and nobody looked
    Reason.TRANSACTION_FAILED,
    Reason.UNEXPECTED_SETTLE_ERROR,
    Reason.UNEXPECTED_VERIFY_ERROR,
}
_DEFINITE = frozenset(map(str, _OWN)) | {
    "asset_not_deployed_contract",
    "eip2612_spender_not_permit2",
    "insufficient_funds",
    "invalid_eip2612_extension_format",
    "invalid_exact_evm_authorization_value",
    "invalid_exact_evm_failed_to_parse_signature",
    "invalid_exact_evm_missing_eip712_domain",
    "invalid_exact_evm_network_mismatch",
    "invalid_exact_evm_payload_authorization_value",
    "invalid_exact_evm_payload_undeployed_smart_wallet",
    "invalid_exact_evm_recipient_mismatch",
    "invalid_exact_evm_scheme",
    "invalid_exact_evm_signature",
    "invalid_permit2_amount",
    "invalid_permit2_destination",
    "invalid_permit2_owner",
    "invalid_scheme",
    "kyt_risk_detected",
    "permit2_insufficient_balance",
    "permit2_invalid_amount",
    "permit2_invalid_destination",
    "permit2_invalid_owner",
    "permit2_proxy_not_deployed",
}
"""Why a payment is not good, found out before anything was sent. A reason that nobody knows proves nothing."""
_NO_FINAL_WORD = frozenset({408, 425, 429})
"""4xx that say "not now"."""
_TRANSACTION = re.compile(r"0x[0-9a-fA-F]{64}", re.ASCII)
_MAX_LOG_INDEX = 2**31
_TEXT_LIMIT = 200
_CODE = re.compile(r"[A-Za-z0-9_.:-]{1,100}")


class _SettleReply(msgspec.Struct, frozen=True, rename="camel"):
    """`SettleResponse` as others send it: only `success` is there for sure."""

    success: bool
    transaction: str | None = None
    network: str | None = None
    payer: str | None = None
    amount: str | None = None
    error_reason: str | None = None
    error_message: str | None = None
    extra: Any = None


def read_settlement(status: int, body: bytes, payload: PaymentPayload, requirements: PaymentRequirements) -> Settlement:
    """The settlement that a reply tells of; see the table above."""
    try:
        reply = msgspec.json.decode(body, type=_SettleReply)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        if status != 200:
            return unknown("facilitator_error", f"the facilitator answered {status}")
        return unknown("facilitator_nonsense", "the facilitator's answer is not a settle response")
    if reply.success:
        return _success(status, reply, payload, requirements)
    return _no(status, reply)


def unknown(reason: str, message: str) -> Settlement:
    """Nobody knows what came of it."""
    return Settlement(SettleOutcome.UNKNOWN, "", reason, message)


def reason_code(text: str | None) -> str:
    """A peer's reason where it is a code: buyers see reasons, and a sentence in its place may name the peer's hosts."""
    return text if text and _CODE.fullmatch(text) else ("unspecified" if text else "")


def harmless(text: str | None) -> str:
    """A peer's words: printable and short."""
    kept = (text or "")[:_TEXT_LIMIT]
    return kept if kept.isprintable() else "".join(c for c in kept if c.isprintable())


def _success(
    status: int, reply: _SettleReply, payload: PaymentPayload, requirements: PaymentRequirements
) -> Settlement:
    flaw = f"answers {status}" if status != 200 else _flaw(reply, payload, requirements)
    if flaw:
        return unknown("facilitator_nonsense", f"the facilitator says it settled, but {flaw}")
    return Settlement(SettleOutcome.SETTLED, _transaction(reply), log_index=_log_index(reply))


def _no(status: int, reply: _SettleReply) -> Settlement:
    reason, message, transaction = (
        reason_code(reply.error_reason),
        harmless(reply.error_message),
        _transaction(reply),
    )
    if reason == _PENDING:
        return Settlement(SettleOutcome.PENDING, transaction, reason, message)
    is_broadcast = transaction != ""
    is_answer = status == 200 or (400 <= status < 500 and status not in _NO_FINAL_WORD)
    is_definite = reason in _REVERTED if is_broadcast else reason in _DEFINITE
    outcome = SettleOutcome.FAILED if is_answer and is_definite else SettleOutcome.UNKNOWN
    return Settlement(outcome, transaction, reason or "unspecified", message)


def _transaction(reply: _SettleReply) -> str:
    """Its hash, or "": what is none is not shown to anybody as one."""
    text = reply.transaction or ""
    return text.lower() if _TRANSACTION.fullmatch(text) else ""


def _log_index(reply: _SettleReply) -> int | None:
    """Our own facilitator's; anything else in its place is no information."""
    index = reply.extra.get("logIndex") if isinstance(reply.extra, dict) else None
    return index if type(index) is int and 0 <= index < _MAX_LOG_INDEX else None


def _flaw(reply: _SettleReply, payload: PaymentPayload, requirements: PaymentRequirements) -> str:
    """Why a `success: true` does not say that this payment was settled; "" when it does."""
    if not _transaction(reply):
        return "names no transaction"
    if reply.network != requirements.network:
        return "names another network"
    if reply.payer is not None and reply.payer.lower() != payload.payer.lower():
        return "names another payer"
    if reply.amount is not None and reply.amount != requirements.amount:
        return "names another amount"
    return ""
