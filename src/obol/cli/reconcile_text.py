"""What `obol reconcile` prints."""

from collections.abc import Iterator

import click

from obol.cli import output
from obol.cli.receipt_rows import amount_text, asset_name, decimals_of, iso, known_asset, spelled
from obol.cli.reconcile_accounts import Account, AccountReports
from obol.core.networks import Asset
from obol.core.reconciliation_report import Finding, Kind, Report

_MEANING = {
    Kind.MATCHED: "paid on both sides",
    Kind.UNRECORDED: "on the chain, and the sale does not say paid",
    Kind.WRONG: "on both sides, and not as the sale says",
    Kind.MISSING: "the sale says paid, the chain does not",
    Kind.UNEXPLAINED: "on the chain, and no sale explains it",
    Kind.KNOWN: "named in the file of --known",
    Kind.NOT_DUE: "the sale says paid, later than the chain was read",
}


def show_reports(reports: AccountReports, *, as_json: bool) -> None:
    """One JSON array, or for people the sums of each account and what is to be looked into."""
    if output.wants_json(as_json):
        output.print_json([_record(account, report) for account, report in reports])
        return
    for account, report in reports:
        asset = known_asset(account.network, account.asset)
        output.show_table(list(_sums(report, asset)), title=asset_name(account.network, account.asset))
        if report.newly_recorded:
            click.echo(f"Recorded now: {len(report.newly_recorded)}")
        for finding in report.newly_recorded:
            click.echo("\n" + "\n".join(_lines(finding, asset)) + "\n")
        alarms = [finding for finding in report.findings if finding.is_alarm]
        click.echo(f"To look into: {len(alarms)}" if alarms else "Every unit is explained.")
        for finding in alarms:
            click.echo("\n" + "\n".join(_lines(finding, asset)))


def _sums(report: Report, asset: Asset | None) -> Iterator[dict[str, object]]:
    """What there is any of, and what matches in any case."""
    for kind in Kind:
        if not report.counts[kind] and kind is not Kind.MATCHED:
            continue
        yield {
            "what": kind.value,
            "count": report.counts[kind],
            "ledger": amount_text(report.recorded_atomic[kind], asset),
            "chain": amount_text(report.transferred_atomic[kind], asset),
            "meaning": _MEANING[kind],
        }
    sums = {"ledger": amount_text(report.ledger_atomic, asset), "chain": amount_text(report.chain_atomic, asset)}
    yield {"what": "total", "count": "", **sums, "meaning": ""}


def _lines(finding: Finding, asset: Asset | None) -> Iterator[str]:
    """Short lines: hashes and ids are copied from them, and a transfer as the file of `--known` wants it."""
    yield f"{finding.kind}: {_MEANING[finding.kind]}"
    if finding.transaction:
        yield f"  {finding.transaction}" + ("" if finding.log_index is None else f":{finding.log_index}")
    when = [f"block {finding.block}"] if finding.block is not None else []
    when += [iso(finding.time_s)] if finding.time_s is not None else []
    if when:
        yield f"  {', '.join(when)}"
    sides = {"ledger": finding.recorded_atomic, "chain": finding.transferred_atomic}
    yield "  " + ", ".join(f"{side} {amount_text(n, asset)}" for side, n in sides.items() if n is not None)
    yield f"  payer {spelled(finding.payer)}"
    if finding.sale:
        yield f"  sale {finding.sale}, {finding.state}"


def _record(account: Account, report: Report) -> dict[str, object]:
    asset = known_asset(account.network, account.asset)
    return {
        "network": account.network,
        "asset": spelled(account.asset),
        "symbol": asset.symbol if asset else None,
        "pay_to": [spelled(pay_to) for pay_to in sorted(account.pay_tos)],
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
        "recorded": [_finding(finding) for finding in report.newly_recorded],
    }


def _finding(finding: Finding) -> dict[str, object]:
    recorded, transferred = finding.recorded_atomic, finding.transferred_atomic
    return {
        "what": finding.kind.value,
        "alarm": finding.is_alarm,
        "sale": finding.sale,
        "state": finding.state,
        "payer": spelled(finding.payer),
        "ledger_atomic": None if recorded is None else str(recorded),
        "chain_atomic": None if transferred is None else str(transferred),
        "transaction": finding.transaction,
        "log_index": finding.log_index,
        "block": finding.block,
        "time": None if finding.time_s is None else iso(finding.time_s),
    }
