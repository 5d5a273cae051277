"""The 402 challenge for both generations of clients: v2 in the header, v1 in the body of the same answer.

The body's `accepts` holds v1 entries only: the official v1 client parses every entry strictly and throws on any other.
"""

from dataclasses import dataclass

import msgspec

from obol.core.networks import Network
from obol.x402.headers import encode_header
from obol.x402.models import PaymentRequired, PaymentRequirements, ResourceInfo
from obol.x402.v1 import V1PaymentRequired, v1_requirements


@dataclass(frozen=True, slots=True)
class Challenge:
    """`header` is the value of `PAYMENT-REQUIRED`; `body` is JSON."""

    header: str
    body: bytes


def build_challenge(
    requirements: PaymentRequirements, network: Network, resource: ResourceInfo, *, error: str
) -> Challenge:
    """The challenge for one way to pay. `resource.url` must be absolute: the v1 client checks that it is a URL."""
    v2 = PaymentRequired(resource=resource, accepts=[requirements], error=error)
    v1 = V1PaymentRequired(accepts=[v1_requirements(requirements, network, resource)], error=error)
    return Challenge(header=encode_header(v2), body=msgspec.json.encode(v1))
