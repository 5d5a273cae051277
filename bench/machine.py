"""The machine under the benchmark: what it is, which core does what, and what a process has used of it."""

import os
import platform
import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUBJECT_CORE = 0
"""Where the measured program runs, alone."""
OTHERS_CORE = 1
"""Where load, upstream and facilitator run."""
WANTED_FILES = 8192
_CPUCLOCK_SCHED = 2


def can_pin() -> bool:
    """Whether the measured program can have a core of its own."""
    return hasattr(os, "sched_setaffinity") and {SUBJECT_CORE, OTHERS_CORE} <= os.sched_getaffinity(0)


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Keep this thread, and the processes that it starts here, on one core."""
    if not can_pin():
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_s(pid: int) -> float:
    """CPU seconds of a process, all threads: the scheduler's nanoseconds on Linux, elsewhere steps of 10 ms."""
    if platform.system() == "Linux":
        return time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED)  # clock_getcpuclockid(3)
    text = subprocess.check_output(["ps", "-o", "time=", "-p", str(pid)], text=True)  # [HH:]MM:SS.ss
    seconds = 0.0
    for part in text.strip().split(":"):
        seconds = seconds * 60 + float(part)
    return seconds


def rss_mib(pid: int) -> float:
    """Resident memory of a process in MiB."""
    return int(subprocess.check_output(["ps", "-o", "rss=", "-p", str(pid)], text=True)) / 1024


def allow_many_files() -> None:
    """A thousand streams are two thousand sockets in a proxy; children inherit the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < WANTED_FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(WANTED_FILES, hard), hard))


def describe(folder: Path) -> str:
    """One line: processor, cores, kernel, Python, and the file system that durable writes go to."""
    return (
        f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, ledger on {_file_system(folder)}"
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    pairs = (line.partition(":") for line in info.read_text().splitlines())
    fields = {name.strip(): value.strip() for name, _, value in pairs}
    family = f"family {fields.get('cpu family', '?')} model {fields.get('model', '?')}"
    return f"{fields.get('model name', platform.machine())} ({family})"


def _file_system(folder: Path) -> str:
    mounts = Path("/proc/mounts")
    if not mounts.exists():
        return "an unknown file system"
    points = {fields[1]: fields[2] for fields in (line.split() for line in mounts.read_text().splitlines())}
    return points[
        next(str(parent) for parent in (folder.resolve(), *folder.resolve().parents) if str(parent) in points)
    ]
