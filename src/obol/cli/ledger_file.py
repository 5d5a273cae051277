"""The ledger as the tools open it: one that exists, next to whatever gateways run on it. They adopt no sale."""

import contextlib
import functools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from obol.cli.environment import secret
from obol.cli.exit_codes import ExitCode
from obol.cli.output import CommandError
from obol.errors import SettingsError

if TYPE_CHECKING:
    from obol.core.ledger import Ledger, SaleFilter
    from obol.core.sale import Sale


@dataclass(frozen=True, slots=True)
class LedgerPlace:
    """Where the person says that the ledger is."""

    data_dir: Path | None = None
    devnet: bool = False
    url: str | None = field(default=None, repr=False)
    """`postgresql://…`, with a password."""


def ledger_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--data-dir`, `--devnet` and `--ledger-env`, as the argument `place`."""

    @functools.wraps(command)
    def placed(*, data_dir: Path | None, devnet: bool, ledger_env: str | None, **others: Any) -> Any:
        return command(place=_place(data_dir, devnet, ledger_env), **others)

    placed = click.option("--devnet", is_flag=True, help="The ledger of gateways with --devnet.")(placed)
    placed = click.option("--ledger-env", metavar="NAME", help="Variable with the URL of a shared ledger.")(placed)
    return click.option(
        "--data-dir",
        type=click.Path(path_type=Path, file_okay=False),
        help="Where the ledger is kept.  [default: by XDG]",
    )(placed)


def _place(data_dir: Path | None, devnet: bool, variable: str | None) -> LedgerPlace:
    import os

    if variable is None:
        return LedgerPlace(data_dir, devnet)
    if devnet or data_dir is not None:
        raise SettingsError("--ledger-env", "contradicts --data-dir and --devnet: say where one ledger is")
    return LedgerPlace(url=secret(os.environ, "--ledger-env", variable))


def existing_ledger_file(place: LedgerPlace) -> Path:
    """The ledger's file. Raises `SettingsError` naming `--data-dir` when there is none: a tool never makes one."""
    import os

    from obol.adapters.paths import default_data_dir, ledger_file

    file = ledger_file(place.data_dir or default_data_dir(os.environ), devnet=place.devnet)
    if not file.is_file():
        hint = "" if place.devnet else " (a gateway with --devnet has another: add --devnet)"
        raise SettingsError("--data-dir", f"there is no ledger {file}{hint}")
    return file


@contextlib.asynccontextmanager
async def open_existing_ledger(place: LedgerPlace) -> "AsyncIterator[Ledger]":
    """The ledger that is there; closed at the end. Raises `SettingsError` naming the flag when there is none."""
    from obol.adapters.clock import SystemClock
    from obol.adapters.ledger_sqlite import SqliteLedger
    from obol.gateway.ledgers import open_shared_ledger

    ledger: Ledger
    if place.url is not None:
        ledger = await open_shared_ledger(place.url, SystemClock(), may_create=False)
    else:
        ledger = await SqliteLedger.open(existing_ledger_file(place), SystemClock())
    try:
        yield ledger
    finally:
        await ledger.close()


async def sales_of(ledger: "Ledger", which: "SaleFilter") -> "AsyncIterator[Sale]":
    """Every sale that fits, oldest first, a page at a time. Raises `CommandError` where a row is no sale."""
    cursor: int | None = None
    while True:
        try:
            page = await ledger.page(which, after=cursor)
        except ValueError as error:
            hint = "`obol ledger check` says what is wrong with it."
            raise CommandError("a row of the ledger is no sale", code=ExitCode.UNSOUND, hint=hint) from error
        for sale in page.sales:
            yield sale
        cursor = page.cursor
        if cursor is None:
            return
