"""The SQLite ledger under the contract, and what only a file has: permissions, processes that die, foreign files."""

import asyncio
import contextlib
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from hashlib import blake2b
from pathlib import Path

import pytest
from hypothesis import settings

from obol.adapters.ledger_holders import Holder
from obol.adapters.ledger_sqlite import (
    _HELD_BY,
    _RESOLVE,
    _SETTLED_SINCE_REFUSAL,
    _UNSETTLED,
    _WAS_REFUSED,
    SqliteLedger,
)
from obol.adapters.ledger_sqlite_schema import LEDGER_SCHEMA
from obol.adapters.sqlite_file import Schema, open_sqlite
from obol.core.ledger import Claimed, InUse, Ledger, Redeeming, SaleFilter
from obol.core.offer import Standing
from obol.core.payment import FINAL, Event, State
from obol.core.sale import ClaimKey
from obol.errors import LedgerUnavailableError, SettingsError
from tests.adapters.ledger_contract import LedgerContract, OpenLedger
from tests.adapters.ledger_machine import LedgerMachine
from tests.adapters.ledger_processes import ROOT, a_child, claims_of
from tests.adapters.sales import a_key, a_new_sale, claimed_in
from tests.fakes.clock import FakeClock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "ledger.sqlite"


class TestSqliteLedger(LedgerContract):
    @pytest.fixture
    async def open_ledger(self, path: Path, clock: FakeClock) -> AsyncIterator[OpenLedger]:
        async with contextlib.AsyncExitStack() as opened:

            async def open_one() -> Ledger:
                ledger = await SqliteLedger.open(path, clock)
                opened.push_async_callback(ledger.close)
                return ledger

            yield open_one


