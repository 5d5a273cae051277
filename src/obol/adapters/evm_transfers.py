"""What moves an authorization on a chain: the call by its transfer method, and what the chain's reverts mean.

EIP-3009: `transferWithAuthorization` of the token. Permit2: `settle` of the x402 exact proxy, or `settleWithPermit`
where the payer has signed an EIP-2612 permit instead of having allowed Permit2 before.
Sources: EIP-3009, Permit2, EIP-2612, x402 `exact` scheme on EVM.
"""

from collections.abc import Mapping
from types import MappingProxyType

from obol.adapters.chain_evm import RevertedError
from obol.adapters.evm_abi import Value, call_data, selector
from obol.core.networks import TransferMethod
from obol.x402.authorization import Authorization
from obol.x402.checks import REASONS
from obol.x402.facilitator import Refused
from obol.x402.permit2 import EXACT_PROXY_ADDRESS
from obol.x402.reasons import Reason
from obol.x402.transfer_order import TransferOrder

_WORDS = "address,address,uint256,uint256,uint256,bytes32"
_BY_PARTS = f"transferWithAuthorization({_WORDS},uint8,bytes32,bytes32)"
_BY_BYTES = f"transferWithAuthorization({_WORDS},bytes)"
_PERMIT = "((address,uint256),uint256,uint256),address,(address,uint256),bytes"
SETTLE = f"settle({_PERMIT})"
SETTLE_WITH_PERMIT = f"settleWithPermit((uint256,uint256,bytes32,bytes32,uint8),{_PERMIT})"
_TEXTS = (
    ("authorization is used or canceled", Reason.AUTHORIZATION_USED),
    ("authorization is expired", Reason.VALID_BEFORE),
    ("authorization is not yet valid", Reason.VALID_AFTER),
    ("transfer amount exceeds balance", Reason.INSUFFICIENT_BALANCE),
    ("invalid signature", Reason.SIGNATURE),
)
"""What tokens say when they revert, and the reason it is."""
_ERRORS: Mapping[bytes, Reason] = MappingProxyType(
    {
        selector("InvalidNonce()"): Reason.PERMIT2_NONCE_USED,
        selector("SignatureExpired(uint256)"): Reason.PERMIT2_DEADLINE_EXPIRED,
        selector("InvalidSigner()"): Reason.PERMIT2_SIGNATURE,
        selector("InvalidSignature()"): Reason.PERMIT2_SIGNATURE,
        selector("InvalidSignatureLength()"): Reason.PERMIT2_SIGNATURE,
        selector("InvalidContractSignature()"): Reason.PERMIT2_SIGNATURE,
        selector("PaymentTooEarly()"): Reason.PERMIT2_TOO_EARLY,
    }
)
"""The same of Permit2 and its proxy, which revert with errors of their own."""


def transfer_call(order: TransferOrder, *, by_wallet: bool = False) -> tuple[str, bytes]:
    """Whom to call, and with what. What a wallet signed is handed over as it is: only the wallet can read it."""
    if order.asset.transfer_method is TransferMethod.PERMIT2:
        return EXACT_PROXY_ADDRESS, _permit2_data(order, by_wallet=by_wallet)
    return order.asset.address, _eip3009_data(order, by_wallet=by_wallet)


def refusal_of(reverted: RevertedError, method: TransferMethod) -> Refused:
    """Why the chain would not do it. Where it does not say, that it would not."""
    known = _ERRORS.get(reverted.data[:4])
    if known is not None:
        return Refused(known, f"the contract refuses: {known}")
    text = reverted.text.lower()
    for words, reason in _TEXTS:
        if words in text:
            is_signature = reason is Reason.SIGNATURE
            return Refused(REASONS[method].signature if is_signature else reason, reverted.text)
    return Refused(Reason.SIMULATION_FAILED, reverted.text or "the contract refuses, and does not say why")


def _eip3009_data(order: TransferOrder, *, by_wallet: bool) -> bytes:
    """By (v, r, s) for the signature of a key, else by its bytes."""
    authorization, signature = order.authorization, order.signature
    words = (
        authorization.payer,
        authorization.to,
        authorization.value_atomic,
        authorization.valid_after_s,
        authorization.valid_before_s,
        bytes.fromhex(authorization.nonce[2:]),
    )
    if by_wallet:
        return call_data(_BY_BYTES, *words, signature)
    return call_data(_BY_PARTS, *words, _v(signature), signature[:32], signature[32:64])


def _permit2_data(order: TransferOrder, *, by_wallet: bool) -> bytes:
    signature = order.signature if by_wallet else order.signature[:64] + bytes((_v(order.signature),))
    permit = _permit(order.authorization, order.asset.address, signature)
    approval = order.token_permit
    if approval is None:
        return call_data(SETTLE, *permit)
    r, s = approval.signature[:32], approval.signature[32:64]
    first = (approval.value_atomic, approval.deadline_s, r, s, _v(approval.signature))
    return call_data(SETTLE_WITH_PERMIT, first, *permit)


def _permit(authorization: Authorization, token: str, signature: bytes) -> tuple[Value, ...]:
    permitted = (token, authorization.value_atomic)
    terms = (permitted, int(authorization.nonce, 16), authorization.valid_before_s)
    return terms, authorization.payer, (authorization.to, authorization.valid_after_s), signature


def _v(signature: bytes) -> int:
    """27 or 28: contracts refuse 0 and 1."""
    return signature[64] if signature[64] >= 27 else signature[64] + 27
