"""Reading a SQLite file beside whoever writes to it: a connection and a thread of its own, and no lock that they need.

In WAL mode a reader sees what was committed when it began, and keeps no writer waiting, however much it reads.
"""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from obol.adapters.sqlite_file import unavailable
from obol.errors import LedgerUnavailableError

T = TypeVar("T")


class SqliteReader:
    """Reads one after another, in the order in which they came. The file must exist; it is opened when first needed."""

    def __init__(self, path: Path, *, busy_timeout_s: float) -> None:
        self._path = path
        self._busy_timeout_s = busy_timeout_s
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sqlite-reader")
        self._connection: sqlite3.Connection | None = None
        self._is_closed = False

    async def run(self, read: Callable[[sqlite3.Connection], T]) -> T:
        """What `read` finds. It runs in the reader's thread. Raises `LedgerUnavailableError`."""
        if self._is_closed:
            raise LedgerUnavailableError("the ledger is closed")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: read(self._open()))
        except sqlite3.Error as error:
            raise unavailable(error) from error

    async def close(self) -> None:
        """Finish what was asked for, then close the file. Idempotent."""
        if not self._is_closed:
            self._is_closed = True
            await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
            self._thread.shutdown()

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            uri = f"file:{quote(str(self._path))}?mode=ro"
            self._connection = sqlite3.connect(uri, uri=True, timeout=self._busy_timeout_s, isolation_level=None)
        return self._connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
