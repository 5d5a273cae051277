import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from obol.adapters.signer_local import LocalSigner
from obol.cli.main import cli
from tests.fakes.seller import FakeSeller

# As at a person's terminal: no settings of ours, and output buffered unless the program flushes it.
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if not name.startswith("OBOL_") and name != "PYTHONUNBUFFERED"
}
Run = Callable[..., Result]


@pytest.fixture
def seller() -> Iterator[FakeSeller]:
    with FakeSeller() as running:
        yield running


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    LocalSigner.generate().write_key_file(path)
    return path


@pytest.fixture
def run() -> Run:
    """Runs `obol` in this process."""

    def invoke(*arguments: str, stdin: str | bytes | None = None) -> Result:
        hidden = {name: None for name in os.environ if name.startswith("OBOL_")}
        return CliRunner().invoke(cli, list(arguments), input=stdin, env=hidden)

    return invoke


@contextlib.contextmanager
def start(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """`obol` as a program of its own; waited for at the end, and killed when the test failed."""
    with subprocess.Popen(
        [sys.executable, "-m", "obol", *arguments],
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise
