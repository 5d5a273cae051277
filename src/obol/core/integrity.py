"""What cannot be true of the rows of a ledger. A row that a gateway can leave behind, at any instant, is never wrong.

Derived from the payment table and from what is recorded with its steps: settlements record amount and transaction, a
definite no records 0, a hint of a transaction may stay with an unknown settlement and with the no that follows.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from obol.core.payment import PAID, State
from obol.core.sale import Delivery, Sale

_NEVER_RECORDED = frozenset({State.REQUIRED, State.PRESENTED, State.VERIFIED, State.REJECTED})
_NOTHING_ASKED = frozenset({State.CLAIMED, State.SERVING, State.SERVED, State.RELEASED, State.WAIVED})
_NO_TRANSACTION = _NOTHING_ASKED | {State.SETTLING}
_NOTHING_HANDED_OVER = frozenset({State.CLAIMED, State.SERVING, State.RELEASED, State.OWED, State.REDEEMING})
_NOT_MOVED = frozenset({State.SETTLE_FAILED, State.WAIVED})
"""Settled is recorded as 0."""


@dataclass(frozen=True, slots=True)
class Flaw:
    """One thing that is wrong with one sale, in words without secrets."""

    sale: str
    text: str


class Checker:
    """Give it every sale once, in any order; it remembers which transfers were named, nothing else."""

    def __init__(self) -> None:
        self._transfers: dict[tuple[str, str, int], str] = {}

    def check(self, sale: Sale) -> list[Flaw]:
        """What is wrong with a sale, by itself and beside those before it."""
        texts = [text for rule in _RULES for text in rule(sale)]
        texts += self._shared_transfer(sale)
        return [Flaw(sale.id, text) for text in texts]

    def _shared_transfer(self, sale: Sale) -> Iterator[str]:
        """One movement of money pays one sale."""
        if sale.state not in PAID or sale.log_index is None or not sale.transaction:
            return
        transfer = (sale.key.network, sale.transaction.lower(), sale.log_index)
        first = self._transfers.setdefault(transfer, sale.id)
        if first != sale.id:
            yield f"it names the transfer that paid sale {first}"


def _state(sale: Sale) -> Iterator[str]:
    if sale.state in _NEVER_RECORDED:
        yield f"a ledger never holds a sale that is {sale.state}"


def _amount(sale: Sale) -> Iterator[str]:
    if sale.authorized_atomic <= 0:
        yield "its amount is not above 0"
    expected = _expected_settled(sale)
    if sale.settled_atomic != expected:
        held = "unknown" if sale.settled_atomic is None else str(sale.settled_atomic)
        right = "unknown" if expected is None else str(expected)
        yield f"it is {sale.state} and its settled amount is {held}: it must be {right}"


def _expected_settled(sale: Sale) -> int | None:
    if sale.state in PAID:
        return sale.authorized_atomic
    return 0 if sale.state in _NOT_MOVED else None


def _transaction(sale: Sale) -> Iterator[str]:
    if sale.state in PAID and not sale.transaction:
        yield f"it is {sale.state} and has no transaction"
    if sale.state in _NO_TRANSACTION and sale.transaction:
        yield f"it is {sale.state} and has a transaction: no settlement was answered"
    if sale.log_index is not None and (sale.log_index < 0 or sale.state not in PAID):
        yield f"it is {sale.state} and has log index {sale.log_index}"


def _delivery(sale: Sale) -> Iterator[str]:
    if sale.state in _NOTHING_HANDED_OVER and sale.delivery is not Delivery.NONE:
        yield f"it is {sale.state} and its delivery is {sale.delivery}: nothing can have been handed over"
    if sale.state is State.SETTLED and sale.delivery is Delivery.NONE:
        yield "it is settled and nothing was handed over: it should be owed"


def _attempt(sale: Sale) -> Iterator[str]:
    if not sale.attempt:
        yield "no attempt holds it"
    elif sale.attempt != sale.id and sale.state not in PAID:
        yield f"it is {sale.state} and another attempt holds it: only what is paid is redeemed"


def _key(sale: Sale) -> Iterator[str]:
    for name in ("network", "asset", "payer", "nonce"):
        value: str = getattr(sale.key, name)
        if not value or value != value.lower():
            yield f"its {name} is empty or not in lower case"


def _requirements(sale: Sale) -> Iterator[str]:
    """What would be settled must be what the row says."""
    try:
        wanted = json.loads(sale.requirements)
    except ValueError:
        wanted = None
    if not isinstance(wanted, dict):
        yield "its requirements cannot be read"
        return
    recorded = {
        "amount": str(sale.authorized_atomic),
        "payTo": sale.pay_to.lower(),
        "asset": sale.key.asset,
        "network": sale.key.network,
    }
    for name, value in recorded.items():
        if name in wanted and str(wanted[name]).lower() != value:
            yield f"its requirements have another {name}"


_RULES: tuple[Callable[[Sale], Iterator[str]], ...] = (
    _state,
    _amount,
    _transaction,
    _delivery,
    _attempt,
    _key,
    _requirements,
)
