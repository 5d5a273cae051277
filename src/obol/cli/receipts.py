"""`obol receipts`: what was sold, to whom, and what became of the money. Reads the ledger, changes nothing."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from obol.cli import output
from obol.cli.exit_codes import ExitCode
from obol.cli.ledger_file import LedgerPlace, ledger_options, open_existing_ledger, sales_of
from obol.cli.receipt_rows import COLUMNS, csv_cell, receipt_row
from obol.cli.receipt_text import show_sale, show_sales, show_totals
from obol.cli.sale_filter import filter_options, sale_filter
from obol.core.totals import By, Totals

if TYPE_CHECKING:
    from obol.core.ledger import SaleFilter
    from obol.core.sale import Sale

Write = Callable[[dict[str, object]], None]


@click.group()
def receipts() -> None:
    """Show and export what was sold."""


@receipts.command("list")
@filter_options
@click.option("--totals", type=click.Choice([by.value for by in By]), help="Sums instead of sales.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="Only the newest so many.")
@ledger_options
@output.json_option
def list_(place: LedgerPlace, totals: str | None, limit: int, as_json: bool, **chosen: Any) -> None:
    """List sales, oldest first, or what they come to."""
    which = _filter(chosen)
    if totals is not None:
        sums = Totals(By(totals))
        _each_sale(place, which, sums.add)
        show_totals(sums, totals, as_json=as_json)
        return
    newest: deque[Sale] = deque(maxlen=limit)
    seen = _each_sale(place, which, newest.append)
    if seen > limit:
        output.note(f"the newest {limit} of {seen} sales: --limit shows more, `obol receipts export` writes all")
    show_sales(newest, as_json=as_json)


@receipts.command()
@click.argument("sale_id", metavar="ID")
@ledger_options
@output.json_option
def show(sale_id: str, place: LedgerPlace, as_json: bool) -> None:
    """Show one sale by its receipt id."""
    from obol.cli.runtime import run_async

    async def find() -> "Sale | None":
        async with open_existing_ledger(place) as ledger:
            return await ledger.sale(sale_id)

    sale = run_async(find())
    if sale is None:
        raise output.CommandError("the ledger has no sale of that id", code=ExitCode.NOT_FOUND)
    show_sale(sale, as_json=as_json)


@receipts.command()
@filter_options
@click.option("--format", "as_format", type=click.Choice(["csv", "json", "jsonl"]), default="csv", show_default=True)
@click.option(
    "--output", "file", type=click.Path(path_type=Path, dir_okay=False), help="Write this new file, whole, 0600."
)
@click.option("--force", is_flag=True, help="Replace the file of --output; never a ledger or a key.")
@ledger_options
def export(place: LedgerPlace, as_format: str, file: Path | None, force: bool, **chosen: Any) -> None:
    """Write every sale that fits, oldest first, to stdout or a file.

    Amounts are exact, in atomic units and in units of the asset. A text that a spreadsheet would take for a formula
    begins with an apostrophe in CSV.
    """
    which = _filter(chosen)
    with _target(file, may_replace=force) as stream, _WRITERS[as_format](stream) as write:
        count = _each_sale(place, which, lambda sale: write(receipt_row(sale)))
    if file is not None:
        output.note(f"wrote {count} sales to {file}")


def _filter(chosen: dict[str, Any]) -> "SaleFilter":
    from obol.adapters.clock import SystemClock

    return sale_filter(now_s=SystemClock().now_s(), **chosen)


def _each_sale(place: LedgerPlace, which: "SaleFilter", use: "Callable[[Sale], None]") -> int:
    """Hand over every sale that fits; how many there were."""
    from obol.cli.runtime import run_async

    async def read() -> int:
        count = 0
        async with open_existing_ledger(place) as ledger:
            async for sale in sales_of(ledger, which):
                use(sale)
                count += 1
        return count

    return run_async(read())


@contextlib.contextmanager
def _target(file: Path | None, *, may_replace: bool) -> Iterator[TextIO]:
    """Stdout, or a file that appears when it is whole and is readable by its owner only."""
    import sys

    from obol.adapters.whole_file import whole_file

    if file is None:
        yield sys.stdout
        return
    with whole_file(file, field="--output", may_replace=may_replace) as stream:
        yield stream


@contextlib.contextmanager
def _csv(stream: TextIO) -> Iterator[Write]:
    import csv

    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    yield lambda row: writer.writerow([csv_cell(row[name]) for name in COLUMNS])


@contextlib.contextmanager
def _json(stream: TextIO) -> Iterator[Write]:
    import json

    between = iter(["[\n"])

    def write(row: dict[str, object]) -> None:
        stream.write(next(between, ",\n") + json.dumps(row, ensure_ascii=False))

    yield write
    stream.write("\n]\n" if next(between, None) is None else "[]\n")


@contextlib.contextmanager
def _jsonl(stream: TextIO) -> Iterator[Write]:
    import json

    yield lambda row: print(json.dumps(row, ensure_ascii=False), file=stream)


_WRITERS = {"csv": _csv, "json": _json, "jsonl": _jsonl}
