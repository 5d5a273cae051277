"""LiveOffer: an Offer that is being sold now, with everything that can be computed once."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from obol.core.clock import Clock
from obol.core.networks import Asset
from obol.core.offer import Offer
from obol.gateway.gate import Gate
from obol.gateway.ports import CountInputTokens
from obol.gateway.replies import Reason, Refusal
from obol.inference.upstream import Upstream
from obol.x402.challenge import Challenge, build_challenge
from obol.x402.exact import ExactVerifier, build_requirements
from obol.x402.models import ResourceInfo

NO_EXTENSIONS: Mapping[str, Any] = MappingProxyType({})
PAYMENT_REQUIRED_TEXT = "Payment required"
_CHALLENGES_KEPT = 256
"""Challenges differ by resource URL only; a caller that varies Host must not grow memory."""
_SATURATED = {
    Reason.SATURATED: "all slots of this offer are in use; nothing was charged",
    Reason.BUYER_SATURATED: "you have as many requests in flight as this offer allows one buyer; nothing was charged",
    Reason.QUEUE_TIMEOUT: "no slot became free in time; nothing was charged",
}
_WARM_S = 300.0
"""An upstream that gave output within this time is taken to have its model loaded."""


class LiveOffer:
    """One offer, its slots, its upstream and what is known of the upstream's health."""

    def __init__(
        self,
        offer: Offer,
        *,
        upstream: Upstream,
        clock: Clock,
        count_input_tokens: CountInputTokens | None = None,
        extensions: Mapping[str, Any] = NO_EXTENSIONS,
    ) -> None:
        """`extensions` are what its challenges declare."""
        self.offer = offer
        self._extensions = extensions
        self.upstream = upstream
        self.count_input_tokens = count_input_tokens
        self.gate = Gate(offer.capacity, clock)
        self.requirements = build_requirements(offer)
        self.verifier = ExactVerifier(self.requirements, offer.asset, max_validity_s=offer.max_validity_s)
        self.is_draining = False
        self.is_upstream_up: bool | None = None
        """None until the upstream was asked."""
        self._clock = clock
        self._output_at_s: float | None = None
        self._challenges: dict[str, Challenge] = {}

    @property
    def asset(self) -> Asset:
        return self.offer.asset

    @property
    def is_warm(self) -> bool:
        """True when the upstream gave output lately, so that waiting is not a model being loaded."""
        return self._output_at_s is not None and self._clock.monotonic_s() - self._output_at_s < _WARM_S

    def saw_output(self) -> None:
        """The upstream gave output just now."""
        self._output_at_s = self._clock.monotonic_s()
        self.is_upstream_up = True

    def closed(self) -> Refusal | None:
        """Why nobody can buy right now, paid or not: draining, upstream down, or saturated. None when open."""
        if self.is_draining:
            return Refusal(Reason.DRAINING, "the seller is shutting down", retry_after_s=5)
        if self.is_upstream_up is False:
            return Refusal(Reason.UPSTREAM_DOWN, "the model server is down", retry_after_s=5)
        if self.gate.admission.is_saturated:
            return self.saturated(Reason.SATURATED)
        return None

    def saturated(self, reason: Reason) -> Refusal:
        """A 429 that asks for no money."""
        return Refusal(reason, _SATURATED[reason], retry_after_s=self.gate.retry_after_s())

    def challenge(self, resource_url: str, error: str = PAYMENT_REQUIRED_TEXT) -> Challenge:
        """The 402 for a resource; computed once per URL for the ordinary text."""
        if error != PAYMENT_REQUIRED_TEXT:
            return self._build_challenge(resource_url, error)
        challenge = self._challenges.get(resource_url)
        if challenge is None:
            if len(self._challenges) >= _CHALLENGES_KEPT:
                self._challenges.clear()
            challenge = self._challenges[resource_url] = self._build_challenge(resource_url, error)
        return challenge

    def _build_challenge(self, resource_url: str, error: str) -> Challenge:
        resource, network = ResourceInfo(resource_url, self.offer.description, "application/json"), self.asset.network
        return build_challenge(self.requirements, network, resource, error=error, extensions=self._extensions)
