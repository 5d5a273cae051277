"""The measured programs: our gateway as `obol sell inference` starts it, and the official middleware."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.machine import SUBJECT_CORE
from bench.offer import NETWORK, PAY_TO, PRICE
from bench.programs import HOST, Program, free_port, running


@contextmanager
def obol(name: str, upstream: Program, facilitator: Program, folder: Path, *options: str) -> Iterator[Program]:
    """Our gateway, a ledger of its own, everything at its default but `options`."""
    port = free_port()
    command = [sys.executable, "-m", "obol", "sell", "inference", "bench", "--upstream", upstream.url]
    command += ["--pay-to", PAY_TO, "--price", PRICE, "--chain", NETWORK.name, "--facilitator", facilitator.url]
    command += ["--listen", f"{HOST}:{port}", "--data-dir", str(folder / f"{name}-data"), *options]
    with running(command, port=port, core=SUBJECT_CORE, log=folder / f"{name}.log") as program:
        yield program


@contextmanager
def official(name: str, upstream: Program, facilitator: Program, folder: Path) -> Iterator[Program]:
    """The x402 FastAPI middleware."""
    port = free_port()
    command = [sys.executable, "-m", "bench.official", str(port), upstream.url, facilitator.url]
    with running(command, port=port, core=SUBJECT_CORE, log=folder / f"{name}.log") as program:
        yield program
