"""Who is measured side by side in one run."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import nginx, sellers
from bench.payments import quoted
from bench.programs import Program
from obol.x402.models import PaymentRequirements

DIRECT = "no proxy"
NGINX = "nginx, no payment"
FREE = "obol, no payment gate"
OBOL = "obol"
OFFICIAL = "official FastAPI middleware"


@dataclass(frozen=True, slots=True)
class Subject:
    """A measured program; `requirements` None where nothing is paid."""

    name: str
    program: Program
    requirements: PaymentRequirements | None = None


@contextmanager
def subjects(upstream: Program, facilitator: Program, folder: Path) -> Iterator[list[Subject]]:
    """All of them, in front of the same upstream, asking the same facilitator."""
    with ExitStack() as stack:
        folder.mkdir()
        proxy = stack.enter_context(nginx.proxy("proxy", upstream, folder))
        free = stack.enter_context(sellers.obol("free", upstream, facilitator, folder, "--no-payment-gate"))
        ours = stack.enter_context(sellers.obol("obol", upstream, facilitator, folder))
        theirs = stack.enter_context(sellers.official("official", upstream, facilitator, folder))
        yield [
            Subject(DIRECT, upstream),
            Subject(NGINX, proxy),
            Subject(FREE, free),
            Subject(OBOL, ours, quoted(ours)),
            Subject(OFFICIAL, theirs, quoted(theirs)),
        ]
