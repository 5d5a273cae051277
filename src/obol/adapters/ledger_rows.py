"""What the ledgers of every database share: the columns of a sale, rows to sales and back, and how a sale is moved."""

from dataclasses import replace
from hashlib import blake2b
from typing import Any

from obol.core.ledger import Change
from obol.core.payment import PAID, State
from obol.core.sale import ClaimKey, Delivery, NewSale, Sale
from obol.core.usage import Usage
from obol.errors import IllegalTransitionError

COLUMNS = (
    "id, network, asset, payer, nonce, offer, pay_to, authorized_atomic, valid_before_s, api, model, payload, "
    "requirements, created_s, state, delivery, settled_atomic, transaction_id, reason, input_tokens, output_tokens, "
    "updated_s, attempt, log_index"
)
"""Of the table `sale`, in the order of `row_of` and `sale_of`."""
FIRST_MUTABLE = 14
"""Index of `state` in `COLUMNS`: what comes before never changes."""
UNFINISHED = "state NOT IN ('rejected', 'released', 'settled', 'settle_failed', 'waived', 'owed')"
"""What adoption looks for; word for word the condition of the index that finds it."""
AS_CLAIMED = frozenset({State.CLAIMED, State.REDEEMING})
"""How a claim leaves a sale."""


def digest(key: ClaimKey) -> bytes:
    """What identifies an authorization, in 16 bytes. None of the parts can contain the separator."""
    return blake2b(f"{key.network}\n{key.asset}\n{key.payer}\n{key.nonce}".encode(), digest_size=16).digest()


def claimed(sale: NewSale, now_s: float) -> Sale:
    """What a claim records."""
    return Sale(
        id=sale.id,
        key=sale.key,
        offer=sale.offer,
        pay_to=sale.pay_to,
        authorized_atomic=sale.authorized_atomic,
        valid_before_s=sale.valid_before_s,
        api=sale.api,
        model=sale.model,
        payload=sale.payload,
        requirements=sale.requirements,
        created_s=sale.created_s,
        state=State.CLAIMED,
        updated_s=now_s,
        attempt=sale.id,
    )


def disowned(sale: NewSale, reason: str, now_s: float) -> Sale:
    """What is recorded in place of a claim that never was: it keeps a later one from using the id."""
    return replace(claimed(sale, now_s), state=State.RELEASED, reason=reason)


def moved(sale: Sale, state: State, change: Change, now_s: float) -> Sale:
    """The sale after a step to `state`; None in `change` leaves a field as it is.

    Raises `IllegalTransitionError` where what was refused is found to be paid, and the step does not fit what was
    handed over: that is known for sure only now.
    """
    delivery = _further(sale.delivery, change.delivery)
    is_found = sale.state is State.SETTLE_FAILED and state in PAID
    if is_found and (state is State.SETTLED) == (delivery is Delivery.NONE):
        raise IllegalTransitionError(f"a payment whose delivery is {delivery} cannot become {state}")
    return replace(
        sale,
        state=state,
        delivery=delivery,
        settled_atomic=sale.settled_atomic if change.settled_atomic is None else change.settled_atomic,
        transaction=sale.transaction if change.transaction is None else change.transaction,
        reason=sale.reason if change.reason is None else change.reason,
        usage=sale.usage if change.usage is None else change.usage,
        log_index=sale.log_index if change.log_index is None else change.log_index,
        updated_s=now_s,
    )


def _further(known: Delivery, now: Delivery | None) -> Delivery:
    if now is None or (now is Delivery.STARTED and known is not Delivery.NONE):
        return known
    return now


def row_of(sale: Sale) -> tuple[Any, ...]:
    """The values of `COLUMNS`. Amounts are decimal text: a uint256 fits no integer of a database."""
    return (
        sale.id,
        sale.key.network,
        sale.key.asset,
        sale.key.payer,
        sale.key.nonce,
        sale.offer,
        sale.pay_to,
        str(sale.authorized_atomic),
        sale.valid_before_s,
        sale.api,
        sale.model,
        sale.payload,
        sale.requirements,
        sale.created_s,
        sale.state.value,
        sale.delivery.value,
        None if sale.settled_atomic is None else str(sale.settled_atomic),
        sale.transaction,
        sale.reason,
        sale.usage.input_tokens,
        sale.usage.output_tokens,
        sale.updated_s,
        sale.attempt,
        sale.log_index,
    )


def sale_of(row: tuple[Any, ...]) -> Sale:
    """The sale of a row that begins with `COLUMNS`. Raises `ValueError` where it is none."""
    return Sale(
        id=row[0],
        key=ClaimKey(*row[1:5]),
        offer=row[5],
        pay_to=row[6],
        authorized_atomic=int(row[7]),
        valid_before_s=row[8],
        api=row[9],
        model=row[10],
        payload=row[11],
        requirements=row[12],
        created_s=row[13],
        state=State(row[14]),
        delivery=Delivery(row[15]),
        settled_atomic=None if row[16] is None else int(row[16]),
        transaction=row[17],
        reason=row[18],
        usage=Usage(row[19], row[20]),
        updated_s=row[21],
        attempt=row[22],
        log_index=row[23],
    )
