"""Prometheus metrics of a gateway; the only place that knows metric names.

Names follow the OpenTelemetry GenAI conventions where one exists (`gen_ai.server.time_to_first_token` …), the rest
begin with `obol_`. Revenue is kept in exact integers, rendered beside the registry: Prometheus counters are floats.
"""

from collections import Counter as Tally
from collections.abc import Callable, Mapping
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from obol.core.offer import Offer
from obol.core.usage import Usage

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FAST_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
_SLOW_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_PER_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28)
_TOKENS = tuple(4.0**n for n in range(12))


class Metrics:
    """One registry of its own: two gateways in one process do not share numbers."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self._requests = Counter("obol_requests", "Requests by outcome", ["offer", "outcome"], registry=registry)
        self._payments = Counter("obol_payments", "Payments by state reached", ["offer", "state"], registry=registry)
        self._request_counter = cache(self._requests.labels)  # few label values, and looking them up costs
        self._payment_counter = cache(self._payments.labels)
        self._revenue: Tally[tuple[str, str]] = Tally()
        self._in_flight = Gauge("obol_in_flight", "Slots held", ["offer"], registry=registry)
        self._queued = Gauge("obol_queued", "Sales waiting for a slot", ["offer"], registry=registry)
        self._capacity = Gauge("obol_capacity_max_in_flight", "Seller-declared slots", ["offer"], registry=registry)
        self._chain_up = Gauge("obol_chain_up", "Chain could be asked last time", ["network"], registry=registry)
        self._unseen = Gauge(
            "obol_settlements_unseen", "Believed while the chain could not be asked", ["network"], registry=registry
        )
        self.verification_s = Histogram(
            "obol_verification_seconds", "Payment header to verified", buckets=_FAST_S, registry=registry
        )
        self.claim_s = Histogram("obol_claim_seconds", "Durable claim", buckets=_FAST_S, registry=registry)
        self.settlement_s = Histogram(
            "obol_settlement_seconds", "Facilitator's answer to settle", buckets=_SLOW_S, registry=registry
        )
        self.overhead_s = Histogram(
            "obol_overhead_seconds", "Request received to upstream contacted", buckets=_FAST_S, registry=registry
        )
        gen_ai = ["gen_ai_operation_name", "gen_ai_request_model"]
        self._first_token_s = Histogram(
            "gen_ai_server_time_to_first_token_seconds", "TTFT", gen_ai, buckets=_SLOW_S, registry=registry
        )
        self._per_token_s = Histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "Time per output token after the first",
            gen_ai,
            buckets=_PER_TOKEN_S,
            registry=registry,
        )
        self._duration_s = Histogram(
            "gen_ai_server_request_duration_seconds", "End to end", gen_ai, buckets=_SLOW_S, registry=registry
        )
        self._tokens = Histogram(
            "gen_ai_client_token_usage",
            "Tokens of one answer",
            [*gen_ai, "gen_ai_token_type"],
            buckets=_TOKENS,
            registry=registry,
        )

    def watch(self, offer: Offer, in_flight: Callable[[], int], queued: Callable[[], int]) -> None:
        """Read an offer's slots whenever the metrics are rendered."""
        self._in_flight.labels(offer.name).set_function(in_flight)
        self._queued.labels(offer.name).set_function(queued)
        if offer.capacity is not None and offer.capacity.max_in_flight is not None:
            self._capacity.labels(offer.name).set(offer.capacity.max_in_flight)

    def watch_chain(self, network: str, is_up: Callable[[], bool | None], unseen: Callable[[], int]) -> None:
        """Read, whenever the metrics are rendered, what is known of the chain that settlements are looked up on."""

        def up() -> float:
            known = is_up()
            return float("nan") if known is None else float(known)

        self._chain_up.labels(network).set_function(up)
        self._unseen.labels(network).set_function(unseen)

    def request(self, offer: str, outcome: str) -> None:
        """Count a request: `served`, `quoted`, `upstream_error`, or the reason of its refusal."""
        self._request_counter(offer, outcome).inc()

    def payment(self, offer: str, state: str) -> None:
        """Count a payment that reached a state."""
        self._payment_counter(offer, state).inc()

    def revenue(self, network: str, asset: str, amount_atomic: int) -> None:
        """Add settled atomic units."""
        self._revenue[network, asset] += amount_atomic

    def answer(self, operation: str, model: str, *, first_s: float | None, total_s: float, usage: Usage) -> None:
        """Record one served answer; `first_s` and `total_s` count from the request's arrival."""
        self._duration_s.labels(operation, model).observe(total_s)
        if first_s is not None:
            self._first_token_s.labels(operation, model).observe(first_s)
            if usage.output_tokens is not None and usage.output_tokens > 1:
                per_token_s = (total_s - first_s) / (usage.output_tokens - 1)
                self._per_token_s.labels(operation, model).observe(per_token_s)
        for kind, tokens in (("input", usage.input_tokens), ("output", usage.output_tokens)):
            if tokens is not None:
                self._tokens.labels(operation, model, kind).observe(tokens)

    def revenue_by_asset(self) -> Mapping[tuple[str, str], int]:
        """Atomic units settled since start, by (network, asset)."""
        return dict(self._revenue)

    def totals(self) -> dict[str, dict[str, int]]:
        """Requests by outcome and payments by state since start, summed over offers; for `/status`."""
        return {"requests": _by_label(self._requests, "outcome"), "payments": _by_label(self._payments, "state")}

    def render(self) -> bytes:
        """The Prometheus text format."""
        lines = ["# HELP obol_revenue_atomic_total Settled atomic units", "# TYPE obol_revenue_atomic_total counter"]
        for (network, asset), amount_atomic in sorted(self._revenue.items()):
            lines.append(f'obol_revenue_atomic_total{{network="{network}",asset="{asset}"}} {amount_atomic}')
        return generate_latest(self._registry) + ("\n".join(lines) + "\n").encode()


def _by_label(counter: Counter, label: str) -> dict[str, int]:
    tally: Tally[str] = Tally()
    for metric in counter.collect():
        for sample in metric.samples:
            if sample.name.endswith("_total"):
                tally[sample.labels[label]] += int(sample.value)
    return dict(sorted(tally.items()))
