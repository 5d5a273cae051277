"""A program that forks one process for each connection to its Unix socket: everything is imported already.

Run by `forked.running`. Each process reads one line, its job, and answers lines: the labels of the steps it takes, and
`@URL` once it listens. When the connection is closed by the other side it ends its work; when it dies, the connection
ends. The program itself ends with its standard input.
"""

import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from obol.adapters.event_loop import run

PID, LOG = "pid", "log"


class Job(msgspec.Struct, frozen=True):
    """What one process is started with. Those that follow each other in one `folder` never live at the same time."""

    folder: str


J = TypeVar("J", bound=Job)
Tell = Callable[[str], None]
"""Answers a line."""
Work = Callable[[J, socket.socket, Tell], Coroutine[Any, Any, None]]
"""Gets its connection, which can be read from when it is to end."""


def serve_forks(socket_path: str, kind: type[J], work: Work[J]) -> None:
    """Fork a process that does `work` for each connection."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries them
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(socket_path)
        listening.listen()
        print("listening", flush=True)  # noqa: T201 - what the parent waits for
        while sys.stdin not in select.select([listening, sys.stdin], [], [])[0]:
            connection, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                _work(connection, kind, work)
            connection.close()


def _work(connection: socket.socket, kind: type[J], work: Work[J]) -> None:
    """Never returns."""

    def tell(line: str) -> None:
        os.write(connection.fileno(), line.encode() + b"\n")

    status = 1
    try:
        job = msgspec.json.decode(connection.makefile("rb").readline(), type=kind)
        (Path(job.folder) / PID).write_text(str(os.getpid()))
        log = os.open(Path(job.folder) / LOG, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
        for standard in (0, 1, 2):
            os.dup2(log, standard)
        connection.setblocking(False)
        run(work(job, connection, tell))
        status = 0
    finally:
        if status:
            traceback.print_exc()
        os._exit(status)
