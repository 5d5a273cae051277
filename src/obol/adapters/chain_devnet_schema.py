"""The tables of the devnet, as numbered migrations. A migration that was released is never changed."""

from obol.adapters.sqlite_file import Schema

_1_TOKENS = (
    # Accounts, assets and nonces in lower case, amounts and times as decimal text: a uint256 does not fit INTEGER.
    """
    CREATE TABLE balance (
        network TEXT NOT NULL,
        asset TEXT NOT NULL,
        account TEXT NOT NULL,
        amount_atomic TEXT NOT NULL,
        PRIMARY KEY (network, asset, account)
    )
    """,
    # EIP-3009's authorization states. No row: unused. An empty transaction: cancelled.
    """
    CREATE TABLE authorization (
        network TEXT NOT NULL,
        asset TEXT NOT NULL,
        payer TEXT NOT NULL,
        nonce TEXT NOT NULL,
        content TEXT NOT NULL,
        transaction_id TEXT NOT NULL,
        PRIMARY KEY (network, asset, payer, nonce)
    )
    """,
    # The log: what `Transfer` and `AuthorizationUsed` say on a real chain. Money out of nothing has no payer and nonce.
    """
    CREATE TABLE transfer (
        block INTEGER PRIMARY KEY AUTOINCREMENT,
        transaction_id TEXT NOT NULL UNIQUE,
        network TEXT NOT NULL,
        asset TEXT NOT NULL,
        payer TEXT NOT NULL,
        payee TEXT NOT NULL,
        amount_atomic TEXT NOT NULL,
        nonce TEXT NOT NULL,
        at_s INTEGER NOT NULL
    )
    """,
    "CREATE INDEX transfer_payer ON transfer (network, asset, payer)",
    "CREATE INDEX transfer_payee ON transfer (network, asset, payee)",
)

DEVNET_SCHEMA = Schema(application_id=0x0B01_444E, migrations=(_1_TOKENS,))
