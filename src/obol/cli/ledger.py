"""`obol ledger`: look after the ledger while gateways run on it."""

from pathlib import Path

import click

from obol.cli import output
from obol.cli.exit_codes import ExitCode
from obol.cli.ledger_file import LedgerPlace, existing_ledger_file, ledger_options, open_existing_ledger, sales_of


@click.group()
def ledger() -> None:
    """Check the ledger, and copy it while it is in use."""


@ledger.command()
@ledger_options
@output.json_option
def check(place: LedgerPlace, as_json: bool) -> None:
    """Look for what cannot be true: damage of the file, and sales that contradict themselves or each other.

    Exit code 8 and a list when there is any. Nothing is repaired.
    """
    from obol.cli.runtime import run_async

    count, flaws = run_async(_check(place))
    if output.wants_json(as_json):
        output.print_json({"sales": count, "flaws": flaws})
    elif flaws:
        output.show_table(flaws, title="Flaws")
    else:
        click.echo(f"Sound: {count} sales, no flaws.")
    if flaws:
        hint = "Keep a copy of the files before anything else: `obol ledger backup`."
        raise output.CommandError(f"the ledger has {len(flaws)} flaws", code=ExitCode.UNSOUND, hint=hint)


@ledger.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@ledger_options
@output.json_option
def backup(file: Path, place: LedgerPlace, as_json: bool) -> None:
    """Copy the ledger to the new FILE (0600), as it is at one instant, and check the copy.

    Gateways may run. FILE holds signed payments: keep it as safe as the ledger.
    """
    from obol.adapters.ledger_backup import back_up
    from obol.errors import SettingsError

    if place.url is not None:
        raise SettingsError("--ledger-env", "use pg_dump to copy a shared ledger")
    source = existing_ledger_file(place)
    written = back_up(source, file)
    facts = {"file": str(file), "sales": written.sales, "bytes": written.size_bytes}
    output.show(facts, title="Backup", as_json=as_json)


async def _check(place: LedgerPlace) -> tuple[int, list[dict[str, str]]]:
    from obol.core.integrity import Checker
    from obol.core.ledger import EVERY_SALE

    checker, count = Checker(), 0
    async with open_existing_ledger(place) as opened:
        flaws = [{"sale": "", "flaw": text} for text in await opened.flaws()]
        async for sale in sales_of(opened, EVERY_SALE):
            count += 1
            flaws += [{"sale": flaw.sale, "flaw": flaw.text} for flaw in checker.check(sale)]
    return count, flaws
