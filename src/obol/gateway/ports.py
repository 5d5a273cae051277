"""What a gateway is given to work with: one value, passed down, so that nothing is global."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from obol.adapters.metrics import Metrics
from obol.core.clock import Clock
from obol.core.ledger import Ledger
from obol.core.networks import Catalogue
from obol.inference.request import InferenceRequest
from obol.x402.facilitator import Facilitator

CountInputTokens = Callable[[InferenceRequest, str], Awaitable[int]]
"""The exact input tokens of a request for a served model, by the upstream's tokenizer. Raises `UpstreamError`."""


@dataclass(frozen=True, slots=True)
class Ports:
    """The outside of one gateway. `entropy(n)` gives n random bytes."""

    ledger: Ledger
    facilitator: Facilitator
    clock: Clock
    entropy: Callable[[int], bytes]
    metrics: Metrics
    log: structlog.typing.FilteringBoundLogger
    catalogue: Catalogue
