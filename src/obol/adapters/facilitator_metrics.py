"""Prometheus metrics of a facilitator; the only place that knows their names."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from obol.errors import ChainUnavailableError

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
GAS_READ_S = 2.0
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class FacilitatorMetrics:
    """One registry of its own. `network` is a known network's CAIP-2 id, or "other": labels are not a caller's text."""

    def __init__(self) -> None:
        self._gas_of: dict[str, Callable[[], Awaitable[int]]] = {}
        registry = self._registry = CollectorRegistry()
        self._verified = Counter(
            "obol_facilitator_verified", "Payments checked", ["network", "outcome"], registry=registry
        )
        self._settled = Counter(
            "obol_facilitator_settled",
            "Settlements asked for, by what is known",
            ["network", "outcome"],
            registry=registry,
        )
        self._verify_s = Histogram(
            "obol_facilitator_verify_seconds", "Time to check a payment", buckets=_SECONDS, registry=registry
        )
        self._settle_s = Histogram(
            "obol_facilitator_settle_seconds", "Time to answer settle", buckets=_SECONDS, registry=registry
        )
        self._unmined = Gauge(
            "obol_facilitator_unmined", "Transactions not in a block that counts", ["network"], registry=registry
        )
        self._round_trips = Gauge(
            "obol_facilitator_rpc_round_trips", "RPC requests since the start", ["network"], registry=registry
        )
        self._gas_wei = Gauge(
            "obol_facilitator_gas_account_wei", "Native money left to pay gas with", ["network"], registry=registry
        )

    def watch(
        self,
        network: str,
        *,
        unmined: Callable[[], int],
        round_trips: Callable[[], int],
        gas_wei: Callable[[], Awaitable[int]],
    ) -> None:
        """Read these of a network whenever the metrics are rendered."""
        self._unmined.labels(network).set_function(unmined)
        self._round_trips.labels(network).set_function(round_trips)
        self._gas_of[network] = gas_wei

    def verified(self, network: str, *, is_valid: bool, seconds: float) -> None:
        """A payment was checked."""
        self._verified.labels(network, "valid" if is_valid else "invalid").inc()
        self._verify_s.observe(seconds)

    def settled(self, network: str, outcome: str, *, seconds: float) -> None:
        """A settlement was asked for; `outcome` as in `SettleOutcome`."""
        self._settled.labels(network, outcome).inc()
        self._settle_s.observe(seconds)

    async def render(self) -> bytes:
        """The Prometheus text format. A gas account that cannot be read at once is left out: a scrape has a timeout."""
        async with asyncio.TaskGroup() as tasks:
            for network, gas_wei in self._gas_of.items():
                tasks.create_task(self._read_gas(network, gas_wei))
        return generate_latest(self._registry)

    async def _read_gas(self, network: str, gas_wei: Callable[[], Awaitable[int]]) -> None:
        try:
            async with asyncio.timeout(GAS_READ_S):
                self._gas_wei.labels(network).set(await gas_wei())
        except (ChainUnavailableError, TimeoutError):
            with contextlib.suppress(KeyError):
                self._gas_wei.remove(network)
