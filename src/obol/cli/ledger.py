"""`obol ledger`: look after the ledger while gateways run on it."""

from pathlib import Path

import click

from obol.cli import output
from obol.cli.exit_codes import ExitCode
from obol.cli.ledger_file import LedgerPlace, existing_ledger_file, ledger_options


@click.group()
def ledger() -> None:
    """Check the ledger, and copy it while it is in use."""


@ledger.command(short_help="Look for what cannot be true.")
@ledger_options
@output.json_option
def check(place: LedgerPlace, as_json: bool) -> None:
    """Look for what cannot be true: damage of the file, and sales that contradict themselves, each other, or the
    payments that they were claimed with.

    Exit code 8 and a list when there is any. Nothing is repaired.
    """
    from obol.cli.ledger_check import check_ledger
    from obol.cli.runtime import run_async

    checked = run_async(check_ledger(place))
    if output.wants_json(as_json):
        output.print_json({"sales": checked.sales, "flaws": checked.flaws})
    elif not checked.flaws:
        click.echo(f"Sound: {checked.sales} {'sale' if checked.sales == 1 else 'sales'}, no flaws.")
    else:
        for flaw in checked.flaws:
            click.echo(output.printable(f"{flaw['sale'] or 'the ledger'}: {flaw['flaw']}"))
    if checked.flaws:
        count = "1 flaw" if len(checked.flaws) == 1 else f"{len(checked.flaws)} flaws"
        hint = "Keep a copy of its files before anything else."
        raise output.CommandError(f"the ledger has {count}", code=ExitCode.UNSOUND, hint=hint)


@ledger.command(short_help="Copy the ledger to a new file.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@ledger_options
@output.json_option
def backup(file: Path, place: LedgerPlace, as_json: bool) -> None:
    """Copy the ledger to the new FILE (0600), as it is at one instant.

    Gateways may run. The copy is whole when it is there; what its sales say is not looked at (`obol ledger check`
    does). FILE holds signed payments: keep it as safe as the ledger.
    """
    from obol.adapters.ledger_backup import back_up
    from obol.errors import SettingsError

    if place.url is not None:
        raise SettingsError("--ledger-env", "use pg_dump to copy a shared ledger")
    source = existing_ledger_file(place)
    written = back_up(source, file)
    facts = {"file": str(file), "sales": written.sales, "bytes": written.size_bytes}
    output.show(facts, title="Backup", as_json=as_json)
