"""`obol` as a program of its own beside an event loop, such as that of a gateway it asks."""

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.cli.conftest import ENVIRONMENT

PATIENCE_S = 20.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Running:
    """A program that serves."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.summary: dict[str, Any] = {}

    async def read_summary(self) -> None:
        """Wait for the first line that it prints: a JSON object. Raises `AssertionError` when it ends before."""
        if self._process.stdout is None:
            raise RuntimeError("not piped")
        async with asyncio.timeout(PATIENCE_S):
            line = await self._process.stdout.readline()
            if not line:
                raise AssertionError(await self.ended())
        self.summary = json.loads(line)

    @property
    def url(self) -> str:
        return str(self.summary["address"])

    def terminate(self, number: signal.Signals = signal.SIGTERM) -> None:
        self._process.send_signal(number)

    async def ended(self) -> Ended:
        """How it ended, as soon as it has."""
        async with asyncio.timeout(PATIENCE_S):
            out, err = await self._process.communicate()
        return Ended(self._process.returncode or 0, out.decode(), err.decode())


@contextlib.asynccontextmanager
async def started(*arguments: str, environ: Mapping[str, str] | None = None) -> AsyncIterator[Running]:
    """Start `obol`; killed at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "obol",
        *arguments,
        env=ENVIRONMENT | dict(environ or {}),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Running(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def obol(*arguments: str, environ: Mapping[str, str] | None = None) -> Ended:
    """Run `obol` to its end."""
    async with started(*arguments, environ=environ) as program:
        return await program.ended()
