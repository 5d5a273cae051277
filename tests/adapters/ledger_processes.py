"""Processes of their own that use a ledger: started, asked what their claims came to, and killed."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def a_child(ledger: Path | str, gate: str, *numbers: int) -> Iterator["subprocess.Popen[str]"]:
    """A process that has opened the ledger in a file or at a URL."""
    command = [sys.executable, "-m", "tests.adapters.ledger_child", str(ledger), gate, *map(str, numbers)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "open\n"
            yield child
        finally:
            child.kill()


def claims_of(child: "subprocess.Popen[str]") -> list[tuple[str, str]]:
    """What the child's claims came to: name of the outcome and sale id."""
    assert child.stdout is not None
    lines = iter(child.stdout.readline, "done\n")
    return [(name, sale_id) for name, sale_id in (line.split() for line in lines)]
