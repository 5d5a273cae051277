"""The counts of a matrix, printed when its module is through."""

import contextlib
from collections.abc import Iterator
from dataclasses import fields
from typing import Protocol, Self, TypeVar

import pytest


class Counted(Protocol):
    """A dataclass of sums."""

    def add(self, other: Self, /) -> None: ...


C = TypeVar("C", bound=Counted)


@contextlib.contextmanager
def printed(request: pytest.FixtureRequest, title: str, kind: type[C]) -> Iterator[dict[str, C]]:
    """Rows by name, to be filled."""
    rows: dict[str, C] = {}
    yield rows
    reporter = request.config.pluginmanager.getplugin("terminalreporter")
    capture = request.config.pluginmanager.getplugin("capturemanager")
    if reporter is None or capture is None or not rows:
        return
    with capture.global_and_fixture_disabled():
        reporter.write_line("\n" + _render(rows, title, kind))


def _render(rows: dict[str, C], title: str, kind: type[C]) -> str:
    """One line a row, and their sum."""
    total = kind()
    for counts in rows.values():
        total.add(counts)
    names = [each.name for each in fields(kind)]  # type: ignore[arg-type] # a protocol cannot ask for a dataclass
    lines = [title.ljust(34) + " | ".join(name.replace("_", " ") for name in names)]
    for row, counts in [*sorted(rows.items()), ("all", total)]:
        values = [str(getattr(counts, name)).rjust(len(name)) for name in names]
        lines.append(row.ljust(34) + " | ".join(values))
    return "\n".join(lines)
