"""A LiveOffer without a gateway around it."""

from typing import Any

from obol import GatewayConfig
from obol.core.clock import Clock
from obol.core.offer import Offer
from obol.gateway.live_offer import LiveOffer
from obol.gateway.settings import checked, offer_of
from obol.inference.upstream import UpstreamRequest, UpstreamResponse
from tests.fakes.clock import FakeClock
from tests.gateway.shop import MODEL, SELLER


class NoUpstream:
    """The upstream of a test that never asks it."""

    async def open(self, request: UpstreamRequest) -> UpstreamResponse:
        raise AssertionError("nothing is asked here")

    async def close(self) -> None:
        return None


def make_offer(models: tuple[str, ...] = (MODEL,), **config: Any) -> Offer:
    """The offer of a config."""
    return offer_of(checked(GatewayConfig("http://127.0.0.1:1", **({"pay_to": SELLER} | config))), models)


def make_live(clock: Clock | None = None, **config: Any) -> LiveOffer:
    """An offer being sold."""
    return LiveOffer(make_offer(**config), upstream=NoUpstream(), clock=clock or FakeClock())
