"""Writing a file that is there whole or not at all, and that only its owner can read."""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from obol.errors import SettingsError

_HEAD_BYTES = 4096
_DATABASE = re.compile(rb"SQLite format 3\x00|\x37\x7f\x06[\x82\x83]")
"""A SQLite file, or its write-ahead log."""
_KEY = re.compile(rb"\s*(?:0x)?[0-9a-fA-F]{64}\s*\Z|\s*\{.*\"crypto\"", re.DOTALL | re.IGNORECASE)
"""A key file, or a keystore."""


@contextlib.contextmanager
def whole_file(path: Path, *, field: str, may_replace: bool = False) -> Iterator[TextIO]:
    """A text stream (UTF-8) whose content becomes `path`, 0600, when the block ends well.

    Raises `SettingsError` naming `field` when `path` exists, unless `may_replace`, and in any case when it is a
    database or a key; also when nothing can be written there, or not all of it. An `OSError` of the block is taken for
    one of the stream.
    """
    name = ""
    try:
        _refuse_existing(path, field, may_replace=may_replace)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # 0600
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        _refuse_existing(path, field, may_replace=may_replace)  # somebody else's, made meanwhile
        Path(name).replace(path)
        name = ""
    except OSError as error:
        what = "not all of it" if name else "nothing"
        raise SettingsError(field, f"{what} can be written there: {error.strerror}") from error
    finally:
        if name:
            Path(name).unlink(missing_ok=True)


def _refuse_existing(path: Path, field: str, *, may_replace: bool) -> None:
    if not path.exists():
        return
    if not may_replace:
        raise SettingsError(field, "it exists: name another file, or add --force")
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
        if _DATABASE.match(head) or _KEY.match(head):
            raise SettingsError(field, "a database or a key is there, which is never replaced")
