"""Reading the documentation's Markdown: pages, fenced blocks with their marker comments, tables, links."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

_BLOCK = re.compile(
    r"(?:^<!-- (?P<marker>.+?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CELL_BORDER = re.compile(r"(?<!\\)\|")


@dataclass(frozen=True)
class Block:
    """A fenced block; `marker` is the comment on the line above it, or ""."""

    language: str
    marker: str
    text: str


def pages() -> list[Path]:
    """Every page of the documentation."""
    return sorted(DOCS.rglob("*.md"))


def read(page: str) -> str:
    """The text of a page, by its path in `docs`."""
    return (DOCS / page).read_text(encoding="utf-8")


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return [Block(found["language"], found["marker"] or "", found["text"]) for found in _BLOCK.finditer(text)]


def block(page: str, marker: str) -> str:
    """The text of the one block with that marker."""
    (found,) = [block.text for block in blocks(read(page)) if block.marker == marker]
    return found


def links(text: str) -> list[str]:
    """The targets of links, outside of fenced blocks."""
    return _LINK.findall(_BLOCK.sub("", text))


def rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head; code marks are taken off cells that are code."""
    below = text.split(f"\n{heading}\n", 1)[1]
    table: list[str] = []
    for line in below.splitlines():
        if line.startswith("|"):
            table.append(line)
        elif table:
            break
    return [[_plain(cell) for cell in _CELL_BORDER.split(line)[1:-1]] for line in table[2:]]


def anchors(text: str) -> set[str]:
    """What can be linked to within a page, as GitHub makes it of headings."""
    headings = re.findall(r"^#+ (.+)$", _BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _plain(cell: str) -> str:
    stripped = cell.strip()
    is_code = stripped.startswith("`") and stripped.endswith("`") and stripped.count("`") == 2
    return stripped[1:-1] if is_code else stripped
