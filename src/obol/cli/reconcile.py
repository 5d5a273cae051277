"""`obol reconcile`: hold the ledger against the chain, to the last atomic unit."""

from collections.abc import Collection
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import click

from obol.cli import output
from obol.cli.exit_codes import ExitCode
from obol.cli.ledger_file import LedgerPlace, ledger_options, open_existing_ledger, sales_of
from obol.cli.receipt_rows import amount_text, decimals_of, known_asset
from obol.cli.sale_filter import asset_address, caip2, parse_when
from obol.core.reconciliation import Finding, Kind, Reconciler, Report
from obol.errors import SettingsError

if TYPE_CHECKING:
    from obol.cli.reconcile_sources import Source
    from obol.core.ledger import Ledger, SaleFilter

_MEANING = {
    Kind.MATCHED: "paid on both sides",
    Kind.UNRECORDED: "on the chain, and the sale does not say paid",
    Kind.WRONG: "on both sides, with another amount or payer",
    Kind.MISSING: "the sale says paid, the chain does not",
    Kind.UNEXPLAINED: "on the chain, and no sale explains it",
    Kind.NOT_DUE: "the sale says paid, later than the chain was read",
}


@dataclass(slots=True)
class _Account:
    """The sales of one asset: whom they paid, and since when."""

    network: str
    asset: str
    since_s: float
    pay_tos: set[str] = field(default_factory=set)


@click.command()
@click.option("--rpc", envvar="OBOL_RPC", metavar="URL[,URL…]", help="Nodes of the chain.")
@click.option("--pay-to", "pay_tos", multiple=True, metavar="0x…", help="Only this address (repeatable).")
@click.option("--since", metavar="WHEN", help="Only from then on: an ISO date or time (UTC), or an age like 7d.")
@click.option("--network", metavar="NAME", help="On this network: name or CAIP-2 id.")
@click.option("--asset", metavar="usdc|0x…", help="Paid in this token; a symbol needs --network.")
@click.option(
    "--confirmations",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Blocks, its own included, until a transfer counts.",
)
@ledger_options
@output.json_option
def reconcile(  # noqa: PLR0913 - the options
    rpc: str | None,
    pay_tos: tuple[str, ...],
    since: str | None,
    network: str | None,
    asset: str | None,
    confirmations: int,
    place: LedgerPlace,
    as_json: bool,
) -> None:
    """Hold the ledger against the chain: which transfer paid which sale, and what is left over on either side.

    Exit code 4 and a list when not every unit is explained. Every transfer of the token to a seller's address counts,
    so give the gateway an address of its own.
    """
    from obol.adapters.clock import SystemClock
    from obol.cli.reconcile_sources import chain_source, devnet_source
    from obol.cli.runtime import run_async
    from obol.core.ledger import SaleFilter

    urls = [url.strip() for url in (rpc or "").split(",") if url.strip()]
    if place.devnet == bool(urls):
        raise SettingsError("--rpc", "give it, or --devnet, and not both: the place where the money moved")
    wanted = caip2(network) if network else None
    which = SaleFilter(
        since_s=parse_when(since, SystemClock().now_s(), field="--since") if since else None,
        network=wanted,
        asset=asset_address(asset, network) if asset else None,
    )
    only = frozenset(address.lower() for address in pay_tos)
    source = devnet_source(place.data_dir) if place.devnet else chain_source(urls, wanted, confirmations)
    reports = run_async(_reconcile(source, place, which, only))
    _show(reports, as_json=as_json)
    if not all(report.is_explained for _, report in reports):
        raise output.CommandError("not every unit is explained", code=ExitCode.REFUSED)


async def _reconcile(
    opening: "AbstractAsyncContextManager[Source]",
    place: LedgerPlace,
    which: "SaleFilter",
    only: Collection[str],
) -> list[tuple[_Account, Report]]:
    async with open_existing_ledger(place) as ledger, opening as source:
        if source.network is not None:
            which = replace(which, network=source.network)
        accounts = await _accounts(ledger, which, only)
        return [(account, await _account_for(account, source, ledger, which.since_s)) for account in accounts]


