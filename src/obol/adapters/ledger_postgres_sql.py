"""The statements of the PostgreSQL ledger, and the arguments of those that write many rows at once."""

from collections.abc import Sequence
from typing import Any, Final

from psycopg import sql

from obol.adapters.ledger_rows import COLUMNS, FIRST_MUTABLE, UNFINISHED, digest, row_of
from obol.core.sale import Sale

_TYPES: Final = {
    "authorized_atomic": "numeric",
    "valid_before_s": "bigint",
    "payload": "bytea",
    "requirements": "bytea",
    "created_s": "double precision",
    "settled_atomic": "numeric",
    "input_tokens": "bigint",
    "output_tokens": "bigint",
    "updated_s": "double precision",
    "log_index": "bigint",
    "claim": "bytea",
}
"""Of the columns that are not text."""
_NAMES: Final = COLUMNS.split(", ")
_CLAIMED: Final = [*_NAMES, "claim"]
_MOVED: Final = ["id", *_NAMES[FIRST_MUTABLE:]]


def _statement(text: str) -> sql.SQL:
    """Of constants only: no argument is ever part of a statement's text."""
    return sql.SQL(text)


def _arrays(names: Sequence[str]) -> str:
    """One array for each column: any number of rows with one statement that is prepared once."""
    return ", ".join(f"%s::{_TYPES.get(name, 'text')}[]" for name in names)


INSERT: Final = _statement(
    f"INSERT INTO obol.sale ({', '.join(_CLAIMED)}, holder) "  # noqa: S608 - constants
    f"SELECT new.*, %s::integer FROM unnest({_arrays(_CLAIMED)}) AS new ({', '.join(_CLAIMED)}) ORDER BY new.claim "
    "ON CONFLICT DO NOTHING RETURNING id, claim"
)
"""In the order of the index: two batches that want the same authorizations never wait for each other in a circle."""
UPDATE: Final = _statement(
    f"UPDATE obol.sale AS old SET {', '.join(f'{name} = new.{name}' for name in _MOVED[1:])}, "  # noqa: S608 - constants
    "resolved_n = CASE WHEN new.state IN ('settled', 'settle_failed') AND old.state <> new.state "
    "THEN nextval('obol.resolved') ELSE old.resolved_n END "
    f"FROM unnest({_arrays(_MOVED)}) AS new ({', '.join(_MOVED)}) WHERE old.id = new.id"
)
_SELECT: Final = f"SELECT {COLUMNS}, holder, taken_from FROM obol.sale "  # noqa: S608 - constants
BY_ID: Final = _statement(_SELECT + "WHERE id = %s")
LOCK: Final = _statement(_SELECT + "WHERE id = ANY(%s::text[]) ORDER BY id FOR UPDATE")
HELD_BY: Final = _statement(
    _SELECT + "WHERE id = %(attempt)s AND attempt = %(attempt)s OR attempt = %(attempt)s AND state = 'redeeming'"
)
_CLAIMANT: Final = _SELECT + "WHERE claim = %s AND state <> 'released'"
CLAIMANT: Final = _statement(_CLAIMANT)
LOCK_CLAIMANT: Final = _statement(_CLAIMANT + " FOR UPDATE")
IS_ID_USED: Final = _statement("SELECT 1 FROM obol.sale WHERE id = %s AND (claim <> %s OR state = 'released')")
HOLD: Final = _statement("UPDATE obol.sale SET holder = %s WHERE id = %s")
TOUCH: Final = _statement("UPDATE obol.ledger SET version = version")

LOCK_PAYER: Final = _statement("SELECT pg_advisory_xact_lock(%s, hashtext(%s))")
IS_GOOD_FOR: Final = _statement(
    """
    SELECT (
        SELECT count(*) FROM (
            SELECT 1 FROM obol.sale
            WHERE payer = %(payer)s AND asset = %(asset)s AND network = %(network)s AND state = 'settled'
                AND resolved_n > (
                    SELECT coalesce(max(resolved_n), 0) FROM obol.sale
                    WHERE payer = %(payer)s AND asset = %(asset)s AND network = %(network)s AND state = 'settle_failed'
                )
            LIMIT greatest(%(after_sales)s::bigint, 1)
        ) AS settled
    ) >= greatest(%(after_sales)s::bigint, (
        SELECT count(*) FROM (
            SELECT 1 FROM obol.sale
            WHERE payer = %(payer)s AND asset = %(asset)s AND network = %(network)s AND state = 'settle_failed' LIMIT 1
        ) AS refused
    )) AND (
        SELECT coalesce(sum(authorized_atomic), 0) FROM obol.sale
        WHERE payer = %(payer)s AND asset = %(asset)s AND network = %(network)s AND id <> %(but)s
            AND state IN ('served', 'settling', 'settle_unknown')
    ) + %(amount)s::numeric <= %(most)s::numeric
    """
)

PAGE: Final = _statement(
    f"SELECT {COLUMNS}, n FROM obol.sale WHERE n > %(after)s AND n <= %(upto)s "  # noqa: S608 - constants
    "AND (%(since_s)s::double precision IS NULL OR created_s >= %(since_s)s) "
    "AND (%(until_s)s::double precision IS NULL OR created_s < %(until_s)s) "
    "AND (%(offer)s::text IS NULL OR offer = %(offer)s) AND (%(payer)s::text IS NULL OR payer = %(payer)s) "
    "AND (%(network)s::text IS NULL OR network = %(network)s) AND (%(asset)s::text IS NULL OR asset = %(asset)s) "
    "AND (%(states)s::text[] IS NULL OR state = ANY(%(states)s)) ORDER BY n LIMIT %(limit)s"
)
NEWEST: Final = _statement("SELECT coalesce(max(n), 0) FROM obol.sale")
WRITERS: Final = _statement(
    """
    SELECT virtualtransaction FROM pg_locks
    WHERE locktype = 'relation' AND relation = 'obol.sale'::regclass AND mode = 'RowExclusiveLock' AND granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    """
)

DEAD: Final = _statement(
    f"SELECT holder FROM (SELECT DISTINCT holder FROM obol.sale WHERE holder <> %s AND {UNFINISHED} OFFSET 0) AS known "  # noqa: S608
    "WHERE pg_try_advisory_xact_lock(%s, holder)"
)
ADOPT: Final = _statement(
    "WITH left_behind AS MATERIALIZED ("  # noqa: S608 - constants
    f"SELECT id FROM obol.sale WHERE holder = ANY(%(dead)s::integer[]) AND {UNFINISHED} "
    "AND (%(network)s::text IS NULL OR network = %(network)s) ORDER BY id FOR UPDATE) "
    "UPDATE obol.sale AS sale SET holder = %(mine)s, taken_from = taken_from || sale.holder FROM left_behind "
    f"WHERE sale.id = left_behind.id RETURNING {', '.join(f'sale.{name}' for name in _NAMES)}"
)


def inserted(sales: Sequence[Sale], holder: int) -> list[Any]:
    """The arguments of `INSERT`."""
    rows = [(*row_of(sale), digest(sale.key)) for sale in sales]
    return [holder, *_columns(rows)]


def updated(sales: Sequence[Sale]) -> list[Any]:
    """The arguments of `UPDATE`; every sale at most once."""
    return _columns([(sale.id, *row_of(sale)[FIRST_MUTABLE:]) for sale in sales])


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[Any]:
    return [list(column) for column in zip(*rows, strict=True)]
