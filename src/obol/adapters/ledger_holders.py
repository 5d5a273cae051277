"""Who holds the sales of a ledger file: one lock file per opened ledger, in the folder `<ledger>.holders`.

The lock is the kernel's (`flock`): it ends with the process, however that dies. A lock file is removed only by whoever
has its lock, and a lock counts only on the file that the path still names; so a holder that is just starting and
another that clears up cannot both believe that they won.
"""

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class Seizure:
    """The dead holders that one adopter has found, locked against every other adopter until `let_go`."""

    dead: list[str] = field(default_factory=list)
    locked: dict[Path, int] = field(default_factory=dict)

    def remove(self) -> None:
        """Remove the lock files: their sales were adopted."""
        for path in self.locked:
            path.unlink(missing_ok=True)

    def let_go(self) -> None:
        """Unlock. Idempotent."""
        while self.locked:
            os.close(self.locked.popitem()[1])


class Holder:
    """One opened ledger's own lock, held from creation to `close`. Methods block briefly; `OSError` passes through."""

    def __init__(self, ledger: Path) -> None:
        self._folder = ledger.with_name(f"{ledger.name}.holders")
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self.id, self._descriptor = self._start()
        self._is_closed = False

    def close(self) -> None:
        """Let go: what is unfinished may be adopted from now on. Idempotent."""
        if not self._is_closed:
            self._is_closed = True
            (self._folder / self.id).unlink(missing_ok=True)
            os.close(self._descriptor)

    def seize(self, known: Iterable[str]) -> "Seizure":
        """Lock the dead holders among `known` (read from the ledger before this call) and among all lock files.

        A known holder without a lock file is dead: its file is made before the first sale names it and removed last.
        """
        on_disk = {path.name for path in self._folder.iterdir()}
        seizure = Seizure()
        for holder in (set(known) | on_disk) - {self.id}:
            path = self._folder / holder
            descriptor = _try_lock(path)
            if descriptor is not None:
                seizure.locked[path] = descriptor
            if descriptor is not None or not path.exists():
                seizure.dead.append(holder)
        return seizure

    def _start(self) -> tuple[str, int]:
        while True:
            holder = secrets.token_hex(16)
            path = self._folder / holder
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_current(path, descriptor):
                return holder, descriptor
            os.close(descriptor)  # an adopter took it for a dead one's between these two calls: start again


def _try_lock(path: Path) -> int | None:
    """The locked descriptor of a dead holder's file, or None when it is alive or has no file."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    with contextlib.suppress(BlockingIOError):  # alive
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_current(path, descriptor):
            return descriptor
    os.close(descriptor)
    return None


def _is_current(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
