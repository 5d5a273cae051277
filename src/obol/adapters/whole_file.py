"""Writing a file that is there whole or not at all, and that only its owner can read."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from obol.errors import SettingsError


@contextlib.contextmanager
def whole_file(path: Path, *, field: str) -> Iterator[TextIO]:
    """A text stream (UTF-8) whose content becomes `path`, 0600, when the block ends well; an older one is replaced.

    Raises `SettingsError` naming `field` when nothing can be written there.
    """
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # 0600
    except OSError as error:
        raise SettingsError(field, f"nothing can be written there: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
