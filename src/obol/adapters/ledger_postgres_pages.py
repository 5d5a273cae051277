"""Pages of a table that others are writing: none may skip a sale that is recorded later than one behind it.

Sales are numbered when they are inserted and seen when that is committed, so a higher number can be seen first. A page
ends at the highest number that was there when it was asked for, and waits until whoever was writing then is done: an
insert has its lock on the table before it has its number. That is a matter of milliseconds, and `Waits.lock_s` at
most when a writer hangs.
"""

import asyncio
from typing import Any

from obol.adapters.ledger_postgres_sql import NEWEST, PAGE, WRITERS
from obol.adapters.ledger_rows import sale_of
from obol.adapters.postgres_connections import Connection
from obol.core.ledger import Page, SaleFilter

_LOOK_INTERVAL_S = 0.005


async def read_page(connection: Connection, which: SaleFilter, after: int | None, limit: int, *, wait_s: float) -> Page:
    """See the port. Raises `TimeoutError` when a writer hangs."""
    wanted = {name: getattr(which, name) for name in ("since_s", "until_s", "offer", "payer", "network", "asset")}
    states = None if which.states is None else sorted(state.value for state in which.states)
    upto = await _settled_number(connection, wait_s)
    arguments = {**wanted, "states": states, "after": after or 0, "upto": upto, "limit": limit}
    rows = await (await connection.execute(PAGE, arguments)).fetchall()
    return Page([sale_of(row) for row in rows], rows[-1][-1] if len(rows) == limit else None)


async def _settled_number(connection: Connection, wait_s: float) -> int:
    """The newest number, once no lower one can appear any more."""
    [newest] = await _only_row(connection)
    writers = await _writers(connection)
    async with asyncio.timeout(wait_s):
        while writers & await _writers(connection):  # noqa: ASYNC110 - nothing tells of the end of another session's
            await asyncio.sleep(_LOOK_INTERVAL_S)
    return int(newest)


async def _only_row(connection: Connection) -> tuple[Any, ...]:
    return (await (await connection.execute(NEWEST)).fetchall())[0]


async def _writers(connection: Connection) -> set[str]:
    """The transactions that may be writing sales now."""
    return {row[0] for row in await (await connection.execute(WRITERS)).fetchall()}