async def _accounts(ledger: "Ledger", which: "SaleFilter", only: Collection[str]) -> list[_Account]:
    """What there is to look at, by the sales that fit."""
    accounts: dict[tuple[str, str], _Account] = {}
    async for sale in sales_of(ledger, which):
        pay_to = sale.pay_to.lower()
        if only and pay_to not in only:
            continue
        key = (sale.key.network, sale.key.asset)
        account = accounts.setdefault(key, _Account(*key, since_s=sale.created_s))
        account.since_s = min(account.since_s, sale.created_s)
        account.pay_tos.add(pay_to)
    for account in accounts.values():
        account.since_s = account.since_s if which.since_s is None else which.since_s
    return [accounts[key] for key in sorted(accounts)]


async def _account_for(account: _Account, source: "Source", ledger: "Ledger", since_s: float | None) -> Report:
    """The chain first: whatever it shows by then has its sale in the ledger."""
    from obol.core.ledger import SaleFilter

    reading = await source.read(account.network, account.asset, account.pay_tos, account.since_s)
    reconciler = Reconciler(reading.transfers, due_before_s=reading.until_s, since_s=since_s)
    async for sale in sales_of(ledger, SaleFilter(network=account.network, asset=account.asset)):
        if sale.pay_to.lower() in account.pay_tos:
            reconciler.add(sale)
    return reconciler.report()


def _show(reports: list[tuple[_Account, Report]], *, as_json: bool) -> None:
    if output.wants_json(as_json):
        output.print_json([_record(account, report) for account, report in reports])
        return
    if not reports:
        click.echo("No sales to reconcile.")
    for account, report in reports:
        asset = known_asset(account.network, account.asset)
        title = f"{asset.symbol if asset else account.asset} on {asset.network.name if asset else account.network}"
        rows = [
            {
                "what": kind.value,
                "count": report.counts[kind],
                "ledger": amount_text(report.recorded_atomic[kind], asset),
                "chain": amount_text(report.transferred_atomic[kind], asset),
                "meaning": _MEANING[kind],
            }
            for kind in Kind
        ]
        sums = {"ledger": amount_text(report.ledger_atomic, asset), "chain": amount_text(report.chain_atomic, asset)}
        output.show_table([*rows, {"what": "total", "count": "", **sums, "meaning": ""}], title=title)
        if report.findings:
            output.show_table([_finding(finding) for finding in report.findings], title="To look into")


def _record(account: _Account, report: Report) -> dict[str, object]:
    asset = known_asset(account.network, account.asset)
    return {
        "network": account.network,
        "asset": account.asset,
        "symbol": asset.symbol if asset else None,
        "pay_to": sorted(account.pay_tos),
        "explained": report.is_explained,
        "ledger_atomic": str(report.ledger_atomic),
        "ledger": decimals_of(report.ledger_atomic, asset),
        "chain_atomic": str(report.chain_atomic),
        "chain": decimals_of(report.chain_atomic, asset),
        **{
            kind.value: {
                "count": report.counts[kind],
                "ledger_atomic": str(report.recorded_atomic[kind]),
                "chain_atomic": str(report.transferred_atomic[kind]),
            }
            for kind in Kind
        },
        "findings": [_finding(finding) for finding in report.findings],
    }


def _finding(finding: Finding) -> dict[str, object]:
    recorded, transferred = finding.recorded_atomic, finding.transferred_atomic
    return {
        "what": finding.kind.value,
        "sale": finding.sale,
        "state": finding.state,
        "payer": finding.payer,
        "ledger_atomic": "" if recorded is None else str(recorded),
        "chain_atomic": "" if transferred is None else str(transferred),
        "transaction": finding.transaction,
    }
