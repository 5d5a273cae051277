"""The parent's side of `forking`: processes that are started quickly, watched step by step, and seen dying."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from tests.evm.anvil import ROOT
from tests.evm.forking import PID, Job

START_S = 20.0
"""Generous: the machine may be busy. A start takes 0.1 s."""
_GONE_LOOKS = 5_000


class Forked:
    """One process. `url` is "" until it listens; `steps` are the labels it went through."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.url = ""
        self.steps: list[str] = []
        self.listens = asyncio.Event()
        """Set too when it died before."""
        self.ended = asyncio.Event()
        self._reading = asyncio.get_running_loop().create_task(self._read())

    @property
    def is_killed(self) -> bool:
        return self.steps[-1:] == ["(killed)"]

    async def stop(self) -> None:
        """Have it drain and stop, unless it is dead."""
        with contextlib.suppress(OSError):
            self._writer.write_eof()
        async with asyncio.timeout(START_S):
            await self._reading
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionResetError):
            while line := (await self._reader.readline()).decode().rstrip("\n"):
                if line.startswith("@"):
                    self.url = line[1:]
                    self.listens.set()
                else:
                    self.steps.append(line)
        self.ended.set()
        self.listens.set()


class Forks:
    """Starts processes by the program at a socket; `async with` ends what is left of them."""

    def __init__(self, socket_path: Path) -> None:
        self._socket = socket_path
        self._started: list[Forked] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for forked in self._started:
            await forked.stop()

    async def start(self, job: Job) -> Forked:
        """Returns once it listens, or died. Starts once the one before it in the same folder is gone."""
        await _until_gone(Path(job.folder) / PID)
        reader, writer = await asyncio.open_unix_connection(self._socket)
        writer.write(msgspec.json.encode(job) + b"\n")
        forked = Forked(reader, writer)
        self._started.append(forked)
        async with asyncio.timeout(START_S):
            await forked.listens.wait()
        return forked


@contextlib.contextmanager
def running(module: str) -> Iterator[Path]:
    """The socket of a program whose `main` is `forking.serve_forks`."""
    with tempfile.TemporaryDirectory(prefix="obol") as folder:  # a socket's path is at most 107 bytes long
        path = Path(folder) / "forks"
        program = [sys.executable, "-m", module, str(path)]
        with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            with process.stdin:  # its end ends the program
                assert process.stdout.readline() == b"listening\n"
                yield path


async def _until_gone(file: Path) -> None:
    """A dying process holds its locks for a moment longer than its connection."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        number = int(await asyncio.to_thread(file.read_text))
        for _ in range(_GONE_LOOKS):
            os.kill(number, 0)
            await asyncio.sleep(0.001)


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """A port that nobody else is given while one facilitator is dead and the next one does not listen yet."""
    with socket.socket() as guard:
        guard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        guard.bind(("127.0.0.1", 0))
        yield guard.getsockname()[1]
