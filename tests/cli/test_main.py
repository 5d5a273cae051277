import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from obol.cli.exit_codes import ExitCode
from obol.cli.main import COMMANDS, LazyGroup
from obol.cli.output import CommandError
from obol.errors import BudgetExceededError, SettingsError
from tests.cli.conftest import Run, start
from tests.fakes.seller import FakeSeller, Hang

HEAVY = ("aiohttp", "httpx2", "coincurve", "msgspec", "rich", "obol.buyer", "obol.gateway", "obol.adapters")


class OneCommand(LazyGroup):
    """A group like `obol` whose only command raises something."""

    def __init__(self, error: Exception) -> None:
        super().__init__("obol", lazy={}, params=[click.Option(["--debug"], is_flag=True)], callback=lambda debug: None)
        self.error = error

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        def act() -> None:
            raise self.error

        return click.Command(cmd_name, callback=act)


def test_help_names_every_command_and_imports_none(run: Run) -> None:
    with start("--help") as process:
        out, _ = process.communicate()

    assert process.returncode == 0
    for name, entry in COMMANDS.items():
        assert name in out.decode()
        assert entry.help in out.decode()


@pytest.mark.parametrize("group", ["sell", "facilitator", "receipts", "ledger", "devnet", "wallet"])
def test_no_groups_help_is_cut_off(run: Run, group: str) -> None:
    assert "..." not in run(group, "--help").stdout.split("Commands:")[1]


def test_help_reads_nothing_heavy() -> None:
    script = f"import obol.cli.main, sys; print([m for m in sys.modules if m.startswith({HEAVY!r})])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)

    assert done.stdout.strip() == b"[]"


@pytest.mark.parametrize("arguments", [["--version"], ["pay", "--help"], ["wallet", "--help"], ["-h"]])
def test_asking_for_information_succeeds(run: Run, arguments: list[str]) -> None:
    assert run(*arguments).exit_code == ExitCode.OK


@pytest.mark.parametrize("arguments", [["bogus"], ["--bogus"], ["pay"], ["pay", "http://x", "--timeout", "soon"]])
def test_wrong_usage_says_what_and_where_help_is(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)

    assert (result.exit_code, result.stdout) == (ExitCode.USAGE, "")
    assert result.stderr.startswith("obol: error: ")
    assert "--help" in result.stderr


def test_an_error_of_ours_has_its_code_and_its_words() -> None:
    result = CliRunner().invoke(OneCommand(BudgetExceededError("too dear")), ["act"])

    assert (result.exit_code, result.stderr) == (ExitCode.BUDGET, "obol: error: too dear\n")


def test_a_settings_error_names_the_flag() -> None:
    result = CliRunner().invoke(OneCommand(SettingsError("--price", "is zero")), ["act"])

    assert (result.exit_code, result.stderr) == (ExitCode.USAGE, "obol: error: --price: is zero\n")


def test_a_hint_follows_its_error() -> None:
    error = CommandError("nobody there", code=ExitCode.CONNECTION, hint="Start it.")
    result = CliRunner().invoke(OneCommand(error), ["act"])

    assert (result.exit_code, result.stderr) == (ExitCode.CONNECTION, "obol: error: nobody there\n  Start it.\n")


def test_a_bug_is_short_and_tells_nothing_of_what_it_held() -> None:
    result = CliRunner().invoke(OneCommand(RuntimeError("secret 0xabc")), ["act"])

    assert result.exit_code == ExitCode.BUG
    assert "bug in obol (RuntimeError)" in result.stderr
    assert "--debug" in result.stderr
    assert "secret" not in result.output


def test_debug_shows_a_bugs_traceback() -> None:
    result = CliRunner().invoke(OneCommand(RuntimeError("the cause")), ["--debug", "act"])

    assert result.exit_code == ExitCode.BUG
    assert "Traceback" in result.stderr
    assert "the cause" in result.stderr


def test_ctrl_c_ends_cleanly(seller: FakeSeller, key_file: Path) -> None:
    seller.then(Hang())
    with start("pay", seller.url + "/v1/x", "-d", "{}", "--key-file", str(key_file)) as process:
        seller.arrived.wait()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()

    assert (process.returncode, out) == (ExitCode.INTERRUPTED, b"")
    assert b"Traceback" not in err
    assert b"not known" in err  # the payment was out: that is said


def test_a_reader_that_leaves_is_no_bug(seller: FakeSeller, key_file: Path) -> None:
    with start("pay", seller.url + "/v1/x", "-d", '{"stream": true}', "--key-file", str(key_file)) as process:
        assert process.stdout is not None
        os.read(process.stdout.fileno(), 1)
        process.stdout.close()
        seller.release()
        assert process.stderr is not None
        err = process.stderr.read()

    assert process.returncode == ExitCode.BROKEN_PIPE
    assert b"Broken" not in err
    assert b"paid 0.001 USDC" in err
