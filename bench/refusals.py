"""The two answers that cost a seller CPU and earn nothing: the 402 of a request without payment, and the 429."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from bench import nginx, sellers
from bench.offer import request_body
from bench.payments import Wallet, post, quoted
from bench.programs import Program
from bench.report import Table, number, ratio
from bench.streams import open_streams, stream_upstream
from bench.wrk import Load, load

CONNECTIONS = 16
SECONDS = 2


def measure(folder: Path, say: Callable[[str], None]) -> list[Table]:
    """nginx proxying a good request is the yardstick, as in the other parts."""
    with ExitStack() as stack:
        neighbours = stack.enter_context(nginx.neighbours(folder))
        proxy = stack.enter_context(nginx.proxy("proxy", neighbours, folder))
        ours = stack.enter_context(sellers.obol("quoting", neighbours, neighbours, folder))
        theirs = stack.enter_context(sellers.official("official", neighbours, neighbours, folder))
        upstream = stack.enter_context(stream_upstream(folder))
        full = stack.enter_context(sellers.obol("full", upstream, neighbours, folder, "--max-inflight", "1"))
        say("402 and 429")
        proxied = _load(proxy, 200, folder)
        official = _load(theirs, 402, folder)
        payment = Wallet().headers(quoted(full), 1)
        with open_streams(full, payment, interval_s=1.0):
            rows = [
                ("obol: 402", _load(ours, 402, folder)),
                ("obol: 429, saturated", _load(full, 429, folder)),
                ("official FastAPI middleware: 402", official),
                ("nginx proxying a 200", proxied),
            ]
    table = Table(f"Refusals, {CONNECTIONS} connections", ("answer", "CPU µs", "× nginx", "× official", "req/s"))
    for name, run in rows:
        table.rows.append(
            (
                name,
                number(run.cpu_us),
                ratio(run.cpu_us, proxied.cpu_us),
                ratio(run.cpu_us, official.cpu_us),
                number(run.per_s),
            )
        )
    return [table]


def _load(program: Program, status: int, folder: Path) -> Load:
    body = request_body()
    found = post(program, body).status
    if found != status:
        raise RuntimeError(f"{status} was expected, {found} came")
    load(program, body, folder, connections=CONNECTIONS, seconds=1)
    run = load(program, body, folder, connections=CONNECTIONS, seconds=SECONDS)
    if run.bad_status != (0 if status < 400 else run.requests):
        raise RuntimeError(f"not every answer was {status}")
    return run
