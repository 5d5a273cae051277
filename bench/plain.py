"""A paid plain request: CPU, latency added to asking the upstream directly, and how many a second one core carries."""

from collections.abc import Callable
from pathlib import Path

from bench import nginx
from bench.offer import request_body
from bench.payments import Wallet
from bench.report import Table, middle, number, ratio
from bench.subjects import DIRECT, NGINX, OFFICIAL, Subject, subjects
from bench.wrk import Load, load

CONNECTIONS = (1, 16, 64)
ROUNDS = 2
SECONDS = 2
_FIRST = 300
"""Payments of the warm-up, which also tells how many the measured runs need."""

Runs = dict[tuple[str, int], list[Load]]


def measure(folder: Path, say: Callable[[str], None]) -> list[Table]:
    """Rounds are interleaved, so that a busy minute of the machine does not hit one subject alone."""
    wallet, runs = Wallet(), Runs()
    with nginx.neighbours(folder) as neighbours, subjects(neighbours, neighbours, folder / "plain") as measured:
        rates = {subject.name: _warm_up(subject, wallet, folder) for subject in measured}
        for round_number in range(ROUNDS):
            for connections in CONNECTIONS:
                for subject in measured:
                    say(f"plain request, round {round_number + 1}, {connections} connections: {subject.name}")
                    wanted = int(rates[subject.name] * SECONDS * 2) + connections
                    run = _run(subject, wallet, folder, connections, wanted)
                    rates[subject.name] = max(rates[subject.name], run.per_s)
                    runs.setdefault((subject.name, connections), []).append(run)
    return [_table(connections, runs, [subject.name for subject in measured]) for connections in CONNECTIONS]


def _warm_up(subject: Subject, wallet: Wallet, folder: Path) -> float:
    return _run(subject, wallet, folder, 8, _FIRST, seconds=1).per_s


def _run(
    subject: Subject, wallet: Wallet, folder: Path, connections: int, payments: int, seconds: int = SECONDS
) -> Load:
    headers = wallet.headers(subject.requirements, payments) if subject.requirements else None
    run = load(subject.program, request_body(), folder, connections=connections, seconds=seconds, payments=headers)
    if run.bad_status:
        raise RuntimeError(f"{subject.name} refused {run.bad_status} of {run.requests} good requests")
    return run


def _table(connections: int, runs: Runs, names: list[str]) -> Table:
    def figure(name: str, field: str) -> float | None:
        return middle([getattr(run, field) for run in runs[name, connections]])

    def added(name: str, field: str) -> float | None:
        mine, direct = figure(name, field), figure(DIRECT, field)
        return None if mine is None or direct is None else mine - direct

    columns = ("seller", "CPU µs", "× nginx", "× official", "p50 added µs", "p99 added µs", "req/s")
    table = Table(f"Paid plain request, {connections} connections", columns)
    for name in names:
        cpu_us = None if name == DIRECT else figure(name, "cpu_us")
        table.rows.append(
            (
                name,
                number(cpu_us),
                ratio(cpu_us, figure(NGINX, "cpu_us")),
                ratio(cpu_us, figure(OFFICIAL, "cpu_us")),
                "" if name == DIRECT else number(added(name, "p50_us")),
                "" if name == DIRECT else number(added(name, "p99_us")),
                number(figure(name, "per_s")),
            )
        )
    return table
