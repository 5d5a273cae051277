"""The tables of the PostgreSQL ledger, in a schema of their own, as numbered migrations.

A migration that was released is never changed.
"""

from typing import LiteralString

import psycopg

from obol.adapters.postgres_connections import Connection, transaction
from obol.adapters.postgres_url import FIELD
from obol.errors import SettingsError

MIGRATING = 0x0B01_4C46
"""The advisory lock under which one user at a time brings the schema up to date."""
OLDEST_SERVER = 140_000
"""The oldest release that PostgreSQL still maintains: idle sessions can be told not to end."""

_1_SALES: LiteralString = """
    CREATE DOMAIN obol.uint256 AS numeric(78, 0)
        CHECK (VALUE BETWEEN 0 AND 115792089237316195423570985008687907853269984665640564039457584007913129639935);

    -- Numbers of ledger users; never given twice, so a number that nobody has locked is dead.
    CREATE SEQUENCE obol.holder AS integer;

    -- Amounts are numeric: exact, as wide as a uint256, and SQL can add them up. Token counts are NULL where the
    -- upstream did not say. `taken_from`: the holders from whom the sale was adopted, oldest first.
    CREATE TABLE obol.sale (
        n bigint GENERATED ALWAYS AS IDENTITY,
        id text NOT NULL,
        network text NOT NULL,
        asset text NOT NULL,
        payer text NOT NULL,
        nonce text NOT NULL,
        claim bytea NOT NULL,
        offer text NOT NULL,
        pay_to text NOT NULL,
        authorized_atomic obol.uint256 NOT NULL,
        valid_before_s bigint NOT NULL,
        api text NOT NULL,
        model text NOT NULL,
        payload bytea NOT NULL,
        requirements bytea NOT NULL,
        created_s double precision NOT NULL,
        state text NOT NULL,
        delivery text NOT NULL,
        settled_atomic obol.uint256,
        transaction_id text NOT NULL,
        reason text NOT NULL,
        input_tokens bigint,
        output_tokens bigint,
        updated_s double precision NOT NULL,
        attempt text NOT NULL,
        log_index bigint,
        holder integer NOT NULL,
        taken_from integer[] NOT NULL DEFAULT '{}',
        CONSTRAINT sale_id PRIMARY KEY (id),
        CONSTRAINT sale_n UNIQUE (n)
    ) WITH (fillfactor = 70);

    -- The claim itself: at most one sale that is not released for an authorization. `claim` is a digest of (network,
    -- asset, payer, nonce).
    CREATE UNIQUE INDEX sale_claim ON obol.sale (claim) WHERE state <> 'released';
    -- What adoption looks for; the condition must be repeated word for word in a query that is to use it.
    CREATE INDEX sale_unfinished ON obol.sale (holder)
        WHERE state NOT IN ('rejected', 'released', 'settled', 'settle_failed', 'waived', 'owed');
    -- Who redeems what: looked up when it is not known whether a redemption was recorded.
    CREATE INDEX sale_redeemer ON obol.sale (attempt) WHERE state = 'redeeming';
    -- A payer's record: what was settled and what was refused, newest last; and what is out unpaid.
    CREATE INDEX sale_settled ON obol.sale (payer, updated_s) WHERE state = 'settled';
    CREATE INDEX sale_refused ON obol.sale (payer, updated_s) WHERE state = 'settle_failed';
    CREATE INDEX sale_unsettled ON obol.sale (payer) WHERE state IN ('served', 'settling', 'settle_unknown');
"""

_2_ORDER_OF_ENDS: LiteralString = """
    -- Which of a payer's sales were settled after the last refused one: `updated_s` moves again when an answer ends,
    -- and the clocks of gateways differ. Set by the step into one of the two states.
    CREATE SEQUENCE obol.resolved;
    ALTER TABLE obol.sale ADD COLUMN resolved_n bigint;
    UPDATE obol.sale SET resolved_n = numbered.n FROM (
        SELECT id, row_number() OVER (ORDER BY updated_s, sale.n) AS n FROM obol.sale
        WHERE state IN ('settled', 'settle_failed')
    ) AS numbered WHERE numbered.id = sale.id;
    SELECT setval('obol.resolved', coalesce((SELECT max(resolved_n) FROM obol.sale), 0) + 1);
    DROP INDEX obol.sale_settled;
    DROP INDEX obol.sale_refused;
    CREATE INDEX sale_settled ON obol.sale (payer, resolved_n) WHERE state = 'settled';
    CREATE INDEX sale_refused ON obol.sale (payer, resolved_n) WHERE state = 'settle_failed';
"""

MIGRATIONS: tuple[LiteralString, ...] = (_1_SALES, _2_ORDER_OF_ENDS)


async def migrate(connection: Connection, *, may_create: bool = True) -> None:
    """Make the schema `obol`, or bring it up to date, all in one transaction.

    Raises `SettingsError` when there is none and it may not be made, when it was written by a newer version or belongs
    to another program, and for a server that is too old; `psycopg.Error` else.
    """
    if connection.info.server_version < OLDEST_SERVER:
        raise SettingsError(FIELD, f"PostgreSQL {OLDEST_SERVER // 10_000} or newer is needed")
    async with transaction(connection):
        await connection.execute("SELECT pg_advisory_xact_lock(%s)", (MIGRATING,))
        version = await _version(connection)
        if version > len(MIGRATIONS):
            raise SettingsError(FIELD, "the ledger in the database was written by a newer version of obol")
        if version == 0 and not may_create:
            raise SettingsError(FIELD, "there is no ledger in the database: a gateway makes it")
        await _bring_up_to_date(connection, version)


async def _version(connection: Connection) -> int:
    """How many migrations were run; 0 for a database without a ledger."""
    row = await (await connection.execute("SELECT to_regclass('obol.ledger') IS NOT NULL")).fetchone()
    if not row or not row[0]:
        return 0
    try:
        row = await (await connection.execute("SELECT version FROM obol.ledger")).fetchone()
    except psycopg.errors.UndefinedColumn:
        row = None
    if row is None:
        raise SettingsError(FIELD, "the schema obol in the database belongs to another program")
    return int(row[0])


async def _bring_up_to_date(connection: Connection, version: int) -> None:
    if version == len(MIGRATIONS):
        return
    await connection.execute("SET LOCAL statement_timeout = 0")
    try:
        if version == 0:
            await connection.execute("CREATE SCHEMA IF NOT EXISTS obol")
            await connection.execute("CREATE TABLE obol.ledger (version integer NOT NULL)")
            await connection.execute("INSERT INTO obol.ledger VALUES (0)")
        for migration in MIGRATIONS[version:]:
            await connection.execute(migration)
    except (psycopg.errors.DuplicateTable, psycopg.errors.DuplicateObject):
        raise SettingsError(FIELD, "the schema obol in the database belongs to another program") from None
    except psycopg.errors.InsufficientPrivilege:
        raise SettingsError(FIELD, "its role may not make the schema obol: grant it CREATE on the database") from None
    await connection.execute("UPDATE obol.ledger SET version = %s", (len(MIGRATIONS),))
