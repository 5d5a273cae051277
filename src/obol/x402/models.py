"""The x402 v2 wire types, and the one payload type that v1 payloads are read into.

Source: x402 specification v2, section 5 and the `exact` EVM scheme. Field names on the wire are camelCase. Unknown
fields are ignored when reading; what we send is built from these types, never from the peer's bytes.
"""

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType


class ResourceInfo(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """What is paid for."""

    url: str
    description: str = ""
    mime_type: str = ""


class RequirementsExtra(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """EIP-712 domain of the token and how it is moved; always written out."""

    name: str
    version: str
    asset_transfer_method: str = ""


class PaymentRequirements(msgspec.Struct, frozen=True, rename="camel"):
    """One way to pay: one entry of `accepts`. `amount` is an atomic decimal string, `network` CAIP-2."""

    scheme: str
    network: str
    amount: str
    asset: str
    pay_to: str
    max_timeout_seconds: int
    extra: dict[str, Any] | None = None


class PaymentRequired(msgspec.Struct, frozen=True, rename="camel"):
    """The v2 challenge of a 402, carried in `PAYMENT-REQUIRED`."""

    resource: ResourceInfo
    accepts: list[PaymentRequirements]
    x402_version: int = msgspec.field(default=2, name="x402Version")
    error: str = ""
    extensions: dict[str, Any] | UnsetType = UNSET


class ExactAuthorization(msgspec.Struct, frozen=True, rename="camel"):
    """EIP-3009 `TransferWithAuthorization`; all numbers are decimal strings, the nonce 0x + 64 hex digits."""

    from_: str = msgspec.field(name="from")
    to: str
    value: str
    valid_after: str
    valid_before: str
    nonce: str


class TokenPermissions(msgspec.Struct, frozen=True):
    """What Permit2 may take: `amount` is an atomic decimal string."""

    token: str
    amount: str


class TransferWitness(msgspec.Struct, frozen=True, rename="camel"):
    """What the payer binds the x402 proxy to: the recipient, and from when on."""

    to: str
    valid_after: str


class ExactPermit2Authorization(msgspec.Struct, frozen=True, rename="camel"):
    """Permit2 `PermitWitnessTransferFrom`; all numbers are decimal strings, the nonce too: any uint256."""

    from_: str = msgspec.field(name="from")
    permitted: TokenPermissions
    spender: str
    nonce: str
    deadline: str
    witness: TransferWitness


class ExactPayload(msgspec.Struct, frozen=True, rename="camel"):
    """The scheme part of a payload: a signature (0x hex) over one authorization, of either kind.

    Raises `ValueError` (when decoded, `msgspec.ValidationError`) unless exactly one of the two is there.
    """

    signature: str
    authorization: ExactAuthorization | UnsetType = UNSET
    permit2_authorization: ExactPermit2Authorization | UnsetType = UNSET

    def __post_init__(self) -> None:
        if (self.authorization is UNSET) == (self.permit2_authorization is UNSET):
            raise ValueError("exactly one of `authorization` and `permit2Authorization` must be there")

    @property
    def signed(self) -> ExactAuthorization | ExactPermit2Authorization:
        """What the signature is over."""
        if self.authorization is not UNSET:
            return self.authorization
        if self.permit2_authorization is not UNSET:
            return self.permit2_authorization
        raise ValueError("a payload without an authorization")  # never made: see `__post_init__`

    @property
    def is_permit2(self) -> bool:
        """Whether it is moved by Permit2; else by EIP-3009."""
        return self.permit2_authorization is not UNSET

    @property
    def payer(self) -> str:
        """Whose money it is, as the buyer wrote it."""
        return self.signed.from_

    def __repr__(self) -> str:
        """Without the signature: whoever has it can present the payment."""
        return f"ExactPayload(signature=***, authorization={self.signed!r})"


class PaymentPayload(msgspec.Struct, frozen=True, rename="camel"):
    """A buyer's signed answer. `accepted` is the requirements entry that the buyer chose."""

    accepted: PaymentRequirements
    payload: ExactPayload
    x402_version: int = msgspec.field(default=2, name="x402Version")
    extensions: dict[str, Any] | UnsetType | None = UNSET
    """As somebody else wrote them; what we pass on is written anew (`gas_sponsoring.py`)."""

    @property
    def payer(self) -> str:
        """Whose money it is, as the buyer wrote it."""
        return self.payload.payer


class FacilitatorRequest(msgspec.Struct, frozen=True, rename="camel"):
    """Body of `POST /verify` and `POST /settle`."""

    payment_payload: PaymentPayload
    payment_requirements: PaymentRequirements
    x402_version: int = msgspec.field(default=2, name="x402Version")


class VerifyResponse(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Answer of `/verify`."""

    is_valid: bool
    invalid_reason: str | None = None
    invalid_message: str | None = None
    payer: str | None = None


class SettleResponse(msgspec.Struct, frozen=True, rename="camel"):
    """Answer of `/settle`, and the content of `PAYMENT-RESPONSE`. `transaction` is "" while there is none."""

    success: bool
    transaction: str
    network: str
    payer: str | None = None
    error_reason: str | None = None
    error_message: str | None = None
    extra: dict[str, Any] | None = None
    """`{"logIndex": n}`: the transfer's log in its block, from our own facilitator."""


class SupportedKind(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """One scheme on one network that a facilitator handles."""

    x402_version: int = msgspec.field(name="x402Version")
    scheme: str
    network: str
    extra: dict[str, Any] | None = None


class SupportedResponse(msgspec.Struct, frozen=True, rename="camel"):
    """Answer of `/supported`."""

    kinds: list[SupportedKind]
    extensions: list[str] = []
    signers: dict[str, list[str]] = {}
