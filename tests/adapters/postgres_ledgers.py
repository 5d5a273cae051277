"""Opened PostgreSQL ledgers for tests, and waiting for what only the server knows."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import psycopg

from obol.adapters.ledger_postgres import PostgresLedger
from obol.adapters.ledger_postgres_hold import HOLDERS
from obol.adapters.postgres_connections import WAITS, Waits
from obol.core.sale import Sale
from obol.errors import LedgerUnavailableError
from tests.fakes.clock import FakeClock
from tests.postgres import Postgres


@contextlib.asynccontextmanager
async def opened(url: str, waits: Waits = WAITS) -> AsyncIterator[PostgresLedger]:
    ledger = await PostgresLedger.open(url, FakeClock(), waits=waits)
    try:
        yield ledger
    finally:
        await ledger.close()


async def until_it_works(ledger: PostgresLedger) -> None:
    """It renews what broke by itself; pytest's timeout ends the wait for one that does not."""
    while True:
        with contextlib.suppress(LedgerUnavailableError):
            return await ledger.check()
        await asyncio.sleep(0.01)


def pids_that_hold(postgres: Postgres, ledger: PostgresLedger) -> list[int]:
    """The server's processes that have the ledger's lock; at most one."""
    held_by = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND classid = %s AND objid = %s AND granted"
    return [row[0] for row in postgres.run(held_by, HOLDERS, ledger.holder_id)]


def break_hold(postgres: Postgres, ledger: PostgresLedger) -> None:
    """End the connection that holds the ledger's sales, and return when the server is rid of it."""
    for pid in pids_that_hold(postgres, ledger):
        postgres.run("SELECT pg_terminate_backend(%s, 5000)", pid)


async def adopted_by(ledger: PostgresLedger) -> list[Sale]:
    """What it adopts once the server has noticed that somebody died."""
    while not (adopted := await ledger.adopt()):  # noqa: ASYNC110 - only the server knows when
        await asyncio.sleep(0.01)
    return adopted


async def waits_for_a_lock(postgres: Postgres) -> None:
    while not postgres.run("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):  # noqa: ASYNC110
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def standby_away(postgres: Postgres) -> AsyncIterator[None]:
    """Synchronous replication without its standby: commits wait, and what waits is not visible yet; reading goes on."""
    async with await psycopg.AsyncConnection.connect(postgres.url(), autocommit=True) as probe:
        postgres.run("ALTER SYSTEM SET synchronous_standby_names = 'away'")
        postgres.run("SELECT pg_reload_conf()")
        writing = asyncio.create_task(_write_until_it_waits(probe))
        try:
            while not _commits_that_wait(postgres):  # noqa: ASYNC110 - only the server knows when
                await asyncio.sleep(0.005)
            yield
        finally:
            writing.cancel()
            postgres.run("ALTER SYSTEM RESET synchronous_standby_names")
            postgres.run("SELECT pg_reload_conf()")
            while _commits_that_wait(postgres):  # noqa: ASYNC110 - only the server knows when
                await asyncio.sleep(0.005)
            await asyncio.gather(writing, return_exceptions=True)


async def _write_until_it_waits(connection: psycopg.AsyncConnection[tuple[Any, ...]]) -> None:
    while True:
        await connection.execute("SELECT pg_logical_emit_message(true, 'probe', '')")


def _commits_that_wait(postgres: Postgres) -> int:
    return len(postgres.run("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"))
