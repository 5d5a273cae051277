"""The tables of the SQLite ledger, as numbered migrations. A migration that was released is never changed."""

from obol.adapters.sqlite_file import Schema

_1_SALES = (
    # Amounts are decimal text: a uint256 does not fit INTEGER. Token counts are NULL where the upstream did not say.
    """
    CREATE TABLE sale (
        id TEXT NOT NULL PRIMARY KEY,
        network TEXT NOT NULL,
        asset TEXT NOT NULL,
        payer TEXT NOT NULL,
        nonce TEXT NOT NULL,
        claim BLOB NOT NULL,
        offer TEXT NOT NULL,
        pay_to TEXT NOT NULL,
        authorized_atomic TEXT NOT NULL,
        valid_before_s INTEGER NOT NULL,
        api TEXT NOT NULL,
        model TEXT NOT NULL,
        payload BLOB NOT NULL,
        requirements BLOB NOT NULL,
        created_s REAL NOT NULL,
        state TEXT NOT NULL,
        delivery TEXT NOT NULL,
        settled_atomic TEXT,
        transaction_id TEXT NOT NULL,
        reason TEXT NOT NULL,
        input_tokens INTEGER,
        output_tokens INTEGER,
        updated_s REAL NOT NULL,
        holder TEXT NOT NULL
    )
    """,
    # The claim itself: at most one sale that is not released for an authorization. `claim` is a digest of (network,
    # asset, payer, nonce): the index is a tenth of the size, and an insert writes far fewer pages.
    "CREATE UNIQUE INDEX sale_claim ON sale (claim) WHERE state <> 'released'",
    # What adoption looks for; the condition must be repeated word for word in a query that is to use it.
    """
    CREATE INDEX sale_unfinished ON sale (holder)
        WHERE state NOT IN ('rejected', 'released', 'settled', 'settle_failed', 'waived', 'owed')
    """,
)

_2_ATTEMPTS_AND_STANDING = (
    "ALTER TABLE sale ADD COLUMN attempt TEXT NOT NULL DEFAULT ''",
    "UPDATE sale SET attempt = id",
    # Who redeems what: looked up when it is not known whether a redemption was recorded.
    "CREATE INDEX sale_redeemer ON sale (attempt) WHERE state = 'redeeming'",
    # A payer's record: what was settled and what was refused, newest last; and what is out unpaid.
    "CREATE INDEX sale_settled ON sale (payer, updated_s) WHERE state = 'settled'",
    "CREATE INDEX sale_refused ON sale (payer, updated_s) WHERE state = 'settle_failed'",
    "CREATE INDEX sale_unsettled ON sale (payer) WHERE state IN ('served', 'settling', 'settle_unknown')",
)

_3_LOG_INDEX = (
    # Which transfer of the transaction: several payments can share one.
    "ALTER TABLE sale ADD COLUMN log_index INTEGER",
)

_4_ORDER_OF_ENDS = (
    # Which of a payer's sales were settled after the last refused one: `updated_s` moves again when an answer ends, and
    # clocks are set back. Counted for each payer, by the step into one of the two states.
    "ALTER TABLE sale ADD COLUMN resolved_n INTEGER",
    """
    UPDATE sale SET resolved_n = numbered.n FROM (
        SELECT id, row_number() OVER (PARTITION BY payer ORDER BY updated_s, rowid) AS n FROM sale
        WHERE state IN ('settled', 'settle_failed')
    ) AS numbered WHERE numbered.id = sale.id
    """,
    "DROP INDEX sale_settled",
    "DROP INDEX sale_refused",
    "CREATE INDEX sale_settled ON sale (payer, resolved_n) WHERE state = 'settled'",
    "CREATE INDEX sale_refused ON sale (payer, resolved_n) WHERE state = 'settle_failed'",
)

LEDGER_SCHEMA = Schema(
    application_id=0x0B01_4C44,
    migrations=(_1_SALES, _2_ATTEMPTS_AND_STANDING, _3_LOG_INDEX, _4_ORDER_OF_ENDS),
)
