"""Signed payments on this machine's disk until they are resolved: a file each, 0600, in a folder of their own.

A file is lines: the first is the payment, the others what became known of it; it only grows. The lock is the kernel's
(`flock`) on the file: whoever has it alone may present the payment, and it ends with the process, however that dies. A
file whose first line has no end was never relied on (nothing is sent before `add` returns), so whoever can lock it
removes it.
"""

import contextlib
import fcntl
import os
import secrets
import weakref
from collections.abc import Iterator
from pathlib import Path

from obol.errors import SettingsError

_END = b"\n"
_OPEN = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


class KeptFile:
    """One payment's file, locked for this object until `release` or `remove`; both are idempotent.

    Methods block briefly, and raise `SettingsError` where the disk says no.
    """

    def __init__(self, path: Path, descriptor: int, field: str) -> None:
        self._path, self._descriptor, self._field = path, descriptor, field
        self._close = weakref.finalize(self, os.close, descriptor)  # a lock must not outlive who could use it

    @property
    def name(self) -> str:
        """The file's path, for messages."""
        return str(self._path)

    @property
    def is_held(self) -> bool:
        """Whether the lock is ours, and the payment kept."""
        return self._close.alive

    @property
    def content(self) -> bytes:
        """All whole lines."""
        with _told(self._field, self._path):
            return _whole_lines(_read(self._descriptor))

    def append(self, line: bytes) -> None:
        """Add a line, durably. A write that fails leaves at most half a line, which is not read."""
        with _told(self._field, self._path):
            data = _read(self._descriptor)
            os.ftruncate(self._descriptor, len(_whole_lines(data)))
            _write(self._descriptor, line)

    def rename(self, purchase: str) -> None:
        """Keep it for another purchase, durably."""
        with _told(self._field, self._path):
            path = self._path.with_name(_name(purchase))
            self._path.rename(path)
            self._path = path
            _sync_folder(path.parent)

    def release(self) -> None:
        """Unlock: it stays kept, and others may take it."""
        self._close()

    def remove(self) -> None:
        """It is resolved: nothing of it stays."""
        if self.is_held:
            with _told(self._field, self._path):
                self._path.unlink(missing_ok=True)
            self._close()


class KeptPayments:
    """The payments of a folder, which is made (0700) for the first. `field` is how a person named the folder.

    Processes and threads may share a folder. Methods block briefly, and raise `SettingsError` naming `field`.
    """

    def __init__(self, folder: Path, *, field: str = "unresolved") -> None:
        self._folder, self._field = folder, field
        self._held: weakref.WeakSet[KeptFile] = weakref.WeakSet()

    @property
    def held(self) -> tuple[str, ...]:
        """The files that this object's payments are in."""
        return tuple(sorted(file.name for file in self._held if file.is_held))

    def names(self) -> list[str]:
        """What is kept, by anyone: names that begin with the purchase."""
        with _told(self._field, self._folder):
            try:
                return sorted(path.name for path in self._folder.iterdir() if path.is_file())
            except FileNotFoundError:
                return []

    def peek(self, name: str) -> bytes:
        """The whole lines of one, without its lock: b"" where it is gone, or another user's."""
        with _told(self._field, self._folder / name):
            try:
                return _whole_lines((self._folder / name).read_bytes())
            except (FileNotFoundError, PermissionError):
                return b""

    def take(self, name: str) -> KeptFile | None:
        """Lock one; None where another has it, or it is gone or was never finished."""
        path = self._folder / name
        with _told(self._field, path):
            descriptor = _try_lock(path)
            if descriptor is None:
                return None
            file = self._hold(path, descriptor)
        if file.content:
            return file
        file.remove()
        return None

    def add(self, purchase: str, line: bytes) -> KeptFile:
        """Keep a new one: locked, and on the disk when this returns. Where it raises, nothing is kept."""
        with _told(self._field, self._folder):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path, descriptor = self._create(purchase)
            file = self._hold(path, descriptor)
            try:
                _write(descriptor, line)
                _sync_folder(self._folder)
            except OSError:
                file.remove()
                raise
        return file

    def close(self) -> None:
        """Unlock all of this object's. They stay kept."""
        for file in list(self._held):
            file.release()

    def _hold(self, path: Path, descriptor: int) -> KeptFile:
        file = KeptFile(path, descriptor, self._field)
        self._held.add(file)
        return file

    def _create(self, purchase: str) -> tuple[Path, int]:
        while True:
            path = self._folder / _name(purchase)
            descriptor = os.open(path, _OPEN | os.O_CREAT | os.O_EXCL, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:
                return path, descriptor
            os.close(descriptor)  # between these calls somebody took it for one that was never finished: start again


def payments_folder(data_dir: Path) -> Path:
    """Where the payments of this user's buyers are kept in a data folder, whatever key they are of."""
    return data_dir / "payments"


def _name(purchase: str) -> str:
    return f"{purchase}.{secrets.token_hex(8)}"


def _try_lock(path: Path) -> int | None:
    try:
        descriptor = os.open(path, _OPEN)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino:  # not resolved or renamed meanwhile
            return descriptor
    except BlockingIOError:
        pass  # another presents it
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _read(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _write(descriptor: int, line: bytes) -> None:
    data = memoryview(line + _END)
    while data:
        data = data[os.write(descriptor, data) :]
    os.fsync(descriptor)


def _whole_lines(data: bytes) -> bytes:
    return data[: data.rfind(_END) + 1]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _told(field: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SettingsError(field, f"a payment cannot be kept in {path}: {error.strerror}") from error
