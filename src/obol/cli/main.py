"""The `obol` command: finds a subcommand, runs it, and turns every ending into a message and an exit code.

Commands are imported when they run, not before: `obol --help` reads this file only.
"""

import importlib
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import click

from obol.cli import output
from obol.cli.exit_codes import ExitCode, exit_code
from obol.errors import ObolError


class LazyCommand(NamedTuple):
    """Where a command is, and its line in the help, so that helping does not import it."""

    module: str
    attribute: str
    help: str


COMMANDS: dict[str, LazyCommand] = {
    "sell": LazyCommand("obol.cli.sell", "sell", "Sell the answers of a model server over x402."),
    "pay": LazyCommand("obol.cli.pay", "pay", "Send one request, paying for it when the seller asks."),
    "facilitator": LazyCommand("obol.cli.facilitator", "facilitator", "Verify and settle x402 payments for sellers."),
    "receipts": LazyCommand("obol.cli.receipts", "receipts", "Show and export what was sold."),
    "reconcile": LazyCommand("obol.cli.reconcile", "reconcile", "Hold the ledger against the chain."),
    "ledger": LazyCommand("obol.cli.ledger", "ledger", "Check the ledger, and copy it while it is in use."),
    "devnet": LazyCommand("obol.cli.devnet", "devnet", "Fund accounts and read balances on the embedded test ledger."),
    "wallet": LazyCommand("obol.cli.wallet", "wallet", "Make a key to pay with, and show its address."),
    "demo": LazyCommand("obol.cli.demo", "demo", "A whole sale on this machine: model server, gateway, buyer."),
}

_EPILOG = (
    "Exit codes: 0 ok, 1 bug, 2 usage or settings, 3 connection, 4 refused, 5 not found, 6 budget, 7 payment, "
    "8 ledger unsound, 130 interrupted."
)


_EXPECTED = (ObolError, output.CommandError, click.ClickException, click.exceptions.Exit, click.Abort)


class LazyGroup(click.Group):
    """A group that imports a subcommand when it is used, and is the command line's outer edge."""

    def __init__(self, *args: Any, lazy: Mapping[str, LazyCommand], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        entry = self.lazy.get(cmd_name)
        if entry is None:
            return None
        command: click.Command = getattr(importlib.import_module(entry.module), entry.attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in self.lazy.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand; what nobody expected becomes a short message: the one blind catch of the command line."""
        try:
            return super().invoke(ctx)
        except _EXPECTED:
            raise
        except BrokenPipeError:
            output.drop_stdout()
            ctx.exit(ExitCode.BROKEN_PIPE)
        except Exception as bug:  # noqa: BLE001 - the edge
            _report_bug(bug, with_traceback=bool(ctx.params.get("debug")))
            ctx.exit(ExitCode.BUG)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,  # noqa: ARG002 - this group always ends the process itself
        **extra: Any,
    ) -> Any:
        """Run and leave by `SystemExit` with an exit code of `ExitCode`."""
        try:
            result = super().main(args, prog_name, complete_var, False, **extra)
        except click.Abort:
            output.note("interrupted")
            sys.exit(ExitCode.INTERRUPTED)
        except click.ClickException as ending:
            sys.exit(_report(ending))
        except output.CommandError as failure:
            output.error(str(failure), hint=failure.hint)
            sys.exit(failure.code)
        except ObolError as failure:
            output.error(str(failure))
            sys.exit(exit_code(failure))
        sys.exit(result if isinstance(result, int) else ExitCode.OK)


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    from importlib import metadata

    try:
        version = metadata.version("obol-inference")
    except metadata.PackageNotFoundError:  # run from a source tree that is not installed
        version = "unknown"
    click.echo(f"obol {version}")
    ctx.exit()


@click.group(cls=LazyGroup, lazy=COMMANDS, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, envvar="OBOL_DEBUG", help="Show the traceback of a bug (or OBOL_DEBUG=1).")
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
def cli(debug: bool) -> None:
    """Sell and buy LLM inference over HTTP 402 (x402)."""


def main() -> None:
    """The entry point of the `obol` command."""
    cli(prog_name="obol")


def _report(ending: click.ClickException) -> int:
    if isinstance(ending, click.exceptions.NoArgsIsHelpError):
        ending.show()  # a bare group: its message is the help text
        return ending.exit_code
    context = ending.ctx if isinstance(ending, click.UsageError) else None
    hint = f"See `{context.command_path} --help`." if context else ""
    output.error(ending.format_message(), hint=hint)
    return ending.exit_code


def _report_bug(bug: Exception, *, with_traceback: bool) -> None:
    if with_traceback:
        click.echo("".join(traceback.format_exception(bug)), err=True, nl=False)
    # The text of an unexpected error may hold anything, a secret too: it is shown only on demand.
    output.error(
        f"a bug in obol ({type(bug).__name__})",
        hint="Please report it in the project's issue tracker; `obol --debug …` shows the details to attach.",
    )
