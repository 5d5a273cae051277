"""What commands print: panels and tables on a terminal, JSON when piped or asked for; errors and notes on stderr.

Machine output is written whole, one document per call, and is never wrapped or coloured.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from obol.cli.exit_codes import ExitCode

F = TypeVar("F", bound=Callable[..., Any])

Row = Mapping[str, object]


class CommandError(Exception):
    """A command ends without success: the message, the exit code, and what to do about it."""

    def __init__(self, message: str, *, code: ExitCode, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


def json_option(command: F) -> F:
    """The `--json` flag of a command that shows something, as the argument `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, as is done when the output is piped.")(
        command
    )


def wants_json(as_json: bool) -> bool:
    """True when stdout is read by a program, or the person asked for JSON."""
    return as_json or not sys.stdout.isatty()


def show(record: Row, *, title: str, as_json: bool = False) -> None:
    """Print one record to stdout: a titled panel of names and values, or one JSON object."""
    if wants_json(as_json):
        print_json(record)
        return
    from rich.console import Console
    from rich.panel import Panel

    Console().print(Panel(_grid(record), title=title, title_align="left", expand=False))


def show_table(rows: Sequence[Row], *, title: str, as_json: bool = False) -> None:
    """Print records of the same keys to stdout: a table, or one JSON array. The first row names the columns."""
    if wants_json(as_json):
        print_json(rows)
        return
    if not rows:
        click.echo(f"{title}: none")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(_text(value) for value in row.values()))
    Console().print(table)


def print_json(value: object, *, to_stderr: bool = False) -> None:
    """Write one JSON document: on a terminal indented, otherwise on one line."""
    stream = sys.stderr if to_stderr else sys.stdout
    indent = 2 if stream.isatty() else None
    click.echo(json.dumps(value, ensure_ascii=False, indent=indent, default=str), file=stream)


def note(message: str) -> None:
    """Tell the person something on stderr, in the command's name."""
    click.echo(f"obol: {printable(message)}", err=True)


def error(message: str, *, hint: str = "") -> None:
    """Tell on stderr what went wrong and, where it is known, what to do about it."""
    click.echo(f"obol: error: {printable(message)}", err=True)
    if hint:
        click.echo(f"  {printable(hint)}", err=True)


def printable(text: str) -> str:
    """Text without control characters: a peer's words must not move the cursor or colour the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def one_line(text: str) -> str:
    """A peer's words within a line of ours: without line breaks, with which they could pass for our own lines."""
    return " ".join(text.split())


def drop_stdout() -> None:
    """Let later writes to stdout go nowhere: its reader left, and the interpreter still flushes it on its way out."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _grid(record: Row) -> Any:
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")  # an address is folded, never cut: half an address is worse than none
    for name, value in record.items():
        grid.add_row(name.replace("_", " "), _text(value))
    return grid


def _text(value: object) -> Any:
    from rich.text import Text

    return Text("unknown" if value is None else printable(str(value)))  # Text: brackets in a value are not markup
