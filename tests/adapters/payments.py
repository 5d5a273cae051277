"""Payments for tests, signed with eth-account: an implementation of EIP-712 that is not ours."""

import secrets
from typing import Any

from eth_account import Account
from eth_account.signers.local import LocalAccount

from obol.core.networks import BASE_SEPOLIA, DEFAULT_CATALOGUE, Asset
from obol.x402.models import ExactAuthorization, ExactPayload, PaymentPayload, PaymentRequirements

USDC = DEFAULT_CATALOGUE.asset(BASE_SEPOLIA, "usdc")
SELLER = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
PRICE_ATOMIC = 1000
FOREVER_S = 2**40
_FIELDS = [
    ("address", "from"),
    ("address", "to"),
    ("uint256", "value"),
    ("uint256", "validAfter"),
    ("uint256", "validBefore"),
    ("bytes32", "nonce"),
]
_TYPES = {"TransferWithAuthorization": [{"name": name, "type": kind} for kind, name in _FIELDS]}


def account(number: int = 1) -> LocalAccount:
    """A wallet that is the same in every run."""
    wallet: LocalAccount = Account.from_key(number.to_bytes(32, "big"))
    return wallet


def requirements(amount_atomic: int = PRICE_ATOMIC, token: Asset = USDC, **changes: Any) -> PaymentRequirements:
    """What a seller asks for; `changes` by field name."""
    fields: dict[str, Any] = {
        "scheme": "exact",
        "network": token.network.caip2,
        "amount": str(amount_atomic),
        "asset": token.address,
        "pay_to": SELLER,
        "max_timeout_seconds": 300,
        "extra": {"name": token.eip712_name, "version": token.eip712_version, "assetTransferMethod": "eip3009"},
    }
    return PaymentRequirements(**(fields | changes))


def pay(
    wanted: PaymentRequirements,
    wallet: LocalAccount | None = None,
    *,
    token: Asset = USDC,
    domain: dict[str, Any] | None = None,
    **changes: Any,
) -> PaymentPayload:
    """A signed payment for `wanted`; `changes` (EIP-3009 names, `from_`) and `domain` are signed as they are."""
    wallet = wallet or account()
    message: dict[str, Any] = {
        "from": changes.pop("from_", wallet.address),
        "to": wanted.pay_to,
        "value": int(wanted.amount),
        "validAfter": 0,
        "validBefore": FOREVER_S,
        "nonce": "0x" + secrets.token_hex(32),
    }
    message |= changes
    full_domain: dict[str, Any] = {
        "name": token.eip712_name,
        "version": token.eip712_version,
        "chainId": token.network.chain_id,
        "verifyingContract": token.address,
    }
    signed = wallet.sign_typed_data(full_domain | (domain or {}), _TYPES, message)
    return PaymentPayload(wanted, ExactPayload("0x" + signed.signature.hex(), _authorization(message)))


def unsigned(wanted: PaymentRequirements, payer: str = "0x" + "a1" * 20) -> PaymentPayload:
    """A payment whose signature is nonsense, for peers that do not look."""
    authorization = ExactAuthorization(payer, wanted.pay_to, wanted.amount, "0", str(FOREVER_S), "0x" + "01" * 32)
    return PaymentPayload(wanted, ExactPayload("0x" + "00" * 65, authorization))


def _authorization(message: dict[str, Any]) -> ExactAuthorization:
    return ExactAuthorization(
        message["from"],
        message["to"],
        str(message["value"]),
        str(message["validAfter"]),
        str(message["validBefore"]),
        message["nonce"],
    )
