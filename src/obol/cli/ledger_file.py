"""The ledger as the tools open it: one that exists, next to whatever gateways run on it. They adopt no sale."""

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from obol.errors import SettingsError

if TYPE_CHECKING:
    from obol.core.ledger import Ledger, SaleFilter
    from obol.core.sale import Sale


def ledger_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--data-dir` and `--devnet`, as the arguments `data_dir` and `devnet`."""
    command = click.option("--devnet", is_flag=True, help="The ledger of gateways with --devnet.")(command)
    return click.option(
        "--data-dir",
        type=click.Path(path_type=Path, file_okay=False),
        help="Where the ledger is kept.  [default: by XDG]",
    )(command)


def existing_ledger_file(data_dir: Path | None, *, devnet: bool) -> Path:
    """The ledger's file. Raises `SettingsError` naming `--data-dir` when there is none: a tool never makes one."""
    import os

    from obol.adapters.paths import default_data_dir, ledger_file

    file = ledger_file(data_dir or default_data_dir(os.environ), devnet=devnet)
    if not file.is_file():
        hint = "" if devnet else " (a gateway with --devnet has another: add --devnet)"
        raise SettingsError("--data-dir", f"there is no ledger {file}{hint}")
    return file


@contextlib.asynccontextmanager
async def open_existing_ledger(data_dir: Path | None, *, devnet: bool) -> "AsyncIterator[Ledger]":
    """The ledger that is there; closed at the end. Raises `SettingsError` naming `--data-dir` when there is none."""
    from obol.adapters.clock import SystemClock
    from obol.adapters.ledger_sqlite import SqliteLedger

    ledger = await SqliteLedger.open(existing_ledger_file(data_dir, devnet=devnet), SystemClock())
    try:
        yield ledger
    finally:
        await ledger.close()


async def sales_of(ledger: "Ledger", which: "SaleFilter") -> "AsyncIterator[Sale]":
    """Every sale that fits, oldest first, a page at a time."""
    cursor: int | None = None
    while True:
        page = await ledger.page(which, after=cursor)
        for sale in page.sales:
            yield sale
        cursor = page.cursor
        if cursor is None:
            return
