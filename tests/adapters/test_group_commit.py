"""The writer that lets concurrent operations share one transaction and one fsync."""

import asyncio
import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path

import pytest

from obol.adapters.group_commit import GroupCommitWriter
from obol.adapters.sqlite_file import Schema
from obol.errors import LedgerUnavailableError

SCHEMA = Schema(
    application_id=7,
    migrations=(
        ("CREATE TABLE word (text TEXT PRIMARY KEY)",),
        ("CREATE TABLE child (word TEXT REFERENCES word (text) DEFERRABLE INITIALLY DEFERRED)",),
    ),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "words.sqlite"


@pytest.fixture
async def writer(path: Path) -> AsyncIterator[GroupCommitWriter]:
    writer = await GroupCommitWriter.open(path, SCHEMA, busy_timeout_s=0.05)
    yield writer
    await writer.close()


def add(text: str) -> Callable[[sqlite3.Connection], str]:
    def operation(connection: sqlite3.Connection) -> str:
        connection.execute("INSERT INTO word VALUES (?)", (text,))
        return text

    return operation


def add_then_raise(text: str, error: BaseException) -> Callable[[sqlite3.Connection], str]:
    def operation(connection: sqlite3.Connection) -> str:
        add(text)(connection)
        raise error

    return operation


def words(path: Path) -> set[str]:
    """What another connection sees: what is committed."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return {row[0] for row in connection.execute("SELECT text FROM word")}


@contextlib.asynccontextmanager
async def held_up(writer: GroupCommitWriter) -> AsyncIterator[None]:
    """The writer is busy with a transaction of its own: what is submitted meanwhile waits for the next."""
    is_running, may_end = threading.Event(), threading.Event()

    def operation(_: sqlite3.Connection) -> None:
        is_running.set()
        may_end.wait(10)

    async with asyncio.TaskGroup() as group:
        group.create_task(writer.run(operation))
        await asyncio.to_thread(is_running.wait)
        try:
            yield
        finally:
            may_end.set()


async def submitted(group: asyncio.TaskGroup, *runs: Coroutine[None, None, str]) -> "list[asyncio.Task[str]]":
    tasks = [group.create_task(run) for run in runs]
    await asyncio.sleep(0)  # each has run up to its wait
    return tasks


async def test_the_result_of_an_operation_is_handed_back_when_it_is_durable(
    writer: GroupCommitWriter, path: Path
) -> None:
    assert await writer.run(add("one")) == "one"
    assert words(path) == {"one"}


async def test_operations_that_arrive_during_a_commit_share_the_next_one(writer: GroupCommitWriter, path: Path) -> None:
    async with asyncio.TaskGroup() as group, held_up(writer):
        before = writer.commits
        await submitted(group, *(writer.run(add(str(n))) for n in range(100)))

    assert writer.commits - before == 2  # the one that was under way, and the one that they share
    assert len(words(path)) == 100


async def test_a_batch_is_bounded(path: Path) -> None:
    writer = await GroupCommitWriter.open(path, SCHEMA, max_batch=10)
    async with asyncio.TaskGroup() as group, held_up(writer):
        before = writer.commits
        await submitted(group, *(writer.run(add(str(n))) for n in range(95)))

    assert writer.commits - before == 1 + 10
    await writer.close()


async def test_an_operation_that_raises_is_undone_alone(writer: GroupCommitWriter, path: Path) -> None:
    async with asyncio.TaskGroup() as group, held_up(writer):
        runs = [writer.run(add(str(n))) for n in range(5)]
        runs.insert(2, writer.run(add_then_raise("bad", LookupError("mine"))))
        tasks = await submitted(group, *(_outcome(run) for run in runs))

    assert [task.result() for task in tasks] == ["0", "1", "LookupError: mine", "2", "3", "4"]
    assert words(path) == {"0", "1", "2", "3", "4"}


async def _outcome(run: Coroutine[None, None, str]) -> str:
    try:
        return await run
    except (LookupError, RuntimeError, sqlite3.IntegrityError, SystemExit, LedgerUnavailableError) as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (StopIteration("x"), "RuntimeError: an operation raised StopIteration"),
        (SystemExit("x"), "SystemExit: x"),
        (sqlite3.OperationalError("x"), "LedgerUnavailableError: the ledger cannot be read or written: x"),
    ],
)
async def test_whatever_an_operation_raises_nobody_hangs(
    writer: GroupCommitWriter, path: Path, error: BaseException, outcome: str
) -> None:
    async def run_them() -> list[str]:
        return [await _outcome(writer.run(add_then_raise("bad", error))), await writer.run(add("good"))]

    assert await run_them() == [outcome, "good"]
    assert words(path) == {"good"}


async def test_a_broken_constraint_is_the_operations_own_error(writer: GroupCommitWriter) -> None:
    await writer.run(add("one"))

    with pytest.raises(sqlite3.IntegrityError):
        await writer.run(add("one"))


async def test_a_failed_commit_fails_the_whole_batch_and_only_that(writer: GroupCommitWriter, path: Path) -> None:
    def orphan(connection: sqlite3.Connection) -> str:
        connection.execute("INSERT INTO child VALUES ('no such word')")  # checked by COMMIT
        return "orphan"

    async with asyncio.TaskGroup() as group, held_up(writer):
        runs = [writer.run(add("lost")), writer.run(orphan)]
        tasks = await submitted(group, *(_outcome(run) for run in runs))

    assert {task.result() for task in tasks} == {
        "LedgerUnavailableError: the ledger cannot be read or written: FOREIGN KEY constraint failed"
    }
    assert await writer.run(add("later")) == "later"
    assert words(path) == {"later"}


async def test_a_full_file_fails_and_the_writer_goes_on(writer: GroupCommitWriter, path: Path) -> None:
    pages = await writer.run(lambda connection: connection.execute("PRAGMA page_count").fetchone()[0])
    await writer.run(lambda connection: connection.execute(f"PRAGMA max_page_count={pages}").fetchall())

    with pytest.raises(LedgerUnavailableError, match="full") as failure:
        await writer.run(add("x" * 100_000))

    assert isinstance(failure.value.__cause__, sqlite3.Error)
    assert await writer.run(add("small")) == "small"
    assert words(path) == {"small"}


async def test_a_locked_file_fails_within_the_timeout_and_the_writer_goes_on(
    writer: GroupCommitWriter, path: Path
) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        outcomes = await asyncio.gather(*(_outcome(writer.run(add(str(n)))) for n in range(3)))
        other.execute("ROLLBACK")

    assert set(outcomes) == {"LedgerUnavailableError: the ledger cannot be read or written: database is locked"}
    assert await writer.run(add("later")) == "later"


async def test_each_waiter_gets_an_exception_of_its_own(writer: GroupCommitWriter, path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        errors = await asyncio.gather(*(writer.run(add(str(n))) for n in range(3)), return_exceptions=True)
        other.execute("ROLLBACK")

    assert len({id(error) for error in errors}) == 3


async def test_a_cancelled_waiter_does_not_disturb_the_batch(writer: GroupCommitWriter, path: Path) -> None:
    async with asyncio.TaskGroup() as group, held_up(writer):
        tasks = await submitted(group, *(writer.run(add(str(n))) for n in range(5)))
        for task in tasks[::2]:
            task.cancel()

    assert [task.cancelled() for task in tasks] == [True, False, True, False, True]
    assert words(path) == {"0", "1", "2", "3", "4"}  # cancelling the wait does not cancel the operation


async def test_close_finishes_what_was_submitted(writer: GroupCommitWriter, path: Path) -> None:
    async with asyncio.TaskGroup() as group, held_up(writer):
        tasks = await submitted(group, *(writer.run(add(str(n))) for n in range(5)))
        closing = group.create_task(writer.close())
        await asyncio.sleep(0)

    assert closing.done()
    assert [task.result() for task in tasks] == ["0", "1", "2", "3", "4"]
    assert len(words(path)) == 5


async def test_close_is_idempotent_and_then_nothing_is_taken(writer: GroupCommitWriter) -> None:
    await asyncio.gather(writer.close(), writer.close())
    await writer.close()

    with pytest.raises(LedgerUnavailableError, match="closed"):
        await writer.run(add("late"))


async def test_the_thread_ends_with_the_writer(path: Path) -> None:
    def writers() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "group-commit"}

    before = writers()
    writer = await GroupCommitWriter.open(path, SCHEMA)
    assert len(writers() - before) == 1

    await writer.close()
    assert writers() - before == set()


def test_a_program_that_forgot_to_close_ends_and_has_recorded(path: Path) -> None:
    program = """
import asyncio, sys
from pathlib import Path
from obol.adapters.group_commit import GroupCommitWriter
from tests.adapters.test_group_commit import SCHEMA, add

async def main():
    writer = await GroupCommitWriter.open(Path(sys.argv[1]), SCHEMA)
    await writer.run(add("kept"))

asyncio.run(main())
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program, str(path)], cwd=root, env=environment, check=True, timeout=20)

    assert words(path) == {"kept"}


