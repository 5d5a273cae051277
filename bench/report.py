"""The tables that a run prints. A ratio compares with another row of the same run; nothing is written anywhere."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from rich.console import Console
from rich.table import Table as RichTable

MISSING = "–"


@dataclass(frozen=True, slots=True)
class Table:
    """One part's figures, as text."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    notes: Sequence[str] = ()

    def show(self, console: Console) -> None:
        """Print it, first column to the left."""
        table = RichTable(title=self.title, title_justify="left", title_style="bold")
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="right" if number else "left")
        for row in self.rows:
            table.add_row(*row)
        console.print()
        console.print(table)
        for note in self.notes:
            console.print(note, style="dim")


def number(value: float | None, digits: int = 0) -> str:
    """A figure, or a dash for one that was not measured."""
    return MISSING if value is None else f"{value:,.{digits}f}"


def ratio(value: float | None, other: float | None) -> str:
    """How many times another figure this one is."""
    return MISSING if value is None or not other else f"{value / other:.2f}×"


def middle(values: Sequence[float]) -> float | None:
    """The median, None of nothing."""
    return median(values) if values else None


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of all lie, by nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
