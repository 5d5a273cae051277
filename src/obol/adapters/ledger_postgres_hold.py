"""Who holds the sales of a shared ledger: for each opened ledger an advisory lock, on a connection of its own.

PostgreSQL frees the lock when the connection ends, however the process dies, so whoever can take another's lock knows
that it is dead. The lock is this user's under one number for its whole life: when the connection breaks, it is taken
again under the same number, because what decides about a sale is the number in its row and not the lock. An adopter
holds the dead one's lock while it writes its own number into the rows; after that they are not this user's any more.
"""

import asyncio
import contextlib

import psycopg

from obol.adapters.postgres_connections import Connection, Waits, connect, cut_after
from obol.errors import LedgerUnavailableError

HOLDERS = 0x0B01_4C44
"""First half of every holder's advisory lock; the second is the holder's number."""
_PING_TIMEOUT_S = 5.0
_RETAKE_WAITS_S = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)

_IS_HELD = """
    SELECT count(*) FROM pg_locks
    WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND granted AND classid = %s AND objid = %s AND objsubid = 2
"""


class Hold:
    """One opened ledger's own lock, held from `take` to `close` but for the time after its connection broke."""

    def __init__(self, conninfo: str, connection: Connection, holder: int, *, waits: Waits) -> None:
        """Takes over a connection that has the lock. Use `take`."""
        self._conninfo = conninfo
        self._connection = connection
        self.id = holder
        self._waits = waits
        self._held = asyncio.Event()
        self._held.set()
        self._watch = asyncio.get_running_loop().create_task(self._keep())

    @classmethod
    async def take(cls, conninfo: str, waits: Waits) -> "Hold":
        """A hold under a new number. Raises `psycopg.Error`, `TimeoutError`."""
        connection = await connect(conninfo, waits)
        try:
            row = await (await connection.execute("SELECT nextval('obol.holder')")).fetchone()
            holder = int(row[0]) if row else 0
            await connection.execute("SELECT pg_advisory_lock(%s, %s)", (HOLDERS, holder))
        except BaseException:
            await connection.close()
            raise
        return cls(conninfo, connection, holder, waits=waits)

    @property
    def is_held(self) -> bool:
        """False as soon as it is known that the connection broke, until the lock is held again."""
        return self._held.is_set() and not self._watch.done()

    def require(self) -> None:
        """Raises `LedgerUnavailableError` while the lock is not held: another may adopt what is claimed now."""
        if not self.is_held:
            raise LedgerUnavailableError("the connection that holds this gateway's sales broke; it is being renewed")

    async def close(self) -> None:
        """Let go: what is unfinished may be adopted as soon as this returns. Idempotent."""
        if not self._watch.done():
            self._watch.cancel()
            await asyncio.wait((self._watch,))
            with contextlib.suppress(psycopg.Error), cut_after(self._connection, _PING_TIMEOUT_S):
                await self._connection.execute("SELECT pg_advisory_unlock_all()")
        await self._connection.close()

    async def _keep(self) -> None:
        while True:
            await self._until_lost()
            self._held.clear()
            await self._connection.close()
            self._connection = await self._retake()
            self._held.set()

    async def _until_lost(self) -> None:
        """Returns when the lock is not held any more, as far as this side can know."""
        with contextlib.suppress(psycopg.Error):
            while True:
                async for _ in self._connection.notifies(timeout=self._waits.ping_s):
                    pass  # nobody notifies: it waits for the end of the connection
                with cut_after(self._connection, _PING_TIMEOUT_S):
                    row = await (await self._connection.execute(_IS_HELD, (HOLDERS, self.id))).fetchone()
                if row is None or not row[0]:  # a pooler gave the session to another
                    return

    async def _retake(self) -> Connection:
        tries = 0
        while True:
            with contextlib.suppress(psycopg.Error, TimeoutError, OSError):
                return await self._locked()
            await asyncio.sleep(_RETAKE_WAITS_S[min(tries, len(_RETAKE_WAITS_S) - 1)])
            tries += 1

    async def _locked(self) -> Connection:
        """Waits, as long as a lock timeout, for a former connection that the server believes alive, or an adopter."""
        connection = await connect(self._conninfo, self._waits)
        try:
            with cut_after(connection, 2 * _PING_TIMEOUT_S):
                await connection.execute("SELECT pg_advisory_lock(%s, %s)", (HOLDERS, self.id))
        except BaseException:
            await connection.close()
            raise
        return connection
