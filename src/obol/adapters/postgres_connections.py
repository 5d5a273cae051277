"""Connections to one PostgreSQL server: a few that are shared, each wait bounded, and errors in the ledger's words.

Whatever could not be found out is `LedgerUnavailableError`. Its text never carries the server's: that may quote names,
addresses and values.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import psycopg
from psycopg import AsyncConnection, sql
from psycopg.pq import TransactionStatus

from obol.adapters.postgres_url import CONNECT_TIMEOUT_S
from obol.errors import LedgerUnavailableError

T = TypeVar("T")
Connection = AsyncConnection[tuple[Any, ...]]

SHARED = 6
"""Connections for work. Claims and records take one each, whatever their number; the rest is for what reads."""


@dataclass(frozen=True, slots=True)
class Waits:
    """How long anything may take, in seconds, until it counts as not found out."""

    lock_s: float = 5.0
    """For a row that another transaction is changing."""
    statement_s: float = 10.0
    work_s: float = 15.0
    """For everything with one connection: a server that is silent for so long is taken to be gone."""
    long_work_s: float = 3600.0
    """For what reads every sale, or changes the tables."""
    free_s: float = 10.0
    """For a connection that nobody uses."""
    ping_s: float = 5.0
    """Between looks whether the sales are still held."""


WAITS = Waits()
_AGAIN = (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected)
_TRIES = 4

_SESSION = sql.SQL(
    "SET search_path = pg_catalog; SET bytea_output = hex; SET extra_float_digits = 1; SET row_security = off; "
    "SET default_transaction_isolation = 'read committed'; SET idle_session_timeout = 0; "
    "SET statement_timeout = {statement_ms}; SET lock_timeout = {lock_ms}; "
    # Longer than anything takes on this side: it ends what a gateway that vanished left open.
    "SET idle_in_transaction_session_timeout = {work_ms}; "
    # The server notices a machine that vanished, too: until then it holds that one's locks.
    "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3; "
    # Never weaker than on; stronger (remote_apply) stays.
    "SELECT set_config('synchronous_commit', 'on', false) "
    "WHERE current_setting('synchronous_commit') IN ('off', 'local', 'remote_write')"
)


async def connect(conninfo: str, waits: Waits = WAITS) -> Connection:
    """A new connection in autocommit mode, with our session settings. Raises `psycopg.Error`, `TimeoutError`."""
    async with asyncio.timeout(2 * CONNECT_TIMEOUT_S):
        connection: Connection = await AsyncConnection.connect(conninfo, autocommit=True)
    try:
        with cut_after(connection, CONNECT_TIMEOUT_S):
            await connection.execute(_session(waits))
    except BaseException:
        await connection.close()
        raise
    return connection


def _session(waits: Waits) -> sql.Composed:
    milliseconds = {"statement_ms": waits.statement_s, "lock_ms": waits.lock_s, "work_ms": waits.work_s}
    return _SESSION.format(**{name: round(1000 * wait_s) for name, wait_s in milliseconds.items()})


class Connections:
    """Up to `SHARED` connections, opened when needed, each used by one at a time."""

    def __init__(self, conninfo: str, waits: Waits = WAITS) -> None:
        self._conninfo = conninfo
        self._waits = waits
        self._slots = asyncio.Semaphore(SHARED)
        self._idle: list[Connection] = []
        self._is_closed = False

    @contextlib.asynccontextmanager
    async def use(self, work_timeout_s: float) -> AsyncIterator[Connection]:
        """A connection for the `async with`; broken afterwards, it is not used again.

        Raises `psycopg.Error` and `TimeoutError`, which `run` turns into the ledger's.
        """
        async with asyncio.timeout(self._waits.free_s):
            await self._slots.acquire()
        try:
            connection = await self._take()
            try:
                with cut_after(connection, work_timeout_s):
                    yield connection
            finally:
                await self._give_back(connection)
        finally:
            self._slots.release()

    async def run(self, work: Callable[[Connection], Awaitable[T]], *, within_s: float | None = None) -> T:
        """`work` with a connection, again where it lost against another and all of it was undone.

        Raises `LedgerUnavailableError` when it could not be found out whether it was done, at the latest `within_s`
        (`Waits.work_s`) after it got the connection.
        """
        within_s = within_s or self._waits.work_s
        for _ in range(_TRIES - 1):
            with contextlib.suppress(*_AGAIN):
                return await self._run_once(work, within_s)
        try:
            return await self._run_once(work, within_s)
        except _AGAIN as error:
            raise unavailable(error) from error

    async def close(self) -> None:
        """Close what is idle, and what is in use when it comes back."""
        self._is_closed = True
        while self._idle:
            await self._idle.pop().close()

    async def _run_once(self, work: Callable[[Connection], Awaitable[T]], work_timeout_s: float) -> T:
        try:
            async with self.use(work_timeout_s) as connection:
                return await work(connection)
        except (*_AGAIN, psycopg.DataError, psycopg.IntegrityError):
            raise
        except (psycopg.Error, TimeoutError, OSError) as error:
            raise unavailable(error) from error

    async def _take(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if _is_usable(connection) and not _has_news(connection):
                return connection
            await connection.close()
        return await connect(self._conninfo, self._waits)

    async def _give_back(self, connection: Connection) -> None:
        if _is_usable(connection) and not self._is_closed:
            self._idle.append(connection)
        else:
            await connection.close()


@contextlib.asynccontextmanager
async def transaction(connection: Connection) -> AsyncIterator[None]:
    """Everything within in one transaction: committed durably at the end, undone when it raises."""
    await connection.execute("BEGIN")
    try:
        yield
    except BaseException:
        with contextlib.suppress(psycopg.Error):  # a connection that is lost has undone it by itself
            await connection.execute("ROLLBACK")
        raise
    ended = await connection.execute("COMMIT")
    if ended.statusmessage != "COMMIT":
        raise psycopg.OperationalError("the transaction was rolled back")


@contextlib.contextmanager
def cut_after(connection: Connection, timeout_s: float) -> Iterator[None]:
    """Shut the connection's socket if the work within takes longer: whoever waits for the server meets its end."""
    timer = asyncio.get_running_loop().call_later(timeout_s, _cut, connection)
    try:
        yield
    finally:
        timer.cancel()


def unavailable(error: BaseException) -> LedgerUnavailableError:
    """What the ledger says of an error of the server or of the way to it."""
    code = error.sqlstate if isinstance(error, psycopg.Error) else None
    if code is None:
        return LedgerUnavailableError("PostgreSQL cannot be reached, or did not answer in time")
    return LedgerUnavailableError(f"PostgreSQL did not do it (SQLSTATE {code})")


def _cut(connection: Connection) -> None:
    with (
        contextlib.suppress(OSError, psycopg.Error),  # it is closed already
        socket.socket(fileno=os.dup(connection.pgconn.socket)) as shared,
    ):
        shared.shutdown(socket.SHUT_RDWR)


def _is_usable(connection: Connection) -> bool:
    return not connection.closed and connection.info.transaction_status is TransactionStatus.IDLE


def _has_news(connection: Connection) -> bool:
    """Whether the server said something to an idle connection: most likely its farewell."""
    try:
        with socket.socket(fileno=os.dup(connection.pgconn.socket)) as shared:
            shared.setblocking(False)
            shared.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except (OSError, psycopg.Error):
        return True
    return True
