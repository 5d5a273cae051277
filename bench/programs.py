"""Child programs on loopback ports: started on a core, waited for until they listen, ended with the block."""

import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.machine import on_core

START_S = 20.0
STOP_S = 5.0
HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Program:
    """A running child."""

    pid: int
    port: int

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{HOST}:{self.port}"


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(
    command: Sequence[str], *, port: int, core: int, log: Path, environ: Mapping[str, str] | None = None
) -> Iterator[Program]:
    """A program that listens on `port`. Raises `RuntimeError` with the end of its log when it does not."""
    with log.open("wb") as output, on_core(core):
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environ)
    try:
        _wait_until_listening(child, port, log)
        yield Program(child.pid, port)
    finally:
        child.terminate()
        try:
            child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _wait_until_listening(child: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline_s = time.monotonic() + START_S
    while child.poll() is None and time.monotonic() < deadline_s:
        try:
            socket.create_connection((HOST, port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"{log.stem} did not start:\n{log.read_text(errors='replace')[-2000:]}")
