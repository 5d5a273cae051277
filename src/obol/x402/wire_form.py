"""A typed authorization and its signature in the one wire form that we emit: EIP-55 addresses, canonical numbers."""

from obol.x402.authorization import Authorization, Permit
from obol.x402.eip712 import checksum_address
from obol.x402.models import (
    ExactAuthorization,
    ExactPayload,
    ExactPermit2Authorization,
    TokenPermissions,
    TransferWitness,
)


def wire_form(authorization: Authorization, signature: bytes) -> ExactPayload:
    """The inverse of `parse_authorization` and `parse_signature`."""
    text = "0x" + signature.hex()
    if authorization.permit is not None:
        return ExactPayload(text, permit2_authorization=_permit2(authorization, authorization.permit))
    return ExactPayload(text, authorization=_eip3009(authorization))


def _eip3009(authorization: Authorization) -> ExactAuthorization:
    return ExactAuthorization(
        from_=checksum_address(authorization.payer),
        to=checksum_address(authorization.to),
        value=str(authorization.value_atomic),
        valid_after=str(authorization.valid_after_s),
        valid_before=str(authorization.valid_before_s),
        nonce=authorization.nonce,
    )


def _permit2(authorization: Authorization, permit: Permit) -> ExactPermit2Authorization:
    return ExactPermit2Authorization(
        from_=checksum_address(authorization.payer),
        permitted=TokenPermissions(checksum_address(permit.token), str(authorization.value_atomic)),
        spender=checksum_address(permit.spender),
        nonce=str(int(authorization.nonce, 16)),
        deadline=str(authorization.valid_before_s),
        witness=TransferWitness(checksum_address(authorization.to), str(authorization.valid_after_s)),
    )
