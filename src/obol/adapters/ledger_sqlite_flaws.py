"""Flaws of a ledger's file: damage, and rows that are no sales. Reads past what is broken; changes nothing."""

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from obol.adapters.ledger_rows import COLUMNS, digest, sale_of
from obol.adapters.sqlite_file import unavailable
from obol.core.money import parse_atomic
from obol.core.payment import State
from obol.core.sale import Delivery, Sale

_NAMES = COLUMNS.split(", ")
_ROWS = f"SELECT {COLUMNS}, claim FROM sale ORDER BY rowid"  # noqa: S608 - constants
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR})
"""Not that the file cannot be read now (locked, I/O). SQLITE_ERROR: a table or column that should be there is not."""
_AMOUNTS = ("authorized_atomic", "settled_atomic")
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("payload", "requirements"), (bytes,)),
    **dict.fromkeys(("created_s", "updated_s"), (float,)),
    "valid_before_s": (int,),
    **dict.fromkeys(("input_tokens", "output_tokens", "log_index"), (int, type(None))),
    "settled_atomic": (str, type(None)),
}
"""What the columns hold; text, those that are not named. SQLite keeps whatever it is given."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row: the sale, or None where it cannot be read; `flaws` in words without secrets."""

    id: str
    sale: Sale | None
    flaws: tuple[str, ...] = ()


def find_damage(path: Path) -> list[str]:
    """SQLite's own check of pages, indexes and constraints, in words; empty when sound. May take long.

    Raises `LedgerUnavailableError` when the file cannot be read now.
    """
    try:
        with _opened(path) as file:
            return [row[0] for row in file.execute("PRAGMA integrity_check") if row[0] != "ok"]
    except sqlite3.DatabaseError as error:
        return [_damage(error)]


def read_rows(path: Path) -> Iterator[Row]:
    """Every row that can be reached, oldest first; where the file is damaged, one without an id says how it ends.

    Raises `LedgerUnavailableError` when the file cannot be read now.
    """
    try:
        with _opened(path) as file:
            for values in file.execute(_ROWS):
                yield _row(dict(zip([*_NAMES, "claim"], values, strict=True)))
    except sqlite3.DatabaseError as error:
        yield Row("", None, (f"no more sales can be read: {_damage(error)}",))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as file:
        file.text_factory = lambda raw: raw.decode(errors="replace")
        yield file


def _damage(error: sqlite3.DatabaseError) -> str:
    if (getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF) not in _DAMAGE:
        raise unavailable(error) from error
    return str(error)


def _row(values: dict[str, Any]) -> Row:
    name = str(values["id"])
    flaws = tuple(_unreadable(values))
    if flaws:
        return Row(name, None, flaws)
    sale = sale_of(tuple(values[column] for column in _NAMES))
    if digest(sale.key) != values["claim"]:
        return Row(name, sale, ("it claims another authorization than its own",))
    return Row(name, sale)


def _unreadable(values: dict[str, Any]) -> Iterator[str]:
    """Why the row is no sale."""
    for column in _NAMES:
        value = values[column]
        if not isinstance(value, _KINDS.get(column, (str,))):
            yield f"its {column} is of another kind: {type(value).__name__}"
        elif column in _AMOUNTS and isinstance(value, str) and parse_atomic(value) is None:
            yield f"its {column} is not an amount"
    for column, known in (("state", State), ("delivery", Delivery)):
        if isinstance(values[column], str) and values[column] not in list(known):
            yield f"its {column} {values[column]!r} is not known"
