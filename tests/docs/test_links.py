from pathlib import Path

import pytest

from tests.docs.pages import DOCS, ROOT, anchors, links, pages

SHELL = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]


def is_relative(link: str) -> bool:
    return not link.startswith(("http://", "https://", "mailto:"))


def target_of(page: Path, link: str) -> tuple[Path, str]:
    path, _, anchor = link.partition("#")
    return ((page.parent / path).resolve() if path else page), anchor


def flaw_of(page: Path, link: str) -> str:
    target, anchor = target_of(page, link)
    if not target.exists():
        return f"{link}: no such file"
    if anchor and anchor not in anchors(target.read_text(encoding="utf-8")):
        return f"{link}: no such heading"
    return ""


@pytest.mark.parametrize("page", [*pages(), *SHELL], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_resolves(page: Path) -> None:
    found = [link for link in links(page.read_text(encoding="utf-8")) if is_relative(link)]
    assert [flaw for link in found if (flaw := flaw_of(page, link))] == []


def test_every_page_is_reachable_from_the_index() -> None:
    reached: set[Path] = set()
    ahead = [DOCS / "index.md"]
    while ahead:
        page = ahead.pop()
        if page in reached or page.suffix != ".md" or DOCS not in page.parents:
            continue
        reached.add(page)
        ahead += [target_of(page, link)[0] for link in links(page.read_text(encoding="utf-8")) if is_relative(link)]
    assert reached == set(pages())


def test_the_readme_leads_to_the_index() -> None:
    targets = [target_of(ROOT / "README.md", link)[0] for link in links((ROOT / "README.md").read_text())]
    assert DOCS / "index.md" in targets