class SqliteLedgerMachine(LedgerMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()

    async def open(self) -> Ledger:
        return await SqliteLedger.open(Path(self.folder.name) / "ledger.sqlite", self.clock)

    def teardown(self) -> None:
        super().teardown()
        self.folder.cleanup()


TestSqliteLedgerMachine = SqliteLedgerMachine.TestCase
TestSqliteLedgerMachine.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


@pytest.fixture
async def ledger(path: Path) -> AsyncIterator[SqliteLedger]:
    ledger = await SqliteLedger.open(path, FakeClock())
    yield ledger
    await ledger.close()


# ---------------------------------------------------------------------------------------------------------- processes


async def test_nothing_durable_is_lost_when_a_process_is_killed(path: Path) -> None:
    with a_child(path, "-", *range(20)) as child:
        claimed = claims_of(child)
        async with opened(path) as ledger:
            assert await ledger.adopt() == []  # it is alive
            child.kill()
            child.wait()
            adopted = await ledger.adopt()

    assert [name for name, _ in claimed] == ["Claimed"] * 20
    assert [(sale.id, sale.key, sale.state) for sale in adopted] == [
        (sale_id, a_key(number), State.CLAIMED) for number, (_, sale_id) in enumerate(claimed)
    ]


async def test_what_a_killed_process_was_told_is_recorded(path: Path) -> None:
    with a_child(path, "-", *range(100_000)) as child:
        assert child.stdout is not None
        told = [child.stdout.readline().split() for _ in range(50)]
        child.kill()  # in the middle of its work
        child.wait()

    async with opened(path) as ledger:
        adopted = {sale.id for sale in await ledger.adopt()}
    assert {sale_id for _, sale_id in told} <= adopted


def test_of_two_processes_that_claim_one_authorization_exactly_one_wins(path: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with a_child(path, str(gate), *range(50)) as one, a_child(path, str(gate), *range(50)) as two:
        gate.touch()
        outcomes = [claims_of(one), claims_of(two)]

    for (mine, my_sale), (theirs, their_sale) in zip(*outcomes, strict=True):
        assert sorted([mine, theirs]) == ["Claimed", "InUse"]
        assert my_sale == their_sale


async def test_the_lock_file_of_a_killed_process_is_removed(path: Path) -> None:
    with a_child(path, "-") as child:
        child.kill()
        child.wait()
    async with opened(path) as ledger:
        assert len(lock_files(path)) == 2
        await ledger.adopt()
        assert lock_files(path) == [ledger.holder_id]
    assert lock_files(path) == []


async def test_sales_whose_lock_file_is_gone_are_adopted(path: Path) -> None:
    async with opened(path) as dead:
        sale = await claimed_in(dead, State.SERVED)
    assert lock_files(path) == []

    async with opened(path) as ledger:  # as in a backup that was restored
        assert await ledger.adopt() == [sale]


def test_a_holder_that_starts_and_an_adopter_never_both_win(tmp_path: Path) -> None:
    adopter = Holder(tmp_path / "ledger")
    others: list[Holder] = []

    def start() -> None:
        others.extend(Holder(tmp_path / "ledger") for _ in range(200))

    async def race() -> None:
        starting = asyncio.create_task(asyncio.to_thread(start))
        while not starting.done():
            seizure = await asyncio.to_thread(adopter.seize, [])
            seizure.remove()
            seizure.let_go()
        await starting

    asyncio.run(race())
    seizure = adopter.seize([holder.id for holder in others])
    assert seizure.dead == []
    for holder in (*others, adopter):
        holder.close()


# --------------------------------------------------------------------------------------------------------- group commit


async def test_concurrent_claims_share_one_fsync(ledger: SqliteLedger) -> None:
    before = ledger.commits

    outcomes = await asyncio.gather(*(ledger.claim(a_new_sale()) for _ in range(64)))

    assert {type(outcome) for outcome in outcomes} == {Claimed}
    assert ledger.commits - before <= 8  # two, unless the first ones met a writer that was just waking up


async def test_a_claim_alone_does_not_wait_for_company(ledger: SqliteLedger) -> None:
    before = ledger.commits

    await ledger.claim(a_new_sale())

    assert ledger.commits - before == 1


# -------------------------------------------------------------------------------------------------------------- files


async def test_the_file_is_private_and_its_folder_is_made(path: Path) -> None:
    async with opened(path) as ledger:
        await ledger.claim(a_new_sale())

        modes = {entry.name: entry.stat().st_mode & 0o777 for entry in path.parent.iterdir()}

    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert modes.pop("ledger.sqlite.holders") == 0o700
    assert modes == {"ledger.sqlite": 0o600, "ledger.sqlite-wal": 0o600, "ledger.sqlite-shm": 0o600}


async def test_what_was_recorded_is_there_when_the_file_is_opened_again(path: Path) -> None:
    async with opened(path) as ledger:
        sale = await claimed_in(ledger, State.SETTLED)

    async with opened(path) as again:
        assert await again.sale(sale.id) == sale


def _a_text_file(path: Path) -> None:
    path.write_text("this is not a database, however long the text in it may be")


def _a_foreign_database(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE somebody_elses (x)")


def _a_newer_ledger(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA application_id={LEDGER_SCHEMA.application_id}")
        database.execute(f"PRAGMA user_version={len(LEDGER_SCHEMA.migrations) + 1}")


def _a_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_a_text_file, "not a database"),
        (_a_foreign_database, "belongs to another program"),
        (_a_newer_ledger, "written by a newer version"),
        (_a_folder, "cannot be used"),
    ],
)
def test_a_file_that_is_no_ledger_is_refused_untouched(path: Path, make: object, message: str) -> None:
    path.parent.mkdir()
    assert callable(make)
    make(path)
    before = None if path.is_dir() else path.read_bytes()

    with pytest.raises(SettingsError, match=message) as refused:
        asyncio.run(SqliteLedger.open(path, FakeClock()))

    assert refused.value.field == "--data-dir"
    assert str(path.parent) not in str(refused.value)
    assert before is None or path.read_bytes() == before


async def test_a_folder_that_is_a_file_is_refused_by_the_name_of_the_setting(path: Path) -> None:
    path.parent.write_text("not a folder")

    with pytest.raises(SettingsError, match=r"^--data-dir: ") as refused:
        await SqliteLedger.open(path, FakeClock())

    assert str(path.parent) not in str(refused.value)


async def test_a_folder_that_cannot_be_made_is_refused() -> None:
    with pytest.raises(SettingsError, match="--data-dir: the folder cannot be used"):
        await SqliteLedger.open(Path("/proc/obol/ledger.sqlite"), FakeClock())


async def test_a_ledger_that_another_process_has_locked_is_unavailable_and_then_works(path: Path) -> None:
    ledger = await SqliteLedger.open(path, FakeClock(), busy_timeout_s=0.05)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for call in (ledger.check(), ledger.claim(a_new_sale(a_key(1)))):
            with pytest.raises(LedgerUnavailableError, match="locked"):
                await call
        other.execute("ROLLBACK")

    await ledger.check()
    assert isinstance(await ledger.claim(a_new_sale(a_key(1))), Claimed)
    assert isinstance(await ledger.claim(a_new_sale(a_key(1))), InUse)
    await ledger.close()


async def test_reading_waits_for_nobody_who_writes(path: Path) -> None:
    async with opened(path) as ledger:
        sale = await claimed_in(ledger, State.SETTLED, key := a_key())
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")

            assert await ledger.sale(sale.id) == await ledger.find(key) == await ledger.held_by(sale.id) == sale
            assert (await ledger.page(SaleFilter())).sales == [sale]
            assert await ledger.is_trusted(key, 1000, Standing(1, 1000))


async def test_nobody_who_writes_waits_for_a_reader(path: Path) -> None:
    async with opened(path) as ledger:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            await claimed_in(ledger, State.SETTLED)
            other.execute("BEGIN")
            assert other.execute("SELECT count(*) FROM sale").fetchone() == (1,)

            assert isinstance(await ledger.claim(a_new_sale()), Claimed)


async def test_who_reads_sees_what_was_asked_for_before(path: Path) -> None:
    """A buyer who has an answer and looks at its receipt must not be shown what was."""
    async with opened(path) as ledger:
        sale = await claimed_in(ledger, State.CLAIMED)
        for event, state in (
            (Event.SERVE, State.SERVING),
            (Event.OUTPUT, State.SERVED),
            (Event.SETTLE, State.SETTLING),
        ):
            recording = asyncio.create_task(ledger.record(sale.id, [event]))
            await asyncio.sleep(0)  # it is submitted
            seen = await ledger.sale(sale.id)
            assert seen is not None
            assert seen.state is state
            await recording


async def test_a_closed_ledger_is_one_file(path: Path) -> None:
    async with opened(path) as ledger:
        sale = await claimed_in(ledger, State.SETTLED)
        assert await ledger.sale(sale.id) == sale

    assert {entry.name for entry in path.parent.iterdir() if entry.is_file()} == {path.name}


_ON_A_FULL_DISK = """
import asyncio, resource, sys
from pathlib import Path
from obol.adapters.clock import SystemClock
from obol.adapters.ledger_sqlite import _HELD_BY, _SETTLED_SINCE_REFUSAL, _UNSETTLED, SqliteLedger
from obol.core.ledger import Claimed
from obol.errors import LedgerUnavailableError
from tests.adapters.sales import a_new_sale

async def main(path):
    ledger = await SqliteLedger.open(path, SystemClock())
    sales = [a_new_sale() for _ in range(200)]
    resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, resource.RLIM_INFINITY))  # no file grows any more
    results = await asyncio.gather(*(ledger.claim(sale) for sale in sales[:100]), return_exceptions=True)
    for sale in sales[100:]:
        results += await asyncio.gather(ledger.claim(sale), return_exceptions=True)
    try:
        for _ in range(100):  # the last bytes may still hold a small transaction
            await ledger.check()
    except LedgerUnavailableError:
        print("check refused")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await ledger.check()
    for sale, result in zip(sales, results):
        recorded = await ledger.sale(sale.id)
        assert isinstance(result, (Claimed, LedgerUnavailableError)), result
        assert (recorded is not None) == isinstance(result, Claimed), result
    print(*sorted({type(result).__name__ for result in results}))
    await ledger.close()

asyncio.run(main(Path(sys.argv[1])))
"""


def test_on_a_full_disk_claims_fail_as_unavailable_and_later_ones_work(path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ran = subprocess.run(
        [sys.executable, "-c", _ON_A_FULL_DISK, str(path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines() == ["check refused", "Claimed LedgerUnavailableError"]


# ------------------------------------------------------------------------------------------------------------- schema


def test_the_index_of_unfinished_sales_names_exactly_the_states_that_are_finished() -> None:
    [conditions] = re.findall(r"state NOT IN \((.*?)\)", str(LEDGER_SCHEMA.migrations[0]))

    assert set(re.findall(r"\w+", conditions)) == FINAL | {State.OWED}


async def test_adoption_and_claims_use_their_indexes(ledger: SqliteLedger, path: Path) -> None:
    queries = {
        "sale_claim": "SELECT id FROM sale WHERE claim = ? AND state <> 'released'",
        "sale_unfinished": "SELECT id FROM sale WHERE holder = ? AND state NOT IN "
        "('rejected', 'released', 'settled', 'settle_failed', 'waived', 'owed')",
    }
    with contextlib.closing(sqlite3.connect(path)) as database:
        for index, query in queries.items():
            plan = str(database.execute("EXPLAIN QUERY PLAN " + query, ("x",)).fetchall())
            assert f"INDEX {index} " in plan


@contextlib.asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SqliteLedger]:
    ledger = await SqliteLedger.open(path, FakeClock())
    try:
        yield ledger
    finally:
        await ledger.close()


def lock_files(path: Path) -> list[str]:
    return [entry.name for entry in path.with_name(path.name + ".holders").iterdir()]


async def test_a_file_of_the_first_version_keeps_its_sales_and_what_they_owe(path: Path) -> None:
    """Its sales are held by themselves: a version that knew no attempts recorded none."""
    path.parent.mkdir()
    open_sqlite(path, Schema(LEDGER_SCHEMA.application_id, LEDGER_SCHEMA.migrations[:1]), busy_timeout_s=1.0).close()
    columns = "id, network, asset, payer, nonce, claim, offer, pay_to, authorized_atomic, valid_before_s, api, model, "
    columns += "payload, requirements, created_s, state, delivery, transaction_id, reason, updated_s, holder"
    key = a_key()
    row = ("old", *_parts(key), "qwen", "0x", "1000", 1, "chat", "m", b"", b"", 1.0, "owed", "none", "", "", 1.0, "x")
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute(f"INSERT INTO sale ({columns}) VALUES ({', '.join('?' * 21)})", row)

    ledger = await SqliteLedger.open(path, FakeClock())
    try:
        owed = await ledger.sale("old")
        outcome = await ledger.claim(again := a_new_sale(key))
    finally:
        await ledger.close()

    assert owed is not None
    assert (owed.state, owed.attempt) == (State.OWED, "old")
    assert isinstance(outcome, Redeeming)
    assert (outcome.sale.id, outcome.sale.attempt) == ("old", again.id)


async def test_a_file_of_the_third_version_keeps_its_payers_standing(path: Path) -> None:
    path.parent.mkdir()
    open_sqlite(path, Schema(LEDGER_SCHEMA.application_id, LEDGER_SCHEMA.migrations[:3]), busy_timeout_s=1.0).close()
    columns = "id, network, asset, payer, nonce, claim, offer, pay_to, authorized_atomic, valid_before_s, api, model, "
    columns += "payload, requirements, created_s, state, delivery, transaction_id, reason, updated_s, holder, attempt"
    states = ["settled", "settled", "settle_failed", "settled"]  # in the order of `updated_s`, not of the rows
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        for n, state in reversed(list(enumerate(states))):
            row = (f"{n}", *_parts(a_key()), "qwen", "0x", "1000", 1, "chat", "m", b"", b"", 1.0, state, "complete")
            row += ("0x", "", 1.0 + n, "x", f"{n}")
            database.execute(f"INSERT INTO sale ({columns}) VALUES ({', '.join('?' * 22)})", row)

    async with opened(path) as ledger:
        assert await ledger.is_trusted(a_key(), 1000, Standing(1, 1000))
        assert not await ledger.is_trusted(a_key(), 1000, Standing(2, 1000))
        await claimed_in(ledger, State.SETTLED)
        assert await ledger.is_trusted(a_key(), 1000, Standing(2, 1000))
        await claimed_in(ledger, State.SETTLE_FAILED)
        assert not await ledger.is_trusted(a_key(), 1000, Standing(1, 1000))


def _parts(key: ClaimKey) -> tuple[str | bytes, ...]:
    text = f"{key.network}\n{key.asset}\n{key.payer}\n{key.nonce}"
    return key.network, key.asset, key.payer, key.nonce, blake2b(text.encode(), digest_size=16).digest()


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (_SETTLED_SINCE_REFUSAL, "sale_settled"),
        (_WAS_REFUSED, "sale_refused"),
        (_UNSETTLED, "sale_unsettled"),
        (_HELD_BY, "sale_redeemer"),
        (_RESOLVE, "sale_refused"),
    ],
)
async def test_what_is_asked_for_each_sale_never_scans_the_ledger(path: Path, query: str, index: str) -> None:
    await (await SqliteLedger.open(path, FakeClock())).close()
    named = {"payer": "0x", "asset": "0x", "network": "n", "at_most": 5, "id": "x"}
    with contextlib.closing(sqlite3.connect(path)) as database:
        arguments = named if ":payer" in query else ("x",) * (3 if query is _UNSETTLED else 1)
        plan = [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {query}", arguments)]
    assert any(index in step for step in plan), plan
    assert not [step for step in plan if step.startswith("SCAN sale")], plan
