"""The reasons that our own verifier and facilitator give for a refusal, in the vocabulary of the exact EVM scheme.

Source: x402 specification, section 9, and what the official facilitators send. Reasons of other implementations are
opaque strings: shown, never branched on.
"""

from enum import StrEnum


class Reason(StrEnum):
    """Why a payment is not good."""

    ASSET_NOT_SUPPORTED = "invalid_exact_evm_failed_to_get_asset_info"
    AUTHORIZATION_USED = "invalid_exact_evm_nonce_already_used"
    INSUFFICIENT_BALANCE = "invalid_exact_evm_insufficient_balance"
    INVALID_NETWORK = "invalid_network"
    INVALID_PAYLOAD = "invalid_payload"
    INVALID_REQUIREMENTS = "invalid_payment_requirements"
    INVALID_VERSION = "invalid_x402_version"
    MISSING_EIP712_DOMAIN = "missing_eip712_domain"
    NETWORK_MISMATCH = "network_mismatch"
    NOT_EIP3009 = "invalid_exact_evm_eip3009_not_supported"
    RECIPIENT_MISMATCH = "invalid_exact_evm_payload_recipient_mismatch"
    SETTLEMENT_PENDING = "settlement_pending"
    """Broadcast and not confirmed: ask again with the same payload."""
    SIGNATURE = "invalid_exact_evm_payload_signature"
    TOKEN_NAME_MISMATCH = "invalid_exact_evm_token_name_mismatch"  # noqa: S105 - a token on a chain
    TOKEN_VERSION_MISMATCH = "invalid_exact_evm_token_version_mismatch"  # noqa: S105
    TRANSACTION_FAILED = "transaction_failed"
    UNEXPECTED_SETTLE_ERROR = "unexpected_settle_error"
    UNEXPECTED_VERIFY_ERROR = "unexpected_verify_error"
    UNSUPPORTED_SCHEME = "unsupported_scheme"
    VALID_AFTER = "invalid_exact_evm_payload_authorization_valid_after"
    VALID_BEFORE = "invalid_exact_evm_payload_authorization_valid_before"
    VALUE_MISMATCH = "invalid_exact_evm_payload_authorization_value_mismatch"
