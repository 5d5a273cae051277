"""What `obol receipts` shows: JSON for programs; for people what fits their terminal, and whole what they may copy."""

import shutil
import textwrap
from collections.abc import Iterable, Sequence

import click

from obol.cli import output
from obol.cli.receipt_rows import amount_text, asset_name, decimals_of, iso, known_asset, receipt_row, spelled
from obol.core.networks import Asset
from obol.core.sale import Sale, receipt_of
from obol.core.state_words import STATE_WORDS
from obol.core.totals import By, Column, Line, Total, Totals

_ALWAYS = ("id", "claimed", "amount", "state")
_WHERE_THERE_IS_ROOM = ("delivery", "offer", "payer")
_IN_ORDER = ("id", "claimed", "offer", "payer", "amount", "state", "delivery")
_GAP = "  "
_NOTHING = "-"


def show_sales(sales: Iterable[Sale], *, as_json: bool) -> None:
    """Sales, one a line. No value is cut or folded: columns that do not fit are left out."""
    if output.wants_json(as_json):
        output.print_json([receipt_row(sale) for sale in sales])
        return
    rows = [_short(sale) for sale in sales]
    if not rows:
        click.echo("Sales: none")
        return
    _columns(rows, _fitting(_widths(rows), shutil.get_terminal_size().columns))


def show_sale(sale: Sale, *, as_json: bool) -> None:
    """One sale, and what its state means."""
    if output.wants_json(as_json):
        output.print_json(receipt_row(sale))
        return
    facts = _facts(sale)
    width = max(map(len, facts))
    for name, value in facts.items():
        click.echo(f"{name.ljust(width)}{_GAP}{output.printable(value)}".rstrip())
    click.echo("\n" + textwrap.fill(STATE_WORDS[sale.state], min(shutil.get_terminal_size().columns, 100)))


def show_totals(sums: Totals, by: str, *, as_json: bool) -> None:
    """One line for every day, offer or payer, by asset. Columns in which there is nothing are left out."""
    lines = sums.lines()
    if output.wants_json(as_json):
        output.print_json([_total_record(by, line, total) for line, total in lines])
        return
    if not lines:
        click.echo("Totals: none")
    for number, asset in enumerate(sorted({(line.network, line.asset) for line, _ in lines})):
        rows = [_total_row(by, line, total) for line, total in lines if (line.network, line.asset) == asset]
        click.echo(("\n" if number else "") + asset_name(*asset))
        _columns(rows, [name for name in rows[0] if any(row[name] != _NOTHING for row in rows)])


def _short(sale: Sale) -> dict[str, str]:
    return {
        "id": sale.id,
        "claimed": iso(sale.created_s),
        "offer": output.printable(sale.offer),
        "payer": spelled(sale.key.payer),
        "amount": amount_text(sale.authorized_atomic, known_asset(sale.key.network, sale.key.asset)),
        "state": sale.state.value,
        "delivery": sale.delivery.value,
    }


def _fitting(widths: dict[str, int], room: int) -> Sequence[str]:
    shown = set(_ALWAYS)
    for name in _WHERE_THERE_IS_ROOM:
        if sum(widths[one] + len(_GAP) for one in {*shown, name}) - len(_GAP) <= room:
            shown.add(name)
    return [name for name in _IN_ORDER if name in shown]


def _facts(sale: Sale) -> dict[str, str]:
    """Names are short, so that a transaction fits on a line of 80."""
    receipt = receipt_of(sale)
    asset = known_asset(receipt.network, receipt.asset)
    usage = receipt.usage
    return {
        "id": receipt.id,
        "created": iso(receipt.created_s),
        "updated": iso(receipt.updated_s),
        "offer": receipt.offer,
        "model": receipt.model,
        "payer": spelled(receipt.payer),
        "pay to": spelled(receipt.pay_to),
        "asset": f"{asset.symbol} ({spelled(receipt.asset)})" if asset else spelled(receipt.asset),
        "network": f"{asset.network.name} ({receipt.network})" if asset else receipt.network,
        "authorized": _exact(receipt.authorized_atomic, asset),
        "settled": "unknown" if receipt.settled_atomic is None else _exact(receipt.settled_atomic, asset),
        "state": receipt.state.value,
        "delivery": receipt.delivery.value,
        "transaction": receipt.transaction or "none",
        "log index": "unknown" if receipt.log_index is None else str(receipt.log_index),
        "reason": receipt.reason or "none",
        "tokens": f"{_count(usage.input_tokens)} in, {_count(usage.output_tokens)} out",
    }


def _exact(amount_atomic: int, asset: Asset | None) -> str:
    shown = amount_text(amount_atomic, asset)
    return shown if asset is None else f"{shown} ({amount_atomic} atomic)"


def _count(number: int | None) -> str:
    return "unknown" if number is None else str(number)


def _name(by: str, line: Line) -> str:
    return spelled(line.name) if by in (By.PAYER, By.ASSET) else line.name


def _total_record(by: str, line: Line, total: Total) -> dict[str, object]:
    asset = known_asset(line.network, line.asset)
    record: dict[str, object] = {by: _name(by, line), "network": line.network, "asset": spelled(line.asset)}
    record |= {"symbol": asset.symbol if asset else None, "sales": total.count}
    for column in Column:
        amount_atomic = total.amounts_atomic.get(column, 0)
        record |= {
            f"{column}_count": total.counts.get(column, 0),
            f"{column}_atomic": str(amount_atomic),
            column.value: decimals_of(amount_atomic, asset),
        }
    return record


def _total_row(by: str, line: Line, total: Total) -> dict[str, str]:
    asset = known_asset(line.network, line.asset)
    row: dict[str, str] = {} if by == By.ASSET else {by: output.printable(_name(by, line))}
    row["sales"] = str(total.count)
    for column in Column:
        count, amount_atomic = total.counts.get(column, 0), total.amounts_atomic.get(column, 0)
        row[column.value] = f"{decimals_of(amount_atomic, asset) or amount_atomic} ({count})" if count else _NOTHING
    return row


def _widths(rows: Sequence[dict[str, str]]) -> dict[str, int]:
    return {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}


def _columns(rows: Sequence[dict[str, str]], names: Sequence[str]) -> None:
    widths = _widths(rows)
    for row in ({name: name for name in names}, *rows):
        click.echo(_GAP.join(row[name].ljust(widths[name]) for name in names).rstrip())
