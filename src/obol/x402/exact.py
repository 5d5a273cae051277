"""The scheme `exact` with EIP-3009: our requirements, matching a payment to them, verifying it locally.

Everything is compared with and hashed by our own requirements and token domain, never the buyer's `accepted`: a buyer
who could choose the domain could sign something that no token honours.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from obol.core.money import parse_atomic
from obol.core.networks import Asset, Catalogue, TransferMethod
from obol.core.offer import Offer
from obol.core.sale import ClaimKey
from obol.errors import SettingsError
from obol.x402.authorization import Authorization, parse_authorization, parse_signature
from obol.x402.eip712 import authorization_digest, checksum_address, domain_separator, recover
from obol.x402.facilitator import Refused
from obol.x402.models import (
    ExactAuthorization,
    ExactPayload,
    PaymentPayload,
    PaymentRequirements,
    RequirementsExtra,
)
from obol.x402.presented import Presented
from obol.x402.reasons import Reason
from obol.x402.v1 import caip2_of

__all__ = [
    "SCHEME",
    "Authorization",
    "ExactVerifier",
    "Undecided",
    "Verified",
    "build_requirements",
    "matches",
    "parse_authorization",
]

SCHEME = "exact"
SETTLE_MARGIN_S = 6
"""What must be left of the window, so that a settlement can still be mined; the official facilitator asks the same."""
_EOA_SIGNATURE_BYTES = 65


@dataclass(frozen=True, slots=True)
class Verified:
    """The payment is good as far as it can be known without the chain: signed by the payer, for us, now."""

    payload: PaymentPayload = field(repr=False)
    """Rebuilt from typed values: our requirements as `accepted`, EIP-55 addresses, v 27 or 28."""
    authorization: Authorization
    key: ClaimKey


@dataclass(frozen=True, slots=True)
class Undecided:
    """All fits but the signature, which is not the payer's own: a contract wallet, perhaps. A facilitator can tell."""

    payload: PaymentPayload = field(repr=False)
    """As in `Verified`, with the signature's bytes as they came: a contract may give any meaning to each of them."""
    authorization: Authorization
    key: ClaimKey


def build_requirements(offer: Offer) -> PaymentRequirements:
    """How to pay for one request of an offer. Raises `SettingsError` for an asset that is not moved by EIP-3009."""
    asset = offer.asset
    if asset.transfer_method is not TransferMethod.EIP3009:
        raise SettingsError(
            "--payment-asset",
            f"{asset.symbol} on {asset.network.name} needs {asset.transfer_method}: not supported yet",
        )
    extra = RequirementsExtra(asset.eip712_name, asset.eip712_version, asset.transfer_method.value)
    return PaymentRequirements(
        scheme=SCHEME,
        network=asset.network.caip2,
        amount=str(offer.price_atomic),
        asset=checksum_address(asset.address),
        pay_to=checksum_address(offer.pay_to),
        max_timeout_seconds=offer.max_timeout_s,
        extra=msgspec.to_builtins(extra),
    )


def matches(presented: Presented, requirements: PaymentRequirements, catalogue: Catalogue) -> bool:
    """Whether a payment was made for these requirements: by what it says it accepted, nothing signed is looked at.

    v1 says only scheme and network. v2 must repeat every field; addresses in any letter case, networks by any name,
    and `extra` may hold more than ours.
    """
    if presented.scheme != requirements.scheme:
        return False
    if caip2_of(presented.network, catalogue) != caip2_of(requirements.network, catalogue):
        return False
    accepted = presented.accepted
    if accepted is None:
        return presented.version == 1
    return (
        accepted.amount == requirements.amount
        and accepted.asset.lower() == requirements.asset.lower()
        and accepted.pay_to.lower() == requirements.pay_to.lower()
        and accepted.max_timeout_seconds == requirements.max_timeout_seconds
        and _contains(accepted.extra or {}, requirements.extra or {})
    )


