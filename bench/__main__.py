"""`python -m bench [--only PART,…]`: measure the data path on this machine and print the tables."""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from bench import handover, ledgers, memory, micro, plain, recovery, refusals, settlements, sse
from bench.chain import anvil_path
from bench.machine import allow_many_files, can_pin, describe
from bench.nginx import nginx_path
from bench.wrk import wrk_path

PARTS = {
    "micro": micro.measure,
    "ledgers": ledgers.measure,
    "refusals": refusals.measure,
    "plain": plain.measure,
    "sse": sse.measure,
    "memory": memory.measure,
    "handover": handover.measure,
    "settlements": settlements.measure,
    "recovery": recovery.measure,
}
NEEDED = {
    "refusals": ("nginx", "wrk"),
    "plain": ("nginx", "wrk"),
    "sse": ("nginx",),
    "memory": ("nginx",),
    "handover": ("nginx",),
    "settlements": ("anvil",),
}
WHERE = {"nginx": nginx_path, "wrk": wrk_path, "anvil": anvil_path}


def main() -> None:
    """Run the parts that were asked for, in order."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    allow_many_files()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that children and files go with it
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="obol-bench-", dir=_folder()) as name:
        folder = Path(name)
        console.print(describe(folder))
        if not can_pin():
            console.print("No core can be kept for the measured program here: figures are noisier.", style="yellow")
        for part in _wanted():
            missing = [program for program in NEEDED.get(part, ()) if WHERE[program]() is None]
            if missing:
                console.print(f"{part}: skipped, needs {' and '.join(missing)}. {_install(missing)}", style="yellow")
                continue
            (folder / part).mkdir()
            with console.status(part) as status:
                tables = PARTS[part](folder / part, lambda what: _say(console, status.update, what, started_s))
            for table in tables:
                table.show(console)
    console.print(f"\n{time.monotonic() - started_s:.0f} s in all. Compare only what is in one run; trust ratios.")


def _wanted() -> list[str]:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", metavar="PART,…", help=f"some of: {', '.join(PARTS)} (default: all)")
    only = parser.parse_args().only
    wanted = only.split(",") if only else list(PARTS)
    unknown = [part for part in wanted if part not in PARTS]
    if unknown:
        parser.error(f"--only: there is no part {unknown[0]!r}; the parts are {', '.join(PARTS)}")
    return wanted


def _say(console: Console, update: Callable[[str], None], what: str, started_s: float) -> None:
    """On a terminal the line moves; elsewhere each step is a line of its own."""
    if console.is_terminal:
        update(what)
    else:
        console.print(f"{time.monotonic() - started_s:5.0f} s  {what}", style="dim")


def _install(missing: list[str]) -> str:
    if "anvil" in missing:
        return "Install it with: make components"
    tool = "brew install" if sys.platform == "darwin" else "sudo apt-get install"
    return f"Install it with: {tool} {' '.join(missing)}"


def _folder() -> str | None:
    """On a real disk where there is one: the usual place of temporary files may be memory, where fsync is free."""
    return "/var/tmp" if Path("/var/tmp").is_dir() else None


if __name__ == "__main__":
    main()