def test_an_event_loop_that_is_gone_does_not_stop_the_writer(path: Path) -> None:
    writer = asyncio.run(GroupCommitWriter.open(path, SCHEMA))
    may_end = threading.Event()

    async def leave_while_it_works() -> None:
        run = asyncio.ensure_future(writer.run(lambda _: may_end.wait(10)))
        await asyncio.sleep(0)
        run.cancel()

    asyncio.run(leave_while_it_works())
    may_end.set()

    assert asyncio.run(writer.run(add("later"))) == "later"
    asyncio.run(writer.close())


async def test_the_file_is_durable_and_in_wal_mode(writer: GroupCommitWriter) -> None:
    def pragmas(connection: sqlite3.Connection) -> list[object]:
        names = ("journal_mode", "synchronous", "foreign_keys")
        return [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names]

    assert await writer.run(pragmas) == ["wal", 2, 1]


async def test_an_older_schema_is_brought_up_without_losing_rows(path: Path) -> None:
    old = await GroupCommitWriter.open(path, Schema(SCHEMA.application_id, SCHEMA.migrations[:1]))
    await old.run(add("kept"))
    await old.close()

    writer = await GroupCommitWriter.open(path, SCHEMA)

    version = await writer.run(lambda connection: connection.execute("PRAGMA user_version").fetchone()[0])
    await writer.close()
    assert (version, words(path)) == (2, {"kept"})


async def test_many_that_open_a_new_file_at_once_all_succeed(path: Path) -> None:
    writers = await asyncio.gather(*(GroupCommitWriter.open(path, SCHEMA) for _ in range(12)))

    await asyncio.gather(*(writer.run(add(str(n))) for n, writer in enumerate(writers)))

    assert len(words(path)) == 12
    for writer in writers:
        await writer.close()
