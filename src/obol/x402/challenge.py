"""The 402 challenge for both generations of clients: v2 in the header, v1 in the body of the same answer.

The body's `accepts` holds v1 entries only: the official v1 client parses every entry strictly and throws on any other.
It is empty where there is none: v1 has no Permit2.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import msgspec
from msgspec import UNSET

from obol.core.networks import Network
from obol.x402.headers import encode_header
from obol.x402.models import PaymentRequired, PaymentRequirements, ResourceInfo
from obol.x402.v1 import V1PaymentRequired, is_sold_in_v1, v1_requirements


@dataclass(frozen=True, slots=True)
class Challenge:
    """`header` is the value of `PAYMENT-REQUIRED`; `body` is JSON."""

    header: str
    body: bytes


def build_challenge(
    requirements: PaymentRequirements,
    network: Network,
    resource: ResourceInfo,
    *,
    error: str,
    extensions: Mapping[str, Any] = MappingProxyType({}),
) -> Challenge:
    """The challenge for one way to pay. `resource.url` must be absolute: the v1 client checks that it is a URL.

    `extensions` are declarations by their keys, such as `declare_gas_sponsoring`; v1 has none.
    """
    v2 = PaymentRequired(resource=resource, accepts=[requirements], error=error, extensions=dict(extensions) or UNSET)
    old = [v1_requirements(requirements, network, resource)] if is_sold_in_v1(requirements) else []
    v1 = V1PaymentRequired(accepts=old, error=error)
    return Challenge(header=encode_header(v2), body=msgspec.json.encode(v1))
