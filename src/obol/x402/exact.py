"""The scheme `exact`, by EIP-3009 or Permit2: our requirements, matching a payment to them, verifying it locally.

Everything is compared with and hashed by our own requirements and token domain, never the buyer's `accepted`: a buyer
who could choose the domain could sign something that no token honours.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import UNSET

from obol.core.money import parse_atomic
from obol.core.networks import Asset, Catalogue
from obol.core.offer import Offer
from obol.core.sale import ClaimKey
from obol.x402.authorization import Authorization, parse_authorization, parse_signature
from obol.x402.checks import REASONS, SETTLE_MARGIN_S, misfit, outside_window
from obol.x402.eip712 import authorization_digest, checksum_address, recover, signing_domain
from obol.x402.facilitator import Refused
from obol.x402.gas_sponsoring import TokenPermit, permit_expired, permit_misfit, write_token_permit
from obol.x402.models import PaymentPayload, PaymentRequirements, RequirementsExtra
from obol.x402.presented import Presented
from obol.x402.reasons import Reason
from obol.x402.v1 import caip2_of, is_sold_in_v1
from obol.x402.wire_form import wire_form

__all__ = [
    "SCHEME",
    "SETTLE_MARGIN_S",
    "Authorization",
    "ExactVerifier",
    "Undecided",
    "Verified",
    "build_requirements",
    "matches",
    "parse_authorization",
]

SCHEME = "exact"
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
    """How to pay for one request of an offer, by the method that its asset is moved by."""
    asset = offer.asset
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

    v1 says only scheme and network, and is for EIP-3009 alone. v2 must repeat every field; addresses in any letter
    case, networks by any name, and `extra` may hold more than ours.
    """
    if presented.scheme != requirements.scheme:
        return False
    if caip2_of(presented.network, catalogue) != caip2_of(requirements.network, catalogue):
        return False
    accepted = presented.accepted
    if accepted is None:
        return presented.version == 1 and is_sold_in_v1(requirements)
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
        self._asset = asset
        self._pay_to = checksum_address(requirements.pay_to).lower()
        self._max_validity_s = max_validity_s
        self._domain = signing_domain(asset)

    def verify(self, presented: Presented, now_s: float) -> Verified | Undecided | Refused:
        """Check scheme, network, method, payee, amount, window and signature, cheapest first. `now_s` in Unix seconds.

        Raises `MalformedPaymentError` when numbers, addresses, nonce or signature are not written as they must be.
        """
        authorization = parse_authorization(presented.payload)
        signature = parse_signature(presented.payload)
        refused = self._refusal(presented, authorization, now_s)
        if refused is not None:
            return refused
        permit = presented.token_permit
        asset = self._asset.address.lower()
        key = ClaimKey(self._requirements.network, asset, authorization.payer, authorization.nonce)
        if len(signature) != _EOA_SIGNATURE_BYTES:
            return Undecided(self._rebuild(authorization, signature, permit), authorization, key)
        signer = recover(authorization_digest(self._domain, authorization), signature)
        if signer is None:
            reason = REASONS[authorization.method].signature
            return Refused(reason, "the signature is not one that the token accepts (low s, v 27 or 28)")
        if signer != authorization.payer:
            return Undecided(self._rebuild(authorization, signature, permit), authorization, key)
        v = signature[64] if signature[64] >= 27 else signature[64] + 27  # the token's contract reverts on 0 and 1
        return Verified(self._rebuild(authorization, signature[:64] + bytes((v,)), permit), authorization, key)

    def _refusal(self, presented: Presented, authorization: Authorization, now_s: float) -> Refused | None:
        if presented.scheme != self._requirements.scheme:
            return Refused(Reason.UNSUPPORTED_SCHEME, "another scheme than the one asked for")
        if presented.network != self._requirements.network:
            return Refused(Reason.INVALID_NETWORK, "another network than the one asked for")
        return (
            misfit(authorization, self._asset, pay_to=self._pay_to, amount_atomic=self._amount_atomic)
            or self._window_refusal(authorization, now_s)
            or self._permit_refusal(presented.token_permit, authorization, now_s)
        )

    def _window_refusal(self, authorization: Authorization, now_s: float) -> Refused | None:
        refused = outside_window(authorization, now_s)
        if refused is None and authorization.valid_before_s > now_s + self._max_validity_s:
            text = f"the authorization is valid too long: at most {self._max_validity_s} s are accepted"
            return Refused(REASONS[authorization.method].valid_before, text)
        return refused

    def _permit_refusal(self, permit: TokenPermit | None, authorization: Authorization, now_s: float) -> Refused | None:
        if permit is None:
            return None
        return permit_misfit(permit, authorization, self._asset) or permit_expired(permit, now_s)

    def _rebuild(self, authorization: Authorization, signature: bytes, permit: TokenPermit | None) -> PaymentPayload:
        return PaymentPayload(
            accepted=self._requirements,
            payload=wire_form(authorization, signature),
            extensions=UNSET if permit is None else write_token_permit(permit),
        )
