"""Sales as a gateway records them, for tests of what is computed from a ledger: every way through the table."""

from dataclasses import replace

from hypothesis import strategies as st

from obol.core.payment import PAID, TABLE, State
from obol.core.sale import ClaimKey, Delivery, Sale

TOKEN = "0x036cbd53842c5426634e7929541ec2318f3dcf7e"
PAY_TO = "0x209693bc6afc0c5328ba36faf03c514ef312287c"
_HANDED_OVER = [delivery for delivery in Delivery if delivery is not Delivery.NONE]
RECORDED = sorted(set(TABLE) - {State.REQUIRED, State.PRESENTED, State.VERIFIED, State.REJECTED})


def a_sale(state: State = State.SETTLED, number: int = 1, *, amount_atomic: int = 1000) -> Sale:
    """A sale in a state, as recorded by a gateway that was told no log index."""
    paid = state in PAID
    return Sale(
        id=f"sale-{number}",
        key=ClaimKey("eip155:84532", TOKEN, "0x" + "ab" * 20, f"0x{number:064x}"),
        offer="qwen",
        pay_to=PAY_TO,
        authorized_atomic=amount_atomic,
        valid_before_s=1_800_000_300,
        api="chat",
        model="qwen36-fast",
        payload=b'{"signature":"secret"}',
        requirements=b'{"scheme":"exact"}',
        created_s=1_800_000_000.0 + number,
        state=state,
        delivery=Delivery.COMPLETE if state in (State.SETTLED, State.WAIVED) else Delivery.NONE,
        settled_atomic=amount_atomic if paid else 0 if state in (State.SETTLE_FAILED, State.WAIVED) else None,
        transaction=f"0x{number:064x}" if paid else "",
        updated_s=1_800_000_001.0 + number,
        attempt=f"sale-{number}",
    )


@st.composite
def recorded_sales(draw: st.DrawFn, number: int = 1) -> Sale:
    """Any row that a gateway can leave behind."""
    state = draw(st.sampled_from(RECORDED))
    sale = a_sale(state, number, amount_atomic=draw(st.integers(1, 2**256 - 1)))
    if state is State.SETTLED:
        sale = replace(sale, delivery=draw(st.sampled_from(_HANDED_OVER)))
    elif state not in (State.CLAIMED, State.SERVING, State.RELEASED, State.OWED, State.REDEEMING):
        sale = replace(sale, delivery=draw(st.sampled_from(Delivery)))
    if state in PAID:
        sale = replace(sale, attempt=draw(st.sampled_from([sale.id, "later"])))
        sale = replace(sale, log_index=draw(st.none() | st.integers(0, 5)))
    elif state in (State.SETTLE_UNKNOWN, State.SETTLE_FAILED):
        sale = replace(sale, transaction=draw(st.sampled_from(["", "0x12"])))
    return sale
