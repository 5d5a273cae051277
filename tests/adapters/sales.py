"""Sales for tests of ledgers: keys and sales that differ, and the way to every state that a ledger can hold."""

import itertools

from obol.core.ledger import Claimed, Ledger
from obol.core.payment import FINAL, Event, State
from obol.core.sale import ClaimKey, NewSale, Sale

_numbers = itertools.count(1)

WAY_TO: dict[State, tuple[Event, ...]] = {
    State.CLAIMED: (),
    State.SERVING: (Event.SERVE,),
    State.RELEASED: (Event.RELEASE,),
    State.SERVED: (Event.SERVE, Event.OUTPUT),
    State.WAIVED: (Event.SERVE, Event.OUTPUT, Event.WAIVE),
    State.SETTLING: (Event.SERVE, Event.OUTPUT, Event.SETTLE),
    State.SETTLED: (Event.SERVE, Event.OUTPUT, Event.SETTLE, Event.SETTLED),
    State.SETTLE_FAILED: (Event.SETTLE, Event.SETTLE_FAILED),
    State.SETTLE_UNKNOWN: (Event.SERVE, Event.OUTPUT, Event.SETTLE, Event.SETTLE_UNKNOWN),
    State.OWED: (Event.SETTLE, Event.SETTLED_UNDELIVERED),
    State.REDEEMING: (Event.SETTLE, Event.SETTLED_UNDELIVERED, Event.SERVE),
}
"""For every state that a ledger can hold, one way there from CLAIMED."""

ADOPTABLE = frozenset(WAY_TO) - FINAL - {State.OWED}


def a_key(number: int | None = None) -> ClaimKey:
    """A key of its own, or always the same one for the same number."""
    return ClaimKey(
        network="eip155:84532",
        asset="0x036cbd53842c5426634e7929541ec2318f3dcf7e",
        payer="0x" + "ab" * 20,
        nonce=f"0x{next(_numbers) + 1000 if number is None else number:064x}",
    )


def a_new_sale(key: ClaimKey | None = None, *, authorized_atomic: int = 1000) -> NewSale:
    """A sale with an id of its own."""
    number = next(_numbers)
    return NewSale(
        id=f"sale-{number}",
        key=key or a_key(),
        offer="qwen",
        pay_to="0x209693Bc6afc0C5328bA36FaF03C514EF312287C",
        authorized_atomic=authorized_atomic,
        valid_before_s=1_800_000_300,
        api="chat",
        model="qwen36-fast",
        payload=b'{"x402Version":2}',
        requirements=b'{"scheme":"exact"}',
        created_s=1_800_000_000.0 + number,
    )


def as_claimed(new: NewSale, updated_s: float) -> Sale:
    """What a ledger must hold after `new` was claimed."""
    return Sale(
        **{name: getattr(new, name) for name in NewSale.__slots__},  # the fields that both have
        state=State.CLAIMED,
        updated_s=updated_s,
        attempt=new.id,
    )


async def claimed_in(ledger: Ledger, state: State, key: ClaimKey | None = None) -> Sale:
    """A sale that was brought to `state`."""
    outcome = await ledger.claim(a_new_sale(key))
    assert isinstance(outcome, Claimed)
    return await ledger.record(outcome.sale.id, WAY_TO[state])
