"""Sell and buy LLM inference over HTTP 402 (x402).

Selling: `Gateway(GatewayConfig(upstream_url=…, pay_to=…)).start()`. Buying: `PaymentAuth`, an `httpx2.Auth` that pays
402s within a budget and works inside the official OpenAI client. Names are loaded when they are used, so that
importing the package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from obol.adapters.signer_local import LocalSigner
    from obol.buyer.payment import Payment
    from obol.buyer.payment_auth import PaymentAuth
    from obol.core.offer import Api, SettlementPolicy
    from obol.errors import ObolError
    from obol.gateway.gateway import Gateway
    from obol.gateway.settings import GatewayConfig

_WHERE = {
    "Api": "obol.core.offer",
    "Gateway": "obol.gateway.gateway",
    "GatewayConfig": "obol.gateway.settings",
    "LocalSigner": "obol.adapters.signer_local",
    "ObolError": "obol.errors",
    "Payment": "obol.buyer.payment",
    "PaymentAuth": "obol.buyer.payment_auth",
    "SettlementPolicy": "obol.core.offer",
}

__all__ = [
    "Api",
    "Gateway",
    "GatewayConfig",
    "LocalSigner",
    "ObolError",
    "Payment",
    "PaymentAuth",
    "SettlementPolicy",
]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'obol' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
