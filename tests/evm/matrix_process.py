"""The parent's side of `matrix_seller`: gateways that are started quickly, watched step by step, and seen dying."""

import asyncio
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from tests.evm.anvil import ROOT
from tests.evm.matrix_seller import Job

START_S = 20.0
"""Generous: the machine may be busy. A start takes 0.1 s."""


class Seller:
    """One gateway. `url` is "" until it listens; `steps` are the labels it went through."""

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


class Sellers:
    """Starts sellers by the program at a socket; `async with` ends what is left of them."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._started: list[Seller] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for seller in self._started:
            await seller.stop()

    async def start(self, job: Job) -> Seller:
        """Returns once it listens, or died."""
        reader, writer = await asyncio.open_unix_connection(self._socket)
        writer.write(msgspec.json.encode(job) + b"\n")
        seller = Seller(reader, writer)
        self._started.append(seller)
        async with asyncio.timeout(START_S):
            await seller.listens.wait()
        return seller


@contextlib.contextmanager
def seller_program() -> Iterator[Path]:
    """The running program's socket."""
    with tempfile.TemporaryDirectory(prefix="obol") as folder:  # a socket's path is at most 107 bytes long
        socket = Path(folder) / "sellers"
        program = [sys.executable, "-m", "tests.evm.matrix_seller", str(socket)]
        with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            with process.stdin:  # its end ends the program
                assert process.stdout.readline() == b"listening\n"
                yield socket
