"""What each state of the payment table means to a seller who meets it in the books: who owes what, and what to do."""

from obol.core.payment import State

STATE_WORDS: dict[State, str] = {
    State.REQUIRED: "A price was told. Nobody owes anything.",
    State.PRESENTED: "A payment was read. Nobody owes anything.",
    State.VERIFIED: "The payment is good, and not claimed yet. Nobody owes anything.",
    State.REJECTED: "The payment was refused. Nobody owes anything.",
    State.CLAIMED: "The payment is held for this sale; nothing was handed over yet. Nobody owes anything.",
    State.SERVING: "The model was asked and has not answered yet. Nobody owes anything.",
    State.RELEASED: "Nothing was handed over and nothing is asked for: the buyer may present the payment again.",
    State.SERVED: "There is an answer, and its money is not asked for yet. The buyer owes you the amount.",
    State.SETTLING: "The money is being asked for: who owes what is known when that is answered.",
    State.SETTLE_UNKNOWN: (
        "Whether money moved is not known, so the payer must not pay again. A gateway asks on until it is known: "
        "let one run, with --rpc; `obol reconcile` shows what the chain says."
    ),
    State.SETTLED: "Money moved and the answer was handed over. Nobody owes anything.",
    State.SETTLE_FAILED: (
        "The money was refused: what was handed over is your loss. If it moved all the same, `obol reconcile` names "
        "the sale, and with --record makes it owed or settled."
    ),
    State.OWED: (
        "Money moved and nothing was handed over: you owe an answer. It is served when the same payment comes again."
    ),
    State.REDEEMING: "Money moved, and the answer that you owe is being served.",
    State.WAIVED: "Handed over with --verify-only: no money is asked for. Nobody owes anything.",
}
