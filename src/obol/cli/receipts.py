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
from obol.cli.receipt_rows import COLUMNS, amount_text, csv_cell, decimals_of, iso, known_asset, receipt_row
from obol.cli.sale_filter import filter_options, sale_filter
from obol.core.totals import By, Column, Line, Total, Totals

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
        _show_totals(sums, totals, as_json=as_json)
        return
    newest: deque[Sale] = deque(maxlen=limit)
    seen = _each_sale(place, which, newest.append)
    if seen > limit:
        output.note(f"the newest {limit} of {seen} sales: --limit shows more, `obol receipts export` writes all")
    rows = [receipt_row(sale) for sale in newest] if output.wants_json(as_json) else [_short(sale) for sale in newest]
    output.show_table(rows, title="Sales", as_json=as_json)


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
    output.show(receipt_row(sale), title="Receipt", as_json=as_json)


@receipts.command()
@filter_options
@click.option("--format", "as_format", type=click.Choice(["csv", "json", "jsonl"]), default="csv", show_default=True)
@click.option("--output", "file", type=click.Path(path_type=Path, dir_okay=False), help="Write this file, whole, 0600.")
@ledger_options
def export(place: LedgerPlace, as_format: str, file: Path | None, **chosen: Any) -> None:
    """Write every sale that fits, oldest first, to stdout or a file.

    Amounts are exact, in atomic units and in units of the asset. A text that a spreadsheet would take for a formula
    begins with an apostrophe in CSV.
    """
    which = _filter(chosen)
    with _target(file) as stream, _WRITERS[as_format](stream) as write:
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


def _short(sale: "Sale") -> dict[str, object]:
    """What fits on a terminal."""
    return {
        "id": sale.id,
        "claimed": iso(sale.created_s),
        "offer": sale.offer,
        "payer": sale.key.payer,
        "amount": amount_text(sale.authorized_atomic, known_asset(sale.key.network, sale.key.asset)),
        "state": sale.state.value,
        "delivery": sale.delivery.value,
    }


def _show_totals(sums: Totals, by: str, *, as_json: bool) -> None:
    row = _total_record if output.wants_json(as_json) else _total_row
    output.show_table([row(by, line, total) for line, total in sums.lines()], title=f"Totals by {by}", as_json=as_json)


def _total_record(by: str, line: Line, total: Total) -> dict[str, object]:
    asset = known_asset(line.network, line.asset)
    record: dict[str, object] = {by: line.name, "network": line.network, "asset": line.asset}
    record |= {"symbol": asset.symbol if asset else None, "sales": total.count}
    for column in Column:
        amount_atomic = total.amounts_atomic.get(column, 0)
        record |= {
            f"{column}_count": total.counts.get(column, 0),
            f"{column}_atomic": str(amount_atomic),
            column.value: decimals_of(amount_atomic, asset),
        }
    return record


def _total_row(by: str, line: Line, total: Total) -> dict[str, object]:
    asset = known_asset(line.network, line.asset)
    token = asset.symbol if asset else line.asset
    row: dict[str, object] = {} if by == By.ASSET else {by: line.name}
    row |= {"asset": f"{token} on {asset.network.name if asset else line.network}", "sales": total.count}
    for column in Column:
        count, amount_atomic = total.counts.get(column, 0), total.amounts_atomic.get(column, 0)
        row[column.value] = f"{decimals_of(amount_atomic, asset) or amount_atomic} ({count})" if count else "-"
    return row


@contextlib.contextmanager
def _target(file: Path | None) -> Iterator[TextIO]:
    """Stdout, or a file that appears when it is whole and is readable by its owner only."""
    import sys

    from obol.adapters.whole_file import whole_file

    if file is None:
        yield sys.stdout
        return
    with whole_file(file, field="--output") as stream:
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
