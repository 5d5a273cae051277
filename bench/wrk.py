"""Load by wrk from the other core, and the CPU that the measured program used meanwhile."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from bench.machine import OTHERS_CORE, cpu_s, on_core
from bench.offer import PATH
from bench.programs import Program

_SCRIPT = Path(__file__).with_name("load.lua")


@dataclass(frozen=True, slots=True)
class Load:
    """What one run saw. CPU of the measured program in microseconds per request."""

    requests: int
    per_s: float
    cpu_us: float
    p50_us: float
    p99_us: float
    bad_status: int


def wrk_path() -> str | None:
    """The program."""
    return shutil.which("wrk")


def load(
    target: Program, body: bytes, folder: Path, *, connections: int, seconds: int, payments: list[str] | None = None
) -> Load:
    """Send the same body over and over. Raises `RuntimeError` when connections break."""
    arguments = [_written(folder / "body.json", body)]
    if payments is not None:
        arguments.append(_written(folder / "payments.txt", "\n".join(payments).encode()))
    command = [wrk_path() or "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", str(_SCRIPT)]
    before_s = cpu_s(target.pid)
    with on_core(OTHERS_CORE):
        output = subprocess.run(
            [*command, target.url + PATH, "--", *arguments], check=True, capture_output=True, text=True, timeout=60
        ).stdout
    used_s = cpu_s(target.pid) - before_s
    figures = json.loads(next(line for line in output.splitlines() if line.startswith("FIGURES")).partition(" ")[2])
    if figures["broken"] or not figures["requests"]:
        raise RuntimeError(f"connections broke under load: {figures}")
    return Load(
        requests=figures["requests"],
        per_s=figures["requests"] / figures["duration_us"] * 1e6,
        cpu_us=used_s / figures["requests"] * 1e6,
        p50_us=figures["p50_us"],
        p99_us=figures["p99_us"],
        bad_status=figures["bad_status"],
    )


def _written(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)
