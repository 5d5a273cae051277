"""Group commit: one writer thread for one SQLite file; operations that arrive together share one fsync.

While a commit waits for the disk, new operations queue up; the next transaction takes them all. So the cost of being
durable is shared, and the event loop never waits for a disk.
"""

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Self, TypeVar

from obol.adapters.sqlite_file import Schema, open_sqlite, unavailable
from obol.errors import LedgerUnavailableError

T = TypeVar("T")

BUSY_TIMEOUT_S = 5.0
"""How long a transaction waits for another process that writes the same file."""
MAX_BATCH = 256
"""Operations per transaction: bounds how long the first of a batch waits for the others."""

_ORPHAN_CHECK_S = 1.0


@dataclass(slots=True, eq=False)
class _Job:
    """One operation, who waits for it, and what came of it."""

    operation: Callable[[sqlite3.Connection], Any]
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None

    def resolve(self) -> None:
        """Wake who waits, unless it was cancelled meanwhile. Runs in the event loop."""
        if self.done.done():
            return
        if self.error is None:
            self.done.set_result(self.result)
        elif isinstance(self.error, StopIteration):  # a future refuses it, and the rest of the batch would hang
            self.done.set_exception(RuntimeError("an operation raised StopIteration"))
        else:
            self.done.set_exception(self.error)


class GroupCommitWriter:
    """Runs operations on one SQLite connection, in the order in which they came, from any number of event loops.

    The thread belongs to this object and ends with `close`; without that, soon after the main thread has ended.
    """

    def __init__(self, connection: sqlite3.Connection, *, max_batch: int = MAX_BATCH) -> None:
        """Takes over `connection`, which must be in autocommit mode and allowed in other threads."""
        self.commits = 0
        """How many transactions were committed: each is one fsync if it wrote something."""
        self._connection = connection
        self._max_batch = max_batch
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._gate = threading.Lock()
        self._is_closed = False
        self._last: asyncio.Future[Any] | None = None
        self._thread = threading.Thread(target=self._work, name="group-commit")
        self._thread.start()

    @classmethod
    async def open(
        cls, path: Path, schema: Schema, *, busy_timeout_s: float = BUSY_TIMEOUT_S, max_batch: int = MAX_BATCH
    ) -> Self:
        """Open or create the file at `path`. Raises like `open_sqlite`."""
        connection = await asyncio.to_thread(open_sqlite, path, schema, busy_timeout_s=busy_timeout_s)
        return cls(connection, max_batch=max_batch)

    async def run(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Run `operation` in the next transaction; its result, once that transaction is durable.

        An operation that raises is undone alone and its exception is raised here. It runs in the writer's thread, must
        not begin or end transactions, and may be run twice (only the last run counts): it must do nothing but use the
        connection. Cancelling the wait does not cancel the operation.
        Raises `LedgerUnavailableError` when the transaction failed: it may or may not have been recorded.
        """
        loop = asyncio.get_running_loop()
        job = _Job(operation, loop, loop.create_future())
        with self._gate:
            if self._is_closed:
                raise LedgerUnavailableError("the ledger is closed")
            self._jobs.put(job)
            self._last = job.done
        result: T = await job.done
        return result

    async def caught_up(self) -> None:
        """Wait until whatever this event loop has submitted is done, or has failed."""
        last = self._last
        if last is not None and last.get_loop() is asyncio.get_running_loop():
            await asyncio.wait((last,))

    async def close(self) -> None:
        """Finish what was submitted, then close the file. Idempotent."""
        with self._gate:
            if not self._is_closed:
                self._is_closed = True
                self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        with contextlib.closing(self._connection):
            while batch := self._take():
                jobs = [job for job in batch if job is not None]
                self._commit(jobs)
                _deliver(jobs)
                if len(jobs) < len(batch):
                    return

    def _take(self) -> list[_Job | None]:
        """Wait for one operation, then take all that are there. Ends with None when that was the last batch."""
        batch = [self._first()]
        with contextlib.suppress(Empty):
            while batch[-1] is not None and len(batch) < self._max_batch:
                batch.append(self._jobs.get_nowait())
        return batch

    def _first(self) -> _Job | None:
        while True:
            try:
                return self._jobs.get(timeout=_ORPHAN_CHECK_S)
            except Empty:
                if not threading.main_thread().is_alive():  # not closed: a program that failed must not hang at its end
                    return None

    def _commit(self, jobs: Sequence[_Job]) -> None:
        if not jobs:
            return
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            if not _run_together(self._connection, jobs):
                _roll_back(self._connection)
                self._connection.execute("BEGIN IMMEDIATE")
                _run_apart(self._connection, jobs)
            self._connection.execute("COMMIT")
            self.commits += 1
        except sqlite3.Error as error:
            _roll_back(self._connection)
            for job in jobs:
                job.error = unavailable(error)
                job.error.__cause__ = error


def _run_together(connection: sqlite3.Connection, jobs: Sequence[_Job]) -> bool:
    """Run all; False as soon as one raises. The common case, at no cost per operation for keeping them apart."""
    try:
        for job in jobs:
            job.result = job.operation(connection)
    except BaseException:  # noqa: BLE001 - of any operation; `_run_apart` meets it again and hands it to who waits
        return False
    return True


def _run_apart(connection: sqlite3.Connection, jobs: Sequence[_Job]) -> None:
    """Run all, each undone alone when it raises. Raises `sqlite3.Error` when the whole transaction is lost."""
    for job in jobs:
        connection.execute("SAVEPOINT operation")
        try:
            job.result = job.operation(connection)
        except BaseException as error:  # handed to who waits for the operation
            if not connection.in_transaction:  # disk full, I/O: SQLite rolled back everything by itself
                raise sqlite3.OperationalError(f"the transaction was rolled back: {error}") from error
            connection.execute("ROLLBACK TO operation")
            job.error = _as_outcome(error)
        connection.execute("RELEASE operation")


def _as_outcome(error: BaseException) -> BaseException:
    if not isinstance(error, sqlite3.OperationalError):
        return error
    outcome = unavailable(error)
    outcome.__cause__ = error
    return outcome


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        with contextlib.suppress(sqlite3.Error):  # rolled back by itself in between; BEGIN would tell otherwise
            connection.execute("ROLLBACK")


def _deliver(jobs: Sequence[_Job]) -> None:
    """Wake every event loop once, however many of its operations are done."""
    for loop in {job.loop for job in jobs}:
        mine = [job for job in jobs if job.loop is loop]
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_resolve, mine)


def _resolve(jobs: Sequence[_Job]) -> None:
    for job in jobs:
        job.resolve()
