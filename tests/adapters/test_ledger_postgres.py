"""The PostgreSQL ledger under the contract, and what only a server has: connections that break, and other gateways."""

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, LiteralString

import psycopg
import pytest
from hypothesis import settings

from obol.adapters.ledger_postgres import PostgresLedger
from obol.adapters.ledger_postgres_schema import MIGRATIONS
from obol.adapters.ledger_postgres_sql import ADOPT, CLAIMANT, HELD_BY, IS_GOOD_FOR
from obol.adapters.ledger_rows import UNFINISHED
from obol.adapters.postgres_connections import connect
from obol.adapters.postgres_url import conninfo_of
from obol.core.ledger import Change, Claimed, InUse, Ledger
from obol.core.offer import Standing
from obol.core.payment import FINAL, Event, State
from obol.core.sale import ClaimKey
from tests.adapters.ledger_contract import LedgerContract, OpenLedger
from tests.adapters.ledger_machine import LedgerMachine
from tests.adapters.ledger_processes import a_child, claims_of
from tests.adapters.postgres_ledgers import adopted_by, opened
from tests.adapters.sales import a_key, a_new_sale, claimed_in
from tests.fakes.clock import FakeClock
from tests.postgres import Postgres


class TestPostgresLedger(LedgerContract):
    @pytest.fixture
    async def open_ledger(self, database_url: str, clock: FakeClock) -> AsyncIterator[OpenLedger]:
        async with contextlib.AsyncExitStack() as opened:

            async def open_one() -> Ledger:
                ledger = await PostgresLedger.open(database_url, clock)
                opened.push_async_callback(ledger.close)
                return ledger

            yield open_one


class PostgresLedgerMachine(LedgerMachine):
    server: Postgres

    def __init__(self) -> None:
        super().__init__()
        self.url = self.server.empty_database()

    async def open(self) -> Ledger:
        return await PostgresLedger.open(self.url, self.clock)


class TestPostgresLedgerMachine(PostgresLedgerMachine.TestCase):  # type: ignore[misc, valid-type]
    settings = settings(max_examples=15, stateful_step_count=30, deadline=None)

    @pytest.fixture(autouse=True)
    def _server(self, postgres: Postgres) -> None:
        PostgresLedgerMachine.server = postgres


@pytest.fixture
async def ledger(database_url: str) -> AsyncIterator[PostgresLedger]:
    async with opened(database_url) as ledger:
        yield ledger


# ------------------------------------------------------------------------------------------------------- two gateways


async def test_of_twenty_concurrent_claims_at_two_gateways_exactly_one_wins(database_url: str) -> None:
    async with opened(database_url) as one, opened(database_url) as two:
        for number in range(5):
            key = a_key(number)
            outcomes = await asyncio.gather(*((one, two)[n % 2].claim(a_new_sale(key)) for n in range(20)))
            assert Counter(type(outcome) for outcome in outcomes) == {Claimed: 1, InUse: 19}


async def test_batches_that_want_the_same_authorizations_in_another_order_share_them(database_url: str) -> None:
    keys = [a_key() for _ in range(60)]
    async with opened(database_url) as one, opened(database_url) as two:
        outcomes = await asyncio.gather(
            *(one.claim(a_new_sale(key)) for key in keys), *(two.claim(a_new_sale(key)) for key in reversed(keys))
        )

    assert Counter(type(outcome) for outcome in outcomes) == {Claimed: 60, InUse: 60}


async def test_two_gateways_can_make_the_tables_at_the_same_time(database_url: str, postgres: Postgres) -> None:
    ledgers = await asyncio.gather(*(PostgresLedger.open(database_url, FakeClock()) for _ in range(4)))
    await asyncio.gather(*(ledger.close() for ledger in ledgers))

    assert len({ledger.holder_id for ledger in ledgers}) == 4
    assert postgres.run("SELECT version FROM obol.ledger", url=database_url) == [(len(MIGRATIONS),)]