def _contains(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    return all(name in theirs and theirs[name] == value for name, value in ours.items())


class ExactVerifier:
    """Verifies payments for one set of requirements; what can be computed once is. `max_validity_s` is our own cap on
    how far ahead `validBefore` may lie: the protocol has none.
    """

    def __init__(self, requirements: PaymentRequirements, asset: Asset, *, max_validity_s: int) -> None:
        """Raises `ValueError` for requirements without a canonical amount, or for another asset or network."""
        amount_atomic = parse_atomic(requirements.amount)
        if amount_atomic is None:
            raise ValueError("the amount of the requirements is not a canonical decimal string")
        if (requirements.network, requirements.asset.lower()) != (asset.network.caip2, asset.address.lower()):
            raise ValueError("the requirements are for another asset")
        self._requirements = requirements
        self._amount_atomic = amount_atomic
        self._asset = asset.address.lower()
        self._pay_to_emitted = checksum_address(requirements.pay_to)
        self._pay_to = self._pay_to_emitted.lower()
        self._max_validity_s = max_validity_s
        self._domain_separator = domain_separator(
            asset.eip712_name, asset.eip712_version, asset.network.chain_id, asset.address
        )

    def verify(self, presented: Presented, now_s: float) -> Verified | Undecided | Refused:
        """Check scheme, network, payee, amount, window and signature, cheapest first. `now_s` in Unix seconds.

        Raises `MalformedPaymentError` when numbers, addresses, nonce or signature are not written as they must be.
        """
        authorization = parse_authorization(presented.payload)
        signature = parse_signature(presented.payload)
        refused = self._refusal(presented, authorization, now_s)
        if refused is not None:
            return refused
        key = ClaimKey(self._requirements.network, self._asset, authorization.payer, authorization.nonce)
        if len(signature) != _EOA_SIGNATURE_BYTES:
            return Undecided(self._rebuild(authorization, signature), authorization, key)
        signer = recover(authorization_digest(self._domain_separator, authorization), signature)
        if signer is None:
            return Refused(Reason.SIGNATURE, "the signature is not one that the token accepts (low s, v 27 or 28)")
        if signer != authorization.payer:
            return Undecided(self._rebuild(authorization, signature), authorization, key)
        v = signature[64] if signature[64] >= 27 else signature[64] + 27  # the token's contract reverts on 0 and 1
        return Verified(self._rebuild(authorization, signature[:64] + bytes((v,))), authorization, key)

    def _refusal(self, presented: Presented, authorization: Authorization, now_s: float) -> Refused | None:
        if presented.scheme != self._requirements.scheme:
            return Refused(Reason.UNSUPPORTED_SCHEME, "another scheme than the one asked for")
        if presented.network != self._requirements.network:
            return Refused(Reason.INVALID_NETWORK, "another network than the one asked for")
        if authorization.to != self._pay_to:
            return Refused(Reason.RECIPIENT_MISMATCH, "authorized for another recipient")
        if authorization.value_atomic != self._amount_atomic:
            return Refused(Reason.VALUE_MISMATCH, f"authorized is not exactly the amount of {self._amount_atomic}")
        return self._window_refusal(authorization, now_s)

    def _window_refusal(self, authorization: Authorization, now_s: float) -> Refused | None:
        if authorization.valid_after_s > now_s:
            return Refused(Reason.VALID_AFTER, "the authorization is not valid yet")
        if authorization.valid_before_s < now_s + SETTLE_MARGIN_S:
            return Refused(Reason.VALID_BEFORE, "the authorization has expired or is about to")
        if authorization.valid_before_s > now_s + self._max_validity_s:
            return Refused(
                Reason.VALID_BEFORE,
                f"the authorization is valid too long: at most {self._max_validity_s} s are accepted",
            )
        return None

    def _rebuild(self, authorization: Authorization, signature: bytes) -> PaymentPayload:
        return PaymentPayload(
            accepted=self._requirements,
            payload=ExactPayload(
                signature="0x" + signature.hex(),
                authorization=ExactAuthorization(
                    from_=checksum_address(authorization.payer),
                    to=self._pay_to_emitted,
                    value=str(authorization.value_atomic),
                    valid_after=str(authorization.valid_after_s),
                    valid_before=str(authorization.valid_before_s),
                    nonce=authorization.nonce,
                ),
            ),
        )
