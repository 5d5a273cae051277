"""Resident memory: idle after the start, and with a thousand streams open."""

import time
from collections.abc import Callable
from pathlib import Path

from bench import nginx
from bench.machine import rss_mib
from bench.payments import Wallet
from bench.report import Table, number, ratio
from bench.streams import open_streams, stream_upstream
from bench.subjects import DIRECT, FREE, NGINX, OFFICIAL, Subject, subjects

STREAMS = 1000
INTERVAL_S = 2.0


def measure(folder: Path, say: Callable[[str], None]) -> list[Table]:
    """Idle is after one quote, which loads whatever is loaded late."""
    idle: dict[str, float] = {}
    busy: dict[str, float] = {}
    wallet = Wallet()
    with (
        nginx.neighbours(folder) as facilitator,
        stream_upstream(folder) as upstream,
        subjects(upstream, facilitator, folder / "memory") as all_subjects,
    ):
        measured = [subject for subject in all_subjects if subject.name not in (DIRECT, FREE)]
        for subject in measured:
            idle[subject.name] = rss_mib(subject.program.pid)
            if subject.name != OFFICIAL:
                say(f"{STREAMS} open streams: {subject.name}")
                busy[subject.name] = _busy_mib(subject, wallet)
    columns = ("seller", "RSS idle MiB", "× nginx", f"RSS MiB, {STREAMS} open streams", "× nginx")
    table = Table("Memory", columns)
    for name, mib in idle.items():
        loaded = busy.get(name)
        table.rows.append(
            (name, number(mib, 1), ratio(mib, idle[NGINX]), number(loaded, 1), ratio(loaded, busy[NGINX]))
        )
    return [table]


def _busy_mib(subject: Subject, wallet: Wallet) -> float:
    payments = wallet.headers(subject.requirements, STREAMS) if subject.requirements else [None] * STREAMS
    with open_streams(subject.program, payments, interval_s=INTERVAL_S):
        time.sleep(1.0)
        return rss_mib(subject.program.pid)
