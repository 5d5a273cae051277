"""Streams: CPU per chunk with many open at once, and the time to first token that a seller adds."""

import time
from collections.abc import Callable
from pathlib import Path

from bench import nginx
from bench.machine import cpu_s
from bench.payments import Wallet
from bench.report import Table, number, percentile, ratio
from bench.streams import open_streams, stream_upstream, ttft_s
from bench.subjects import DIRECT, NGINX, OFFICIAL, Subject, subjects

STREAMS = 100
INTERVAL_S = 1 / 40
WINDOW_S = 3.0
TTFT_STREAMS = 50
TTFT_CHUNKS = 4


def measure(folder: Path, say: Callable[[str], None]) -> list[Table]:
    """The official middleware buffers streams whole, so there is no chunk of its to measure."""
    wallet = Wallet()
    per_chunk_us: dict[str, float] = {}
    ttfts_s: dict[str, list[float]] = {}
    with (
        nginx.neighbours(folder) as facilitator,
        stream_upstream(folder) as upstream,
        subjects(upstream, facilitator, folder / "sse") as measured,
    ):
        for subject in measured:
            say(f"time to first token: {subject.name}")
            payments = _payments(subject, wallet, TTFT_STREAMS + 10)
            taken_s = ttft_s(subject.program, payments, chunks=TTFT_CHUNKS, interval_s=INTERVAL_S)
            ttfts_s[subject.name] = taken_s[10:]
        for subject in measured:
            if subject.name not in (DIRECT, OFFICIAL):
                say(f"{STREAMS} streams of {1 / INTERVAL_S:.0f} chunks/s: {subject.name}")
                per_chunk_us[subject.name] = _per_chunk_us(subject, _payments(subject, wallet, STREAMS))
    return [_table([subject.name for subject in measured], per_chunk_us, ttfts_s)]


def _payments(subject: Subject, wallet: Wallet, count: int) -> list[str] | list[None]:
    return wallet.headers(subject.requirements, count) if subject.requirements else [None] * count


def _per_chunk_us(subject: Subject, payments: list[str] | list[None]) -> float:
    with open_streams(subject.program, payments, interval_s=INTERVAL_S) as streams:
        time.sleep(0.5)
        used_s, chunks = cpu_s(subject.program.pid), streams.chunks
        time.sleep(WINDOW_S)
        used_s, chunks = cpu_s(subject.program.pid) - used_s, streams.chunks - chunks
    if chunks < 0.9 * STREAMS * WINDOW_S / INTERVAL_S:
        raise RuntimeError(f"{subject.name} passed only {chunks} chunks")
    return used_s / chunks * 1e6


def _table(names: list[str], per_chunk_us: dict[str, float], ttfts_s: dict[str, list[float]]) -> Table:
    columns = ("seller", "CPU µs per chunk", "× nginx", "TTFT p50 added µs", "TTFT p99 added µs", "p50 × nginx's")
    note = (
        f"{STREAMS} paid streams of {1 / INTERVAL_S:.0f} chunks/s. TTFT: {TTFT_STREAMS} streams, one after the other."
    )
    table = Table("Streams (SSE)", columns, notes=(note,))

    def added_us(name: str, share: float) -> float:
        return (percentile(ttfts_s[name], share) - percentile(ttfts_s[DIRECT], share)) * 1e6

    for name in names:
        if name == DIRECT:
            continue
        cpu_us = per_chunk_us.get(name)
        table.rows.append(
            (
                name if cpu_us is not None else f"{name} (buffers)",
                number(cpu_us, 1),
                ratio(cpu_us, per_chunk_us[NGINX]),
                number(added_us(name, 0.5)),
                number(added_us(name, 0.99)),
                ratio(added_us(name, 0.5), added_us(NGINX, 0.5)),
            )
        )
    return table
