"""The parent's side of `matrix_facilitator`: facilitators that are started quickly, on a port that stays theirs."""

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
from tests.evm.matrix_facilitator import PID, FacilitatorJob
from tests.evm.matrix_process import START_S, Seller

_GONE_LOOKS = 5_000


class Facilitators:
    """Starts facilitators by the program at a socket; `async with` ends what is left of them."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._started: list[Seller] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for facilitator in self._started:
            await facilitator.stop()

    async def start(self, job: FacilitatorJob) -> Seller:
        """Returns once it listens, or died. Starts once the one before it on the same folder is gone."""
        await _until_gone(Path(job.folder) / PID)
        reader, writer = await asyncio.open_unix_connection(self._socket)
        writer.write(msgspec.json.encode(job) + b"\n")
        facilitator = Seller(reader, writer)
        self._started.append(facilitator)
        async with asyncio.timeout(START_S):
            await facilitator.listens.wait()
        return facilitator


async def _until_gone(file: Path) -> None:
    """A dying process holds its locks for a moment longer than its connection."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        number = int(await asyncio.to_thread(file.read_text))
        for _ in range(_GONE_LOOKS):
            os.kill(number, 0)
            await asyncio.sleep(0.001)


@contextlib.contextmanager
def facilitator_program() -> Iterator[Path]:
    """The running program's socket."""
    with tempfile.TemporaryDirectory(prefix="obol") as folder:  # a socket's path is at most 107 bytes long
        path = Path(folder) / "facilitators"
        program = [sys.executable, "-m", "tests.evm.matrix_facilitator", str(path)]
        with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            with process.stdin:  # its end ends the program
                assert process.stdout.readline() == b"listening\n"
                yield path


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """A port that nobody else is given while one facilitator is dead and the next one does not listen yet."""
    with socket.socket() as guard:
        guard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        guard.bind(("127.0.0.1", 0))
        yield guard.getsockname()[1]
