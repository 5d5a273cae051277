"""What became of payments for good, remembered for a while: who asks again and again costs no RPC.

Only what is long past by the chain's own clock is remembered. Until then a reorganisation could take it back.
"""

from collections import OrderedDict
from dataclasses import dataclass, replace

from obol.x402.authorization import Authorization
from obol.x402.models import PaymentRequirements
from obol.x402.witness import Fate, Moved, NeverMoves

FINAL_AFTER_S = 600
REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class Seen:
    """What a chain shows of a payment, and for how long it has, by the chain's clock."""

    fate: Fate
    age_s: int = 0


@dataclass(frozen=True, slots=True)
class Question:
    """What a fate is of: the authorization as it was signed, and what a seller wants for it."""

    network: str
    asset: str
    pay_to: str
    amount: str
    authorization: Authorization

    @classmethod
    def of(cls, authorization: Authorization, requirements: PaymentRequirements) -> "Question":
        asset, pay_to = requirements.asset.lower(), requirements.pay_to.lower()
        return cls(requirements.network, asset, pay_to, requirements.amount, authorization)


class FateMemory:
    """Of the last `most` that were asked about. `now_s` is of any clock that only goes forward."""

    def __init__(self, *, most: int = REMEMBERED) -> None:
        self._most = most
        self._seen: OrderedDict[Question, tuple[Seen, float]] = OrderedDict()

    def recall(self, question: Question, now_s: float) -> Fate | None:
        """A fate that stays, as old as it is by now; None for what is not known."""
        known = self._seen.get(question)
        if known is None:
            return None
        self._seen.move_to_end(question)
        seen, at_s = known
        fate = seen.fate
        return replace(fate, age_s=seen.age_s + int(now_s - at_s)) if isinstance(fate, Moved) else fate

    def keep(self, question: Question, seen: Seen, now_s: float) -> None:
        """Remember it if it stays; the one that nobody has asked about for longest is forgotten."""
        if not isinstance(seen.fate, Moved | NeverMoves) or seen.age_s < FINAL_AFTER_S:
            return
        self._seen[question] = (seen, now_s)
        self._seen.move_to_end(question)
        while len(self._seen) > self._most:
            self._seen.popitem(last=False)
