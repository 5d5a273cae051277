"""Kept payments: durable, the owner's alone, and only one at a time may present them."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from obol.adapters.kept_payments import KeptPayments, payments_folder
from obol.errors import SettingsError

PURCHASE = "ab" * 32
LINE = b'{"a": 1}'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return payments_folder(tmp_path)


def only(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_file_and_folder_are_the_owners_alone(folder: Path) -> None:
    KeptPayments(folder).add(PURCHASE, LINE)

    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(only(folder).stat().st_mode) == 0o600
    assert only(folder).name.startswith(PURCHASE)
    assert only(folder).read_bytes() == LINE + b"\n"


def test_lines_are_added_and_read_back(folder: Path) -> None:
    store = KeptPayments(folder)
    file = store.add(PURCHASE, LINE)
    file.append(b"second")

    assert file.content == LINE + b"\nsecond\n"
    assert [store.peek(name) for name in store.names()] == [file.content]


def test_nobody_else_gets_what_one_holds(folder: Path) -> None:
    store = KeptPayments(folder)
    file = store.add(PURCHASE, LINE)
    (name,) = store.names()

    assert (store.take(name), KeptPayments(folder).take(name)) == (None, None)
    file.release()
    first, second = KeptPayments(folder), KeptPayments(folder)
    taken = first.take(name)
    assert taken is not None
    assert second.take(name) is None
    assert (first.held, second.held, store.held) == ((str(folder / name),), (), ())


def test_closing_lets_others_have_it(folder: Path) -> None:
    store, other = KeptPayments(folder), KeptPayments(folder)
    file = store.add(PURCHASE, LINE)
    store.close()

    assert not file.is_held
    assert other.take(other.names()[0]) is not None


def test_what_is_removed_is_gone_and_cannot_be_taken(folder: Path) -> None:
    store = KeptPayments(folder)
    file = store.add(PURCHASE, LINE)
    (name,) = store.names()
    file.remove()
    file.remove()
    file.release()

    assert (store.names(), store.take(name), store.peek(name), store.held) == ([], None, b"", ())


def test_a_renamed_one_is_still_held(folder: Path) -> None:
    store = KeptPayments(folder)
    file = store.add(PURCHASE, LINE)
    file.rename("cd" * 32)
    (name,) = store.names()

    assert name.startswith("cd" * 32)
    assert KeptPayments(folder).take(name) is None
    file.remove()
    assert store.names() == []


def test_half_a_line_is_not_read_and_does_not_spoil_the_next(folder: Path) -> None:
    store = KeptPayments(folder)
    file = store.add(PURCHASE, LINE)
    with only(folder).open("ab") as torn:
        torn.write(b'{"half": ')

    assert file.content == store.peek(store.names()[0]) == LINE + b"\n"
    file.append(b"next")
    assert only(folder).read_bytes() == LINE + b"\nnext\n"


def test_one_that_was_never_finished_is_removed(folder: Path) -> None:
    store = KeptPayments(folder)
    store.add(PURCHASE, LINE).remove()
    (folder / f"{PURCHASE}.00").write_bytes(b'{"half": ')

    assert store.take(f"{PURCHASE}.00") is None
    assert store.names() == []


def test_a_link_is_not_followed(folder: Path, tmp_path: Path) -> None:
    store = KeptPayments(folder)
    store.add(PURCHASE, LINE).remove()
    (tmp_path / "elsewhere").write_bytes(LINE + b"\n")
    (folder / f"{PURCHASE}.00").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(SettingsError):
        store.take(f"{PURCHASE}.00")
    assert (tmp_path / "elsewhere").exists()


def test_a_folder_that_is_none_is_a_setting_that_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "payments").write_text("not a folder")

    with pytest.raises(SettingsError, match="--data-dir"):
        KeptPayments(tmp_path / "payments", field="--data-dir").add(PURCHASE, LINE)


def test_without_a_folder_nothing_is_kept(folder: Path) -> None:
    assert KeptPayments(folder).names() == []
    assert not folder.exists()


def test_a_killed_process_leaves_the_payment_to_others(folder: Path) -> None:
    program = (
        "import sys, pathlib; from obol.adapters.kept_payments import KeptPayments;"
        "store = KeptPayments(pathlib.Path(sys.argv[1]));"
        f"kept = store.add({PURCHASE!r}, {LINE!r}); print('kept', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"kept\n"
        store = KeptPayments(folder)
        (name,) = store.names()
        assert store.take(name) is None
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    taken = store.take(name)
    assert taken is not None
    assert taken.content == LINE + b"\n"
