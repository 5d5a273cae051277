"""Booking: asking for the money of one sale, and writing down what was said, also when a try to write it was lost.

A `LedgerUnavailableError` does not say that nothing was recorded. So whoever tries again finds out first what the
ledger holds, and goes on from there.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import replace

import msgspec

from obol.core.ledger import Change, Ledger
from obol.core.payment import Event, State, advance
from obol.core.sale import Delivery, Sale
from obol.errors import IllegalTransitionError, LedgerUnavailableError, SaleTakenError
from obol.gateway.ports import Ports
from obol.x402.facilitator import Settlement, SettleOutcome
from obol.x402.models import PaymentPayload, PaymentRequirements
from obol.x402.witness import JUST_S, USED_BEFORE

UNRESOLVED = frozenset({State.SETTLING, State.SETTLE_UNKNOWN})


async def ask(ports: Ports, sale: Sale, *, has_left: bool) -> Settlement:
    """Ask for the money of a sale. Never raises: what nobody foresaw says nothing about the money, so it is UNKNOWN.

    `has_left`: it may have been asked for before.
    """
    asked_s = ports.clock.monotonic_s()
    try:
        payload = msgspec.json.decode(sale.payload, type=PaymentPayload)
        requirements = msgspec.json.decode(sale.requirements, type=PaymentRequirements)
        settlement = await ports.facilitator.settle(payload, requirements)
    except Exception as bug:  # an edge: whoever asks must go on until it is known
        ports.log.error("settler_failed", sale=sale.id, error=type(bug).__name__, exc_info=bug)
        return Settlement(SettleOutcome.UNKNOWN, reason="internal")
    ports.metrics.settlement_s.observe(ports.clock.monotonic_s() - asked_s)
    if settlement.outcome is SettleOutcome.SETTLED and not has_left and _is_older(ports, sale, settlement):
        return Settlement(SettleOutcome.FAILED, reason=USED_BEFORE, is_proven=True)
    return settlement


def _is_older(ports: Ports, sale: Sale, settlement: Settlement) -> bool:
    """Whether the money moved before the sale was made: it paid for something else, by which it is used up.

    Somebody else of the same seller may have sold for it, or this ledger is not the one that knows.
    """
    since_s = max(0.0, ports.clock.now_s() - sale.created_s)  # a clock that was set back makes nothing older
    return settlement.age_s > since_s + JUST_S


def is_resolved(settlement: Settlement) -> bool:
    """Whether it says what became of the money."""
    return settlement.outcome in (SettleOutcome.SETTLED, SettleOutcome.FAILED)


async def book(ports: Ports, sale: Sale, settlement: Settlement, on_settled: Sequence[Event]) -> None:
    """Record what came of a settlement; `on_settled` are the steps where money moved."""
    ledger = ports.ledger
    match settlement.outcome:
        case SettleOutcome.SETTLED:
            change = Change(
                # where it ends here: nothing that is settled has a delivery that is still to be recorded
                delivery=Delivery.STARTED if Event.SETTLED in on_settled else None,
                settled_atomic=sale.authorized_atomic,
                transaction=settlement.transaction,
                reason="",
                log_index=settlement.log_index,
            )
            recorded = await ledger.record(sale.id, on_settled, change)
            ports.metrics.revenue(sale.key.network, sale.key.asset, sale.authorized_atomic)
        case SettleOutcome.FAILED:
            change = Change(settled_atomic=0, reason=settlement.reason)
            recorded = await ledger.record(sale.id, [Event.SETTLE_FAILED], change)
        case SettleOutcome.PENDING | SettleOutcome.UNKNOWN:
            change = Change(transaction=settlement.transaction or None, reason=settlement.reason)
            recorded = await ledger.record(sale.id, [Event.SETTLE_UNKNOWN], change)
    ports.metrics.payment(sale.offer, recorded.state)
    ports.log.info(
        "settlement",
        sale=sale.id,
        offer=sale.offer,
        state=recorded.state.value,
        reason=settlement.reason,
        transaction=settlement.transaction,
    )


async def book_late(ports: Ports, sale: Sale, settlement: Settlement, if_late: Sequence[Event]) -> None:
    """`book`, where an earlier try may have been recorded: `sale` is what the ledger holds now."""
    if sale.state is State.SETTLING or (sale.state is State.SETTLE_UNKNOWN and is_resolved(settlement)):
        await book(ports, sale, settlement, if_late)
    elif sale.state is State.REDEEMING and sale.attempt == sale.id and Event.SERVE not in if_late:
        # recorded as being served by whoever settled it, and that has ended meanwhile
        end = Event.OUTPUT if Event.SETTLED in if_late else Event.RELEASE
        await ports.ledger.record(sale.id, [end], Change(reason=settlement.reason), attempt=sale.attempt)


class Entry:
    """One step to be recorded for the attempt that holds a sale, tried until it is."""

    def __init__(self, ledger: Ledger, sale: Sale, events: Sequence[Event], change: Change) -> None:
        self._ledger = ledger
        self._sale = sale
        self._events = events
        self._change = change
        self._was_lost = False

    async def record(self) -> Sale:
        """The sale with the step taken, now or by an earlier try. Raises like the ledger."""
        sale = self._sale
        try:
            return await self._ledger.record(sale.id, self._events, self._change, attempt=sale.attempt)
        except LedgerUnavailableError:
            self._was_lost = True
            raise
        except IllegalTransitionError:
            if not await self._may_be_left_out():
                raise
        except SaleTakenError:
            raise
        except Exception:  # what becomes of the sale must not hang on what an upstream says that it counted
            self._change = replace(self._change, usage=None)
            raise
        return await self._ledger.record(sale.id, [], self._change, attempt=sale.attempt)

    async def _may_be_left_out(self) -> bool:
        """Whether an earlier try took the step, or the settlement that comes before it is still to be recorded.

        That one's record, whenever it comes, says by itself how the sale ends: what was handed over is known by then.
        """
        current = await self._ledger.sale(self._sale.id)
        if current is None:
            return False
        if current.state in UNRESOLVED and Event.SETTLE not in self._events:
            return True
        return self._was_lost and current.state in _ends_of(self._events)


def _ends_of(events: Sequence[Event]) -> set[State]:
    """Where `events` can lead. From none of these states can they be taken once more."""
    ends: set[State] = set()
    for state in State:
        with contextlib.suppress(IllegalTransitionError):
            ends.add(advance(state, events))
    return ends
