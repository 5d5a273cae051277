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

    Raises `SettingsError` naming `field` when nothing can be written there, or not all of it. An `OSError` of the block
    is taken for one of the stream.
    """
    name = ""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # 0600
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).replace(path)
        name = ""
    except OSError as error:
        what = "not all of it" if name else "nothing"
        raise SettingsError(field, f"{what} can be written there: {error.strerror}") from error
    finally:
        if name:
            Path(name).unlink(missing_ok=True)
