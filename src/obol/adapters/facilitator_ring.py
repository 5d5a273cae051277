"""Several facilitators in order of preference, each behind a circuit breaker.

A second facilitator is asked to settle only when the first cannot have sent the payment. Two of them sending one
authorization would move the money once all the same, but the loser's "nonce already used" would read like a no.

    settle, for a payment that       asked first                    then
    was not asked for before         the first that may be asked    the next, while nothing has left us
    a member may have sent           that member                    the others, if it cannot be reached; their no is
                                                                    UNKNOWN, their yes is a yes

Which member may have sent a payment is remembered for the newest `REMEMBERED` unresolved ones, and not over a restart:
whoever asks again after one must not believe a no (the settler does not).
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace

from obol.adapters.circuit_breaker import CircuitBreaker
from obol.adapters.facilitator_http import NO_ANSWER
from obol.core.clock import Clock
from obol.errors import FacilitatorUnavailableError, PeerProtocolError
from obol.x402.facilitator import Facilitator, Settlement, SettleOutcome, VerifyOutcome
from obol.x402.models import PaymentPayload, PaymentRequirements, SupportedResponse

REMEMBERED = 100_000
_Key = tuple[str, str, str, str]


class FacilitatorRing:
    """Implements `x402.facilitator.Facilitator`; takes over the members, which its `close` closes."""

    def __init__(self, members: Sequence[Facilitator], clock: Clock) -> None:
        """Raises `ValueError` for no member."""
        if not members:
            raise ValueError("a ring needs a member")
        self._members = tuple(members)
        self._breakers = tuple(CircuitBreaker(clock) for _ in members)
        self._senders: OrderedDict[_Key, int] = OrderedDict()
        """Who may have sent a payment whose end is not known."""

    async def verify(self, payload: PaymentPayload, requirements: PaymentRequirements) -> VerifyOutcome:
        """See the port. The first member that answers decides: a refusal is not shopped around."""
        failure: FacilitatorUnavailableError | PeerProtocolError | None = None
        for number in self._askable():
            try:
                outcome = await self._members[number].verify(payload, requirements)
            except (FacilitatorUnavailableError, PeerProtocolError) as error:
                self._breakers[number].note(is_answered=False)
                failure = error
            else:
                self._breakers[number].note(is_answered=True)
                return outcome
        raise failure or FacilitatorUnavailableError("no facilitator has answered of late: none is asked for a while")

    async def settle(self, payload: PaymentPayload, requirements: PaymentRequirements) -> Settlement:
        """See the port, and the table above. A circuit that is open only puts its member last: money waits for it."""
        key = _key(payload, requirements)
        sender = self._senders.get(key)
        if sender is None:
            return await self._settle_first(key, payload, requirements)
        settlement = await self._ask(sender, payload, requirements)
        if settlement.is_unsent:
            settlement = await self._settle_elsewhere(sender, payload, requirements) or settlement
        if _is_end(settlement):
            self._senders.pop(key, None)
        return settlement

    async def supported(self) -> SupportedResponse:
        """The first member's that answers; raises like `verify`."""
        failure: FacilitatorUnavailableError | PeerProtocolError | None = None
        for member in self._members:
            try:
                return await member.supported()
            except (FacilitatorUnavailableError, PeerProtocolError) as error:
                failure = error
        raise failure or FacilitatorUnavailableError("there is no facilitator")

    async def close(self) -> None:
        """See the port. All are closed, also after one that fails to."""
        async with AsyncExitStack() as stack:
            for member in self._members:
                stack.push_async_callback(member.close)

    async def _settle_first(self, key: _Key, payload: PaymentPayload, requirements: PaymentRequirements) -> Settlement:
        """Ask one after the other while nothing has left us."""
        for number in self._in_order():
            self._remember(key, number)  # before: this task may be cancelled while the answer is awaited
            settlement = await self._ask(number, payload, requirements)
            if settlement.is_unsent or _is_end(settlement):
                self._senders.pop(key, None)
            if not settlement.is_unsent:
                break
        return settlement

    async def _settle_elsewhere(
        self, sender: int, payload: PaymentPayload, requirements: PaymentRequirements
    ) -> Settlement | None:
        """What the others say while who may have sent it cannot be reached; None when none of them can be."""
        for number in self._in_order():
            if number != sender:
                settlement = await self._ask(number, payload, requirements)
                if not settlement.is_unsent:
                    return _by_another(settlement)
        return None

    async def _ask(self, number: int, payload: PaymentPayload, requirements: PaymentRequirements) -> Settlement:
        settlement = await self._members[number].settle(payload, requirements)
        self._breakers[number].note(is_answered=settlement.reason not in NO_ANSWER)
        return settlement

    def _in_order(self) -> list[int]:
        return sorted(range(len(self._members)), key=lambda number: self._breakers[number].is_open)

    def _remember(self, key: _Key, number: int) -> None:
        self._senders[key] = number
        self._senders.move_to_end(key)
        while len(self._senders) > REMEMBERED:
            self._senders.popitem(last=False)

    def _askable(self) -> Iterator[int]:
        return (number for number, breaker in enumerate(self._breakers) if breaker.may_ask())


def _key(payload: PaymentPayload, requirements: PaymentRequirements) -> _Key:
    signed = payload.payload.signed
    return (
        requirements.network,
        requirements.asset.lower(),
        signed.from_.lower(),
        signed.nonce.lower(),
    )


def _is_end(settlement: Settlement) -> bool:
    return settlement.outcome in (SettleOutcome.SETTLED, SettleOutcome.FAILED)


def _by_another(settlement: Settlement) -> Settlement:
    """A no of somebody else than who may have sent the payment proves nothing."""
    if settlement.outcome is SettleOutcome.FAILED:
        return replace(settlement, outcome=SettleOutcome.UNKNOWN)
    return settlement
