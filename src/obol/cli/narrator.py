"""Telling a person what a long command is doing: steps with a spinner on a terminal, plain lines when piped."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text


class Narrator:
    """Writes to `console`; live parts only where it is a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def step(self, doing: str, done: str) -> Iterator[None]:
        """Show `doing` while the block runs, and `done` after it ended well."""
        if self._console.is_terminal:
            with self._console.status(Text(f"{doing} …")):
                yield
        else:
            self.say(f"… {doing}")
            yield
        self.say(f"✓ {done}", style="green")

    def heading(self, text: str) -> None:
        """Begin a chapter."""
        self._console.print()
        self._console.print(Text(text, style="bold"))

    def say(self, text: str, *, style: str = "") -> None:
        """One line."""
        self._console.print(Text(text, style=style), soft_wrap=True)

    def stream(self, text: str) -> None:
        """Text as it arrives, without a line end."""
        self._console.print(Text(text, style="cyan"), end="", soft_wrap=True)

    def end_stream(self) -> None:
        """End the line of a stream."""
        self._console.print()

    def facts(self, title: str, facts: Mapping[str, object]) -> None:
        """Names and values under a title."""
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="bold", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value in facts.items():
            grid.add_row(name, Text(str(value)))
        if self._console.is_terminal:
            self._console.print(Panel(grid, title=title, title_align="left", expand=False))
        else:
            self.say(title)
            for name, value in facts.items():
                self.say(f"  {name}: {value}")