async def test_tables_of_the_first_version_keep_their_payers_standing(database_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        await connection.execute("CREATE SCHEMA obol; CREATE TABLE obol.ledger (version integer NOT NULL)")
        await connection.execute("INSERT INTO obol.ledger VALUES (1)")
        await connection.execute(MIGRATIONS[0])
        for n, state in enumerate(["settled", "settle_failed", "settled", "settled"]):  # the last is the oldest
            await connection.execute(_A_SALE, {"n": n, "state": state, "at_s": n % 3, "payer": a_key().payer})

    async with opened(database_url) as ledger:
        assert await ledger.is_trusted(on_n(), 1000, Standing(1, 1000))
        assert not await ledger.is_trusted(on_n(), 1000, Standing(2, 1000))
        await claimed_in(ledger, State.SETTLED, on_n())
        assert await ledger.is_trusted(on_n(), 1000, Standing(2, 1000))
        await claimed_in(ledger, State.SETTLE_FAILED, on_n())
        assert not await ledger.is_trusted(on_n(), 1000, Standing(1, 1000))


_A_SALE = """
    INSERT INTO obol.sale (id, network, asset, payer, nonce, claim, offer, pay_to, authorized_atomic, valid_before_s,
        api, model, payload, requirements, created_s, state, delivery, transaction_id, reason, updated_s, attempt,
        holder)
    VALUES (%(n)s, 'n', '0x', %(payer)s, %(n)s, decode(md5(%(n)s::text), 'hex'), 'o', '0x', 1000, 1, 'chat', 'm', '',
        '', 1, %(state)s, 'complete', '0x', '', %(at_s)s, %(n)s, 1)
"""


def on_n() -> ClaimKey:
    return replace(a_key(), network="n", asset="0x")


# ---------------------------------------------------------------------------------------------------------- processes


async def test_the_sales_of_a_killed_process_are_adopted_and_those_of_a_living_one_are_not(database_url: str) -> None:
    with a_child(database_url, "-", *range(20)) as child:
        claimed = claims_of(child)
        async with opened(database_url) as ledger:
            assert await ledger.adopt() == []  # it is alive
            child.kill()
            child.wait()
            adopted = await adopted_by(ledger)

    assert [name for name, _ in claimed] == ["Claimed"] * 20
    assert [(sale.id, sale.key, sale.state) for sale in adopted] == [
        (sale_id, a_key(number), State.CLAIMED) for number, (_, sale_id) in enumerate(claimed)
    ]


async def test_what_a_process_killed_at_work_was_told_is_recorded(database_url: str) -> None:
    with a_child(database_url, "-", *range(100_000)) as child:
        assert child.stdout is not None
        told = [child.stdout.readline().split() for _ in range(50)]
        child.kill()
        child.wait()

    async with opened(database_url) as ledger:
        adopted = {sale.id for sale in await adopted_by(ledger)}
    assert {sale_id for _, sale_id in told} <= adopted


# --------------------------------------------------------------------------------------------------------- group commit


async def test_concurrent_claims_and_steps_share_commits(ledger: PostgresLedger, postgres: Postgres) -> None:
    commits = "SELECT count(*) FROM (SELECT DISTINCT xmin::text FROM obol.sale) AS commits"
    url = postgres.url("obol_test")
    news = [a_new_sale() for _ in range(64)]

    await asyncio.gather(*(ledger.claim(new) for new in news))
    assert postgres.run(commits, url=url)[0][0] <= 2

    await asyncio.gather(*(ledger.record(new.id, [Event.SERVE]) for new in news))
    assert postgres.run(commits, url=url)[0][0] <= 2


async def test_a_claim_that_the_database_refuses_does_not_disturb_the_others(ledger: PostgresLedger) -> None:
    news = [a_new_sale() for _ in range(9)]
    news[4] = replace(news[4], model="a\0b")

    outcomes = await asyncio.gather(*(ledger.claim(new) for new in news), return_exceptions=True)

    assert isinstance(outcomes[4], psycopg.DataError)
    assert Counter(type(outcome) for outcome in outcomes)[Claimed] == 8


async def test_one_claim_twice_at_the_same_time_is_taken_once(ledger: PostgresLedger) -> None:
    new = a_new_sale()

    outcomes = await asyncio.gather(*(ledger.claim(new) for _ in range(5)))

    assert Counter(type(outcome) for outcome in outcomes) == {Claimed: 1, InUse: 4}


async def test_steps_of_one_sale_that_share_a_commit_are_taken_in_their_order(ledger: PostgresLedger) -> None:
    sale = await claimed_in(ledger, State.CLAIMED)

    moved = await asyncio.gather(
        *(ledger.record(sale.id, [event]) for event in (Event.SERVE, Event.OUTPUT, Event.SETTLE, Event.SETTLED))
    )

    assert [step.state for step in moved] == [State.SERVING, State.SERVED, State.SETTLING, State.SETTLED]
    assert await ledger.sale(sale.id) == moved[-1]


async def test_a_reason_that_the_database_cannot_store_is_recorded_without_it(ledger: PostgresLedger) -> None:
    sale = await claimed_in(ledger, State.SETTLING)

    failed = await ledger.record(sale.id, [Event.SETTLE_FAILED], Change(reason="no\0"))

    assert failed.reason == "no\ufffd"
    assert await ledger.sale(sale.id) == failed


# ------------------------------------------------------------------------------------------------------------ the table


_MANY_SALES = """
    INSERT INTO obol.sale (id, network, asset, payer, nonce, claim, offer, pay_to, authorized_atomic, valid_before_s,
        api, model, payload, requirements, created_s, state, delivery, transaction_id, reason, updated_s, attempt,
        holder)
    SELECT n, 'n', '0x', n % 500, n, decode(md5(n::text), 'hex'), 'o', '0x', 1000, 1, 'chat',
        'm', '', '', n, (ARRAY['settled', 'settle_failed', 'served', 'redeeming', 'released'])[n % 97 % 5 + 1],
        'none', '', '', n, n, n % 50
    FROM generate_series(1, 5000) AS n
"""


def test_the_index_of_unfinished_sales_names_exactly_the_states_that_are_finished() -> None:
    for text in (MIGRATIONS[0], UNFINISHED):
        [conditions] = re.findall(r"state NOT IN \((.*?)\)", text)
        assert set(re.findall(r"\w+", conditions)) == FINAL | {State.OWED}


@pytest.mark.parametrize(
    ("statement", "arguments", "index"),
    [
        (CLAIMANT, [b"x"], "sale_claim"),
        (HELD_BY, {"attempt": "x"}, "sale_redeemer"),
        (
            IS_GOOD_FOR,
            {"payer": "0x", "asset": "0x", "network": "n", "after_sales": 5, "but": "", "amount": "1", "most": "1"},
            "sale_settled",
        ),
        (ADOPT, {"dead": [1], "network": None, "mine": 2}, "sale_unfinished"),
    ],
)
async def test_what_is_asked_for_each_sale_never_scans_the_ledger(
    ledger: PostgresLedger, database_url: str, statement: psycopg.sql.SQL, arguments: Any, index: str
) -> None:
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        await connection.execute(_MANY_SALES)
        await connection.execute("ANALYZE obol.sale; SET enable_hashjoin = off; SET enable_mergejoin = off")
        explained = await connection.execute(psycopg.sql.SQL("EXPLAIN ") + statement, arguments)
        plan = "\n".join(row[0] for row in await explained.fetchall())

    assert index in plan, plan
    assert "Seq Scan" not in plan, plan


async def test_commits_are_durable_whatever_the_database_is_set_to(database_url: str, postgres: Postgres) -> None:
    shown = {}
    for value in ("off", "remote_apply"):
        postgres.run("ALTER DATABASE obol_test SET synchronous_commit = 'off'")
        if value == "remote_apply":
            postgres.run("ALTER DATABASE obol_test SET synchronous_commit = 'remote_apply'")
        connection = await connect(conninfo_of(database_url))
        shown[value] = (await (await connection.execute("SHOW synchronous_commit")).fetchall())[0][0]
        await connection.close()
    postgres.run("ALTER DATABASE obol_test RESET synchronous_commit")

    assert shown == {"off": "on", "remote_apply": "remote_apply"}


@pytest.mark.parametrize(
    ("damage", "flaw"),
    [
        ("DROP INDEX obol.sale_claim", "index sale_claim is missing"),
        ("UPDATE obol.sale SET claim = '\\x00'", "sale .* claims another authorization than its own"),
        ("UPDATE obol.sale SET state = 'sold'", "the row of sale .* cannot be read"),
        ("UPDATE obol.ledger SET version = 0", r"of version \[0\]"),
        ("ALTER TABLE obol.sale ADD CHECK (n > 1) NOT VALID", "constraint .* is not validated"),
        (
            "DROP INDEX obol.sale_claim; UPDATE obol.sale SET claim = '\\x00'",
            "2 sales hold the authorization of sale",
        ),
    ],
)
async def test_flaws_are_told(
    ledger: PostgresLedger, postgres: Postgres, database_url: str, damage: LiteralString, flaw: str
) -> None:
    await claimed_in(ledger, State.SETTLED)
    if "2 sales" in flaw:
        await claimed_in(ledger, State.SETTLED)
    postgres.run(damage, url=database_url)

    assert [told for told in await ledger.flaws() if re.search(flaw, told)]
