"""What can be found wrong with the tables of the PostgreSQL ledger, in words."""

from typing import Final

import psycopg

from obol.adapters.ledger_postgres_schema import MIGRATIONS
from obol.adapters.ledger_rows import COLUMNS, digest, sale_of
from obol.adapters.postgres_connections import Connection, transaction

_ROWS_AT_A_TIME = 1000

_INDEXES: Final = (
    "sale_id", "sale_n", "sale_claim", "sale_unfinished", "sale_redeemer", "sale_settled", "sale_refused",
    "sale_unsettled",
)  # fmt: skip
_SOUND_INDEXES = """
    SELECT class.relname FROM pg_index JOIN pg_class AS class ON class.oid = indexrelid
    WHERE indrelid = 'obol.sale'::regclass AND indisvalid AND indisready AND (indisunique OR relname <> 'sale_claim')
"""
_UNCHECKED = """
    SELECT conname FROM pg_constraint
    WHERE (conrelid = 'obol.sale'::regclass OR connamespace = 'obol'::regnamespace) AND NOT convalidated
"""
_UNSAFE_SETTINGS = """
    SELECT name FROM pg_settings WHERE name IN ('fsync', 'full_page_writes') AND setting = 'off' ORDER BY name
"""
_TORN = """
    SELECT coalesce(checksum_failures, 0) FROM pg_stat_database WHERE datname = current_database()
"""
_DOUBLE = """
    SELECT min(id), count(*) FROM obol.sale WHERE state <> 'released' GROUP BY claim HAVING count(*) > 1
"""


async def find_flaws(connection: Connection) -> list[str]:
    """See `core.ledger.Ledger.flaws`: constraints, indexes, what the server admits, and that every row is a sale."""
    flaws = [*await _of_the_schema(connection), *await _of_the_server(connection)]
    flaws += await _of_the_indexes(connection)
    async with transaction(connection):
        await connection.execute("SET LOCAL statement_timeout = 0")
        flaws += await _double_claims(connection)
        flaws += await _of_the_rows(connection)
    return flaws


async def _of_the_schema(connection: Connection) -> list[str]:
    versions = [row[0] for row in await (await connection.execute("SELECT version FROM obol.ledger")).fetchall()]
    flaws = [] if versions == [len(MIGRATIONS)] else [f"obol.ledger says that the tables are of version {versions}"]
    unchecked = await (await connection.execute(_UNCHECKED)).fetchall()
    return flaws + [f"constraint {name} is not validated" for (name,) in unchecked]


async def _of_the_server(connection: Connection) -> list[str]:
    unsafe = await (await connection.execute(_UNSAFE_SETTINGS)).fetchall()
    flaws = [f"the server runs with {name} off: a power cut loses or tears what was recorded" for (name,) in unsafe]
    torn = await (await connection.execute(_TORN)).fetchone()
    return [*flaws, f"the server has met {torn[0]} pages with a wrong checksum"] if torn and torn[0] else flaws


async def _of_the_indexes(connection: Connection) -> list[str]:
    sound = {row[0] for row in await (await connection.execute(_SOUND_INDEXES)).fetchall()}
    return [f"index {name} is missing or not valid" for name in _INDEXES if name not in sound]


async def _double_claims(connection: Connection) -> list[str]:
    """Past the index, which is what would be wrong."""
    for kind in ("indexscan", "indexonlyscan", "bitmapscan"):
        await connection.execute("SELECT set_config(%s, 'off', true)", (f"enable_{kind}",))
    double = await (await connection.execute(_DOUBLE)).fetchall()
    for kind in ("indexscan", "indexonlyscan", "bitmapscan"):
        await connection.execute("SELECT set_config(%s, 'on', true)", (f"enable_{kind}",))
    return [f"{count} sales hold the authorization of sale {sale}" for sale, count in double]


async def _of_the_rows(connection: Connection) -> list[str]:
    """Rows that are no sales, and claims that are not those of their authorization."""
    flaws: list[str] = []
    after = 0
    query = psycopg.sql.SQL("SELECT {columns}, claim, n FROM obol.sale WHERE n > %s ORDER BY n LIMIT %s").format(
        columns=psycopg.sql.SQL(", ").join(map(psycopg.sql.Identifier, COLUMNS.split(", ")))
    )
    while rows := await (await connection.execute(query, (after, _ROWS_AT_A_TIME))).fetchall():
        for row in rows:
            flaws += _of_one(row)
        after = rows[-1][-1]
    return flaws


def _of_one(row: tuple[object, ...]) -> list[str]:
    try:
        sale = sale_of(row)
    except ValueError:
        return [f"the row of sale {row[0]} cannot be read"]
    if digest(sale.key) != row[-2]:
        return [f"sale {sale.id} claims another authorization than its own"]
    return []
