import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.docs.pages import ROOT, pages


def run(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=False)


def test_what_the_pages_repeat_of_the_code_is_current() -> None:
    checked = run(ROOT / "scripts" / "gen-docs", "--check")
    assert (checked.returncode, checked.stderr) == (0, "")


def test_an_outdated_page_is_named_and_mended(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    (tmp_path / "scripts").mkdir()
    script = Path(shutil.copy(ROOT / "scripts" / "gen-docs", tmp_path / "scripts"))
    page = tmp_path / "docs" / "reference" / "networks.md"
    current = page.read_text()
    page.write_text(current.replace("`base-sepolia`", "`base-utopia`"))
    checked = run(script, "--check")
    assert checked.returncode == 1
    assert "docs/reference/networks.md is out of date" in checked.stderr
    assert run(script).returncode == 0
    assert page.read_text() == current


def test_every_generated_region_is_there_once() -> None:
    regions = [name for page in pages() for name in re.findall(r"<!-- generated: (\S+) -->", page.read_text())]
    assert sorted(regions) == ["assets", "commands", "diagram", "networks", "states", "steps"]
