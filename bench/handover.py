"""What it costs to write down that the first byte of a stream was handed over: paid streams with and without that."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench import nginx
from bench.machine import SUBJECT_CORE, cpu_s
from bench.payments import Wallet, quoted
from bench.programs import Program, free_port, running
from bench.report import Table, middle, number, percentile, ratio
from bench.streams import stream_upstream, ttft_s

STREAMS = {1: 60, 32: 320}
"""Streams of one round, by how many are open at a time."""
ROUNDS = 4
CHUNKS = 8
INTERVAL_S = 0.002


@dataclass(slots=True)
class Run:
    """One gateway's figures: CPU seconds per stream and wall seconds of each round, then what its ledger says."""

    program: Program
    figures: Path
    cpu_s: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    ttft_s: list[float] = field(default_factory=list)


def measure(folder: Path, say: Callable[[str], None]) -> list[Table]:
    """Rounds are interleaved, each kind of run with a gateway of its own."""
    wallet = Wallet()
    runs: dict[tuple[bool, int], Run] = {}
    with ExitStack() as stack:
        facilitator = stack.enter_context(nginx.neighbours(folder))
        upstream = stack.enter_context(stream_upstream(folder))
        for at_once in STREAMS:
            for records in (True, False):
                runs[records, at_once] = stack.enter_context(_gateway(records, at_once, upstream, facilitator, folder))
        for round_number in range(ROUNDS):
            for (records, at_once), run in runs.items():
                say(f"hand-over, round {round_number + 1}, {at_once} at once, {'with' if records else 'without'}")
                _round(run, wallet, at_once)
    return [_table(runs)]


@contextmanager
def _gateway(records_start: bool, at_once: int, upstream: Program, facilitator: Program, folder: Path) -> Iterator[Run]:
    port, here = free_port(), folder / f"{records_start}-{at_once}"
    figures = folder / f"{here.name}.json"
    told = {
        "port": port,
        "upstream": upstream.url,
        "facilitator": facilitator.url,
        "folder": str(here),
        "figures": str(figures),
        "records_start": records_start,
    }
    command = [sys.executable, "-m", "bench.counting_gateway", json.dumps(told)]
    with running(command, port=port, core=SUBJECT_CORE, log=folder / f"{here.name}.log") as program:
        yield Run(program, figures)


def _round(run: Run, wallet: Wallet, at_once: int) -> None:
    payments = wallet.headers(quoted(run.program), STREAMS[at_once])
    used_s, started_s = cpu_s(run.program.pid), time.perf_counter()
    run.ttft_s += ttft_s(run.program, payments, chunks=CHUNKS, interval_s=INTERVAL_S, at_once=at_once)
    run.wall_s.append(time.perf_counter() - started_s)
    time.sleep(0.1)  # what nobody waits for is recorded after the last byte
    run.cpu_s.append((cpu_s(run.program.pid) - used_s) / len(payments))


def _table(runs: dict[tuple[bool, int], Run]) -> Table:
    note = (
        f"{CHUNKS} chunks a stream, {INTERVAL_S * 1e3:.0f} ms apart. Durable: from asking until it is; the answer does "
        "not wait for it. Share: of all time that records of sales took. 'without' is not what is sold: a crash would "
        "leave a stream owed that was begun."
    )
    columns = ("first byte recorded, at once", "commits a stream", "CPU µs a stream", "× without", "streams/s")
    table = Table("The record of the hand-over", (*columns, "TTFT p50 ms", "durable p50 µs", "share"), notes=(note,))
    for (records, at_once), run in runs.items():
        ledger = json.loads(run.figures.read_text())
        streams = len(run.ttft_s)
        cpu_us = (middle(run.cpu_s) or 0.0) * 1e6
        started_s, all_s = ledger["started_s"], sum(ledger["started_s"]) + sum(ledger["others_s"])
        table.rows.append(
            (
                f"{'yes' if records else 'no'}, {at_once}",
                number(ledger["commits"] / streams, 2),
                number(cpu_us),
                ratio(cpu_us, (middle(runs[False, at_once].cpu_s) or 0.0) * 1e6),
                number(STREAMS[at_once] / (middle(run.wall_s) or 1.0)),
                number(percentile(run.ttft_s, 0.5) * 1e3, 1),
                number(percentile(started_s, 0.5) * 1e6) if started_s else "",
                f"{sum(started_s) / all_s:.0%}",
            )
        )
    return table
