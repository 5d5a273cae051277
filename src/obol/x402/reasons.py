"""The reasons that our own verifier and facilitator give for a refusal, in the vocabulary of the exact EVM scheme.

Source: x402 specification, section 9, and what the official facilitators send. Reasons of other implementations are
opaque strings: shown, never branched on.
"""

from enum import StrEnum


class Reason(StrEnum):
    """Why a payment is not good."""

    ASSET_NOT_SUPPORTED = "invalid_exact_evm_failed_to_get_asset_info"
    AUTHORIZATION_USED = "invalid_exact_evm_nonce_already_used"
    DEPLOYMENT_FAILED = "smart_wallet_deployment_failed"
    EIP2612_AMOUNT_MISMATCH = "permit2_2612_amount_mismatch"
    EIP2612_ASSET_MISMATCH = "eip2612_asset_mismatch"
    EIP2612_EXPIRED = "eip2612_deadline_expired"
    EIP2612_PAYER_MISMATCH = "eip2612_from_mismatch"
    EIP2612_SIGNATURE = "eip2612_invalid_signature"
    """Ours: others find out when the permit is handed in."""
    EIP2612_SPENDER = "eip2612_spender_not_permit2"
    DUPLICATE = "duplicate_settlement"
    """Settled, and somebody else was told so: whoever serves for it must be one."""
    FACTORY_NOT_ALLOWED = "eip6492_factory_not_allowed"
    FAILURE_BUDGET = "payer_failure_budget_exhausted"
    """Ours: too many of this payer's settlements reverted."""
    INSUFFICIENT_BALANCE = "invalid_exact_evm_insufficient_balance"
    INVALID_NETWORK = "invalid_network"
    INVALID_PAYLOAD = "invalid_payload"
    INVALID_REQUIREMENTS = "invalid_payment_requirements"
    INVALID_VERSION = "invalid_x402_version"
    MISSING_EIP712_DOMAIN = "missing_eip712_domain"
    NETWORK_MISMATCH = "network_mismatch"
    NOT_EIP3009 = "invalid_exact_evm_eip3009_not_supported"
    PERMIT2_ALLOWANCE_REQUIRED = "permit2_allowance_required"
    """The payer has not let Permit2 move this token, or not as much: nothing moves before it does."""
    PERMIT2_AMOUNT_MISMATCH = "permit2_amount_mismatch"
    PERMIT2_DEADLINE_EXPIRED = "permit2_deadline_expired"
    PERMIT2_NONCE_USED = "permit2_invalid_nonce"
    PERMIT2_NOT_YET_VALID = "permit2_not_yet_valid"
    PERMIT2_RECIPIENT_MISMATCH = "invalid_permit2_recipient_mismatch"
    PERMIT2_SIGNATURE = "invalid_permit2_signature"
    PERMIT2_SPENDER = "invalid_permit2_spender"
    PERMIT2_TOKEN_MISMATCH = "permit2_token_mismatch"  # noqa: S105 - a token on a chain
    PERMIT2_TOO_EARLY = "permit2_payment_too_early"
    """The proxy's word for not yet valid, when it reverts."""
    RECIPIENT_MISMATCH = "invalid_exact_evm_payload_recipient_mismatch"
    SETTLEMENT_PENDING = "settlement_pending"
    """Broadcast and not confirmed: ask again with the same payload."""
    SIGNATURE = "invalid_exact_evm_payload_signature"
    SIMULATION_FAILED = "invalid_exact_evm_transaction_simulation_failed"
    TOKEN_NAME_MISMATCH = "invalid_exact_evm_token_name_mismatch"  # noqa: S105 - a token on a chain
    TOKEN_VERSION_MISMATCH = "invalid_exact_evm_token_version_mismatch"  # noqa: S105
    TRANSACTION_FAILED = "transaction_failed"
    UNEXPECTED_SETTLE_ERROR = "unexpected_settle_error"
    UNEXPECTED_VERIFY_ERROR = "unexpected_verify_error"
    UNSUPPORTED_SCHEME = "unsupported_scheme"
    VALID_AFTER = "invalid_exact_evm_payload_authorization_valid_after"
    VALID_BEFORE = "invalid_exact_evm_payload_authorization_valid_before"
    VALUE_MISMATCH = "invalid_exact_evm_payload_authorization_value_mismatch"
