"""A real model server for the demo and the tests: llama.cpp's, in a process of its own, with a random-weight model.

The child holds the other end of a pipe and ends with it, so it cannot outlive this process, not even after `kill -9`.
"""

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

from obol.adapters.upstream_http import HttpUpstream
from obol.errors import SettingsError, UpstreamError, UpstreamUnavailableError
from obol.inference.upstream import UpstreamRequest

MODEL_NAME = "tiny-random"
"""The id under which the server lists its one model."""

_MODULES = ("gguf", "numpy", "xllamacpp")
_TAIL_BYTES = 2000
_STOP_S = 5.0
_PAUSE_S = 0.05


class LlamaCppServer:
    """Async context manager: entered, the server answers at `url`; left, its process has ended.

    `model_dir` must exist; the model file and the server's log go there. `n_parallel` answers are worked on at once.
    Entering raises `SettingsError` when the extra is not installed, `UpstreamUnavailableError` with the end of the
    log when the server does not answer within `start_timeout_s`.
    """

    def __init__(
        self,
        model_dir: Path,
        *,
        n_parallel: int = 2,
        start_timeout_s: float = 60.0,
        find_module: Callable[[str], object | None] = find_spec,
    ) -> None:
        self.url = ""
        self.log_path = model_dir / "llamacpp.log"
        self._model_dir = model_dir
        self._n_parallel = n_parallel
        self._start_timeout_s = start_timeout_s
        self._find_module = find_module
        self._process: Process | None = None

    async def __aenter__(self) -> Self:
        if not all(self._find_module(name) for name in _MODULES):
            raise SettingsError(
                "--upstream",
                "llama.cpp's server is not installed: `pip install 'obol-inference[demo]'`, "
                "or name a model server of yours",
            )
        try:
            await self._start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stop()

    async def _start(self) -> None:
        with self.log_path.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "obol.adapters.llamacpp_child", str(self._model_dir), str(self._n_parallel)),
                stdin=PIPE,
                stdout=PIPE,
                stderr=log,
            )
        try:
            async with asyncio.timeout(self._start_timeout_s):
                self.url = await self._address(self._process)
                await _healthy(self.url)
        except TimeoutError:
            raise self._failure(f"did not answer within {self._start_timeout_s:g} s") from None

    async def _address(self, process: Process) -> str:
        line = await process.stdout.readline() if process.stdout else b""
        if not line.endswith(b"\n"):
            raise self._failure(f"ended with exit code {await process.wait()}")
        return line.decode().strip()

    def _failure(self, what: str) -> UpstreamUnavailableError:
        tail = self.log_path.read_bytes()[-_TAIL_BYTES:].decode(errors="replace").strip()
        return UpstreamUnavailableError(f"llama.cpp's server {what}; the end of {self.log_path.name}:\n{tail}")

    async def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(_STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def _healthy(url: str) -> None:
    """Returns once the server says that it is; the caller sets the deadline."""
    upstream = HttpUpstream(url)
    try:
        while True:
            if await _health(upstream) == 200:
                return
            await asyncio.sleep(_PAUSE_S)
    finally:
        await upstream.close()


async def _health(upstream: HttpUpstream) -> int | None:
    try:
        response = await upstream.open(UpstreamRequest("GET", "/health", (), b""))
    except UpstreamError:
        return None
    response.close()
    return response.status
