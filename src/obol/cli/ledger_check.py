"""What `obol ledger check` finds: damage, rows that are no sales, and sales that contradict something."""

from dataclasses import dataclass, field
from pathlib import Path

from obol.cli.ledger_file import LedgerPlace, existing_ledger_file, open_existing_ledger, sales_of
from obol.cli.output import CommandError
from obol.core.integrity import Checker
from obol.core.ledger import EVERY_SALE
from obol.core.sale import Sale
from obol.x402.claimed_payment import payment_flaws


@dataclass(slots=True)
class Checked:
    """How many sales there are, and what is wrong: the sale's id, "" for the ledger as a whole, and words."""

    sales: int = 0
    flaws: list[dict[str, str]] = field(default_factory=list)
    _checker: Checker = field(default_factory=Checker)

    def note(self, text: str, sale: str = "") -> None:
        self.flaws.append({"sale": sale, "flaw": text})

    def look_at(self, sale: Sale) -> None:
        for flaw in self._checker.check(sale):
            self.note(flaw.text, flaw.sale)
        for text in payment_flaws(sale):
            self.note(text, sale.id)


async def check_ledger(place: LedgerPlace) -> Checked:
    """Look at every sale of the ledger that is there. Raises `SettingsError` when there is none."""
    if place.url is None:
        return await _check_file(place, existing_ledger_file(place))
    checked = Checked()
    async with open_existing_ledger(place) as ledger:
        for text in await ledger.flaws():
            checked.note(text)
        try:
            async for sale in sales_of(ledger, EVERY_SALE):
                checked.sales += 1
                checked.look_at(sale)
        except CommandError:
            checked.note("a row is no sale, and those that follow were not looked at")
    return checked


async def _check_file(place: LedgerPlace, path: Path) -> Checked:
    from obol.adapters.ledger_sqlite_flaws import find_damage, read_rows

    checked = Checked()
    for text in find_damage(path):
        checked.note(f"the file is damaged: {text}")
    if not checked.flaws:
        async with open_existing_ledger(place):  # of another program, or of another version: that is refused
            pass
    for row in read_rows(path):
        checked.sales += bool(row.id)
        for text in row.flaws:
            checked.note(text, row.id)
        if row.sale is not None:
            checked.look_at(row.sale)
    return checked
