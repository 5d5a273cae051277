"""Where facilitators are to die: at which of the steps that one went through, and how soon."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.evm.matrix_steps import Kill


@dataclass(frozen=True)
class Holds:
    """How long a step is held up before the death, in seconds, by the last word of its label."""

    before: Sequence[float]
    during: Sequence[float]
    """How long what was begun goes on."""
    after: Sequence[float]


FIRST = Holds(before=[0.0], during=[0.0, 0.001], after=[0.0, 0.03])
"""Held up for long enough for what does not wait for the step to go on."""
TROUBLED = Holds(before=[0.0], during=[0.0005], after=[0.0])
SECOND = Holds(before=[], during=[0.0005], after=[0.0])
"""What there is before a step is what there was after the one before it."""


def kills_at(steps: Sequence[str], holds: Holds, *, since: int = 0) -> Iterator[Kill]:
    """At each step from a place in them on; of one that comes often at the first two and the last.

    How often receipts are looked for is a matter of luck: other cases make blocks too.
    """
    often, reached = Counter(steps), Counter[str]()
    for place, label in enumerate(steps):
        reached[label] += 1
        wanted = (1,) if label.startswith("chain.receipt") else (1, 2, often[label])
        if place < since or reached[label] not in wanted:
            continue
        for held_s in {"before": holds.before, "during": holds.during, "after": holds.after}[label.split()[-1]]:
            yield Kill(label, reached[label], held_s)
