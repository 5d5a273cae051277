"""Offer: what is sold, for how much, to whom it is paid, within which limits. All else knows only Offers."""

from dataclasses import dataclass
from enum import StrEnum

from obol.core.capacity import Capacity
from obol.core.money import format_amount
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
    AFTER = "after"
    """Serve the whole answer, then settle. Seller risks `Standing.max_unsettled_atomic` per payer: above it, a sale is
    settled as under ON_OUTPUT."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Who is handed answers before their money has moved, and up to how much."""

    after_sales: int
    """Sales that the payer must have settled since the last refused settlement; 0: everybody."""
    max_unsettled_atomic: int
    """Most that a payer may owe at once: the seller's greatest loss per payer."""


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
    standing: Standing | None = None
    """None: nobody is trusted. Required by `after`."""
    max_timeout_s: int = 300
    """`maxTimeoutSeconds` of the requirements: how long clients make an authorization valid."""
    max_validity_s: int = 24 * 3600
    """Policy cap on how far in the future `validBefore` may lie."""
    verify_only: bool = False
    payment_gate: bool = True
    description: str = ""

    @property
    def loss_bound(self) -> str:
        """What the seller can lose to one payer who does not pay, in words: the table of
        `docs/explanation/life-of-a-payment.md`, for this offer."""
        if self.verify_only or not self.payment_gate:
            return "everything: nothing is settled"
        dying = "the answer that is leaving when the process dies"
        if self.settlement is SettlementPolicy.BEFORE:
            return f"nothing: money moves before the model is asked; but {dying} is served again"
        refused = "what each open stream delivers until its settlement is refused"
        streams = f"{refused}, all of it if the facilitator says neither yes nor no"
        cases = [streams, "the work of a plain answer, which is held until it is paid", dying]
        if self.standing is not None:
            cases = [self._ahead(self.standing), *cases]
        return f"to each payer address (a buyer may have many): {'; '.join(cases)}"

    def _ahead(self, standing: Standing) -> str:
        """What is handed over before it is paid."""
        kind = "answers" if self.settlement is SettlementPolicy.AFTER else "plain answers"
        amount = f"{format_amount(standing.max_unsettled_atomic, self.asset.decimals)} {self.asset.symbol}"
        once = f", once it has {standing.after_sales} settled sales" if standing.after_sales else ""
        return f"up to {amount} of {kind} ahead of payment{once}"

    def model(self, public: str) -> Model | None:
        """The sold model of that public name, or None."""
        return next((m for m in self.models if m.public == public), None)
