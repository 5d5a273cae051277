"""Till: what one sale works with."""

from dataclasses import dataclass

from obol.gateway.live_offer import LiveOffer
from obol.gateway.ports import Ports
from obol.gateway.settling import Settler


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a buyer who does nothing is waited for."""

    body_s: float = 30.0
    """For the whole request body: no slot is held meanwhile, but a connection is."""
    reader_s: float = 120.0
    """A buyer who takes not one byte of an answer for this long is taken to be gone."""


@dataclass(frozen=True, slots=True)
class Till:
    """The offer, the outside, and who asks for the money."""

    live: LiveOffer
    ports: Ports
    settler: Settler
    patience: Patience = Patience()
