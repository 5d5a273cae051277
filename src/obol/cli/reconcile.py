"""`obol reconcile`: hold the ledger against the chain, to the last atomic unit."""

from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from obol.cli import output
from obol.cli.exit_codes import ExitCode
from obol.cli.ledger_file import LedgerPlace, ledger_options, open_existing_ledger
from obol.cli.sale_filter import address, asset_address, caip2, parse_when
from obol.errors import SettingsError

if TYPE_CHECKING:
    from obol.cli.reconcile_accounts import AccountReports, Wanted
    from obol.cli.reconcile_sources import Source
    from obol.core.reconciliation_report import Report

_RECORD_HINT = "A sale that was refused is paid all the same: --record makes it owed, or settled if it was handed over."


@click.command(short_help="Hold the ledger against the chain.")
@click.option("--rpc", envvar="OBOL_RPC", metavar="URL[,URL…]", help="Nodes of the chain (or OBOL_RPC).")
@click.option(
    "--pay-to", "pay_tos", multiple=True, metavar="0x…", help="Only this address, with or without sales (repeatable)."
)
@click.option("--since", metavar="WHEN", help="Read the chain from then on: an ISO date or time (UTC), or an age: 7d.")
@click.option("--network", metavar="NAME", help="On this network: name or CAIP-2 id.")
@click.option("--asset", metavar="usdc|0x…", help="Paid in this token; a symbol needs --network.")
@click.option(
    "--known",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Transactions that you have looked into: TRANSACTION[:LOGINDEX] a line.",
)
@click.option(
    "--confirmations",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Blocks, its own included, until a transfer counts.",
)
@click.option(
    "--record",
    is_flag=True,
    help="Write down what the chain proves: a refused sale whose own payment moved becomes owed, or settled.",
)
@ledger_options
@output.json_option
def reconcile(  # noqa: PLR0913 - the options
    rpc: str | None,
    pay_tos: tuple[str, ...],
    since: str | None,
    network: str | None,
    asset: str | None,
    known: Path | None,
    confirmations: int,
    record: bool,
    place: LedgerPlace,
    as_json: bool,
) -> None:
    """Hold the ledger against the chain: which transfer paid which sale, and what is left over on either side.

    Exit code 4 and a list when not every unit is explained. Every transfer of the token to a seller's address counts,
    so give the gateway an address of its own; what you have looked into, --known takes out of the count.

    The ledger is not changed, but by --record. That writes state, transaction, log index and amount of each sale that
    is settle_failed and was paid all the same: owed if nothing was handed over, so that the same payment, presented
    again, is served once; else settled. Gateways may run.
    """
    from obol.adapters.clock import SystemClock
    from obol.cli.known_transfers import read_known
    from obol.cli.reconcile_accounts import Wanted
    from obol.cli.reconcile_sources import chain_source, devnet_source
    from obol.cli.reconcile_text import show_reports
    from obol.cli.runtime import run_async
    from obol.core.reconciliation_report import NOTHING_KNOWN

    urls = [url.strip() for url in (rpc or "").split(",") if url.strip()]
    if place.devnet == bool(urls):
        raise SettingsError(
            "--rpc", "give it (or OBOL_RPC), or --devnet, and not both: the place where the money moved"
        )
    wanted = Wanted(
        pay_tos=frozenset(address(text, "--pay-to") for text in pay_tos),
        network=caip2(network) if network else None,
        asset=asset_address(asset, network) if asset else None,
        since_s=parse_when(since, SystemClock().now_s(), field="--since") if since else None,
        known=read_known(known) if known else NOTHING_KNOWN,
        is_recording=record,
    )
    source = devnet_source(place.data_dir) if place.devnet else chain_source(urls, wanted.network, confirmations)
    reports = run_async(_reconcile(source, place, wanted))
    show_reports(reports, as_json=as_json)
    if not reports:
        output.note("no sale to reconcile is in the ledger; --pay-to 0x… reads what came in all the same")
    if not all(report.is_explained for _, report in reports):
        hint = "" if record or not any(_is_refused_and_paid(report) for _, report in reports) else _RECORD_HINT
        raise output.CommandError("not every unit is explained", code=ExitCode.REFUSED, hint=hint)


def _is_refused_and_paid(report: "Report") -> bool:
    return any(finding.is_recordable for finding in report.findings)


async def _reconcile(
    opening: "AbstractAsyncContextManager[Source]", place: LedgerPlace, wanted: "Wanted"
) -> "AccountReports":
    from obol.cli.reconcile_accounts import find_accounts, reconcile_account

    async with open_existing_ledger(place) as ledger, opening as source:
        wanted = replace(wanted, network=source.network or wanted.network)
        accounts = await find_accounts(ledger, wanted)
        return [(account, await reconcile_account(account, source, ledger, wanted)) for account in accounts]
