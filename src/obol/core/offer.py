"""Offer: what is sold, for how much, to whom it is paid, within which limits. All else knows only Offers."""

from dataclasses import dataclass
from enum import StrEnum

from obol.core.capacity import Capacity
from obol.core.networks import Asset


class Api(StrEnum):
    """An inference API that an offer can sell; the paths are in `inference/routes.py`."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"
    RESPONSES = "responses"
    MESSAGES = "messages"
    OLLAMA_CHAT = "ollama-chat"
    OLLAMA_GENERATE = "ollama-generate"
    OLLAMA_EMBED = "ollama-embed"


OPENAI_APIS = frozenset({Api.CHAT, Api.COMPLETIONS, Api.EMBEDDINGS, Api.RESPONSES})
"""What an offer sells unless it says otherwise."""


class SettlementPolicy(StrEnum):
    """When a sale is settled, with the loss that the seller or buyer risks."""

    ON_OUTPUT = "on-output"
    """Stream: asked at the first output; plain: when complete and before it is released. Seller risks what a stream
    delivers until the facilitator answers no."""
    BEFORE = "before"
    """Settle, then serve. Buyer risks nothing that is not written down: failure to serve leaves the sale OWED."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model under its public name, and the name that the upstream knows it by."""

    public: str
    served: str


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What one request may ask for. Sizes in bytes, tokens as the upstream counts them; None is no limit."""

    max_body_bytes: int = 10 * 1024 * 1024
    max_input_tokens: int | None = None
    max_output_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Offer:
    """One thing for sale: models behind one upstream, at one price per request."""

    name: str
    upstream_url: str
    models: tuple[Model, ...]
    asset: Asset
    pay_to: str
    """Recipient, EIP-55 spelling."""
    price_atomic: int
    apis: frozenset[Api] = OPENAI_APIS
    limits: RequestLimits = RequestLimits()
    capacity: Capacity | None = None
    settlement: SettlementPolicy = SettlementPolicy.ON_OUTPUT
    max_timeout_s: int = 300
    """`maxTimeoutSeconds` of the requirements: how long clients make an authorization valid."""
    max_validity_s: int = 24 * 3600
    """Policy cap on how far in the future `validBefore` may lie."""
    verify_only: bool = False
    payment_gate: bool = True
    description: str = ""

    def model(self, public: str) -> Model | None:
        """The sold model of that public name, or None."""
        return next((m for m in self.models if m.public == public), None)
