"""A file that is there whole or not at all, whatever happens while it is written."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from obol.adapters.signer_local import LocalSigner
from obol.adapters.whole_file import whole_file
from obol.errors import SettingsError
from tests.adapters.ledger_processes import ROOT


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sales.csv"


def beside(path: Path) -> list[Path]:
    """What is in the folder that should not be."""
    return [one for one in path.parent.iterdir() if one != path]


def test_the_older_file_is_there_until_the_new_one_is_whole(path: Path) -> None:
    path.write_text("old")
    with whole_file(path, field="--output", may_replace=True) as stream:
        stream.write("new " * 10_000)
        stream.flush()
        assert path.read_text() == "old"
        (partial,) = beside(path)
        assert partial.stat().st_mode & 0o777 == 0o600  # a secret is not readable for a moment either
    assert path.read_text() == "new " * 10_000
    assert beside(path) == []


def test_a_new_file_does_not_exist_until_it_is_whole(path: Path) -> None:
    with whole_file(path, field="--output") as stream:
        stream.write("new")
        assert not path.exists()
    assert path.read_text() == "new"


def test_only_its_owner_can_read_it_whoever_could_read_the_older_one(path: Path) -> None:
    path.touch(mode=0o644)
    umask = os.umask(0)
    try:
        with whole_file(path, field="--output", may_replace=True):
            pass
    finally:
        os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o600


def test_text_is_utf_8_and_line_ends_are_as_written(path: Path) -> None:
    with whole_file(path, field="--output") as stream:
        stream.write("größe\r\n5 €\n")
    assert path.read_bytes() == "größe\r\n5 €\n".encode()


@pytest.mark.parametrize("reason", [LookupError, KeyboardInterrupt])
@pytest.mark.parametrize("older", [None, "old"])
def test_a_block_that_fails_changes_nothing(path: Path, older: str | None, reason: type[BaseException]) -> None:
    if older is not None:
        path.write_text(older)
    with (  # noqa: PT012 - the block is tested
        pytest.raises(reason),
        whole_file(path, field="--output", may_replace=True) as stream,
    ):
        stream.write("half")
        raise reason
    assert (path.read_text() if path.exists() else None) == older
    assert beside(path) == []


def test_of_two_that_write_one_file_at_once_the_last_is_there_whole(path: Path) -> None:
    with whole_file(path, field="--output", may_replace=True) as last:
        with whole_file(path, field="--output", may_replace=True) as first:
            first.write("first" * 5_000)
            last.write("last" * 5_000)
        assert path.read_text() == "first" * 5_000
    assert path.read_text() == "last" * 5_000
    assert beside(path) == []


def test_what_is_there_is_not_replaced_unasked(path: Path) -> None:
    path.write_text("old")
    with pytest.raises(SettingsError, match="--output: it exists"), whole_file(path, field="--output"):
        pytest.fail("the block is not entered")
    assert path.read_text() == "old"
    assert beside(path) == []


def test_what_appears_meanwhile_is_not_replaced_either(path: Path) -> None:
    with (
        pytest.raises(SettingsError, match="--output: it exists"),
        whole_file(path, field="--output"),
    ):
        path.write_text("another's")
    assert path.read_text() == "another's"
    assert beside(path) == []


def _a_ledger(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE sale (x)")


def _a_log(path: Path) -> None:
    """What a ledger was told since it was last folded into its file."""
    database = path.with_name("database")
    with contextlib.closing(sqlite3.connect(database)) as writer:
        writer.execute("PRAGMA journal_mode=WAL")
        writer.execute("CREATE TABLE sale (x)")
        log = database.with_name("database-wal").read_bytes()
    database.unlink()
    path.write_bytes(log)


def _a_key(path: Path) -> None:
    LocalSigner.generate().write_key_file(path)


def _a_keystore(path: Path) -> None:
    path.write_text('{"version": 3, "Crypto": {"cipher": "aes-128-ctr"}}')


@pytest.mark.parametrize("make", [_a_ledger, _a_log, _a_key, _a_keystore])
def test_a_ledger_or_a_key_is_never_replaced(path: Path, make: Callable[[Path], None]) -> None:
    make(path)
    before = path.read_bytes()
    with (
        pytest.raises(SettingsError, match="never replaced"),
        whole_file(path, field="--output", may_replace=True),
    ):
        pytest.fail("the block is not entered")
    assert path.read_bytes() == before
    assert beside(path) == []


@pytest.mark.parametrize("older", ["id,created\n", "[]\n", '{"id": "a"}\n', "", "0x" + "ab" * 20])
def test_an_older_export_is_replaced_on_demand(path: Path, older: str) -> None:
    path.write_text(older)
    with whole_file(path, field="--output", may_replace=True) as stream:
        stream.write("new")
    assert path.read_text() == "new"


@pytest.mark.parametrize("folder", ["none", "a file", "/proc"])
def test_where_nothing_can_be_written_the_setting_is_named(tmp_path: Path, folder: str) -> None:
    (tmp_path / "a file").touch()
    with (
        pytest.raises(SettingsError, match="nothing can be written there") as refused,
        whole_file(tmp_path / folder / "sales.csv", field="--output"),
    ):
        pytest.fail("the block is not entered")
    assert refused.value.field == "--output"
    assert str(tmp_path) not in str(refused.value)


def test_a_folder_is_not_replaced(path: Path) -> None:
    path.mkdir()
    with (
        pytest.raises(SettingsError, match="--output: "),
        whole_file(path, field="--output", may_replace=True) as stream,
    ):
        stream.write("new")
    assert path.is_dir()
    assert beside(path) == []


_IN_THE_MIDDLE = """
import os, resource, signal, sys
from pathlib import Path
from obol.adapters.whole_file import whole_file
from obol.errors import SettingsError

how, path = sys.argv[1:]
if how == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
try:
    with whole_file(Path(path), field="--output", may_replace=True) as stream:
        for number in range(1000):
            stream.write("a line that takes some room" * 10)
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
except SettingsError as error:
    sys.exit(7 if str(error).startswith("--output: not all of it can be written there: ") else str(error))
"""


@pytest.mark.parametrize(("how", "code"), [("full", 7), ("killed", -signal.SIGKILL)])
def test_a_full_disk_or_a_killed_process_leaves_the_older_file(path: Path, how: str, code: int) -> None:
    path.write_text("old")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", _IN_THE_MIDDLE, how, str(path)]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (code, "")
    assert path.read_text() == "old"
    if how == "full":
        assert beside(path) == []  # nobody is left to clean up after kill -9
