"""The PostgreSQL ledger when connections break: what is not known, what is renewed, and whose the sales are then."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from obol.adapters.ledger_postgres import PostgresLedger
from obol.adapters.postgres_connections import Waits
from obol.core.ledger import NO_CHANGE, Claimed, Redeeming
from obol.core.offer import Standing
from obol.core.payment import Event, State
from obol.core.sale import ClaimKey
from obol.errors import IllegalTransitionError, LedgerUnavailableError, SaleTakenError
from tests.adapters.postgres_ledgers import (
    break_hold,
    opened,
    pids_that_hold,
    standby_away,
    until_it_works,
    waits_for_a_lock,
)
from tests.adapters.sales import a_key, a_new_sale, as_claimed, claimed_in
from tests.fakes.clock import FakeClock
from tests.fakes.postgres_proxy import PostgresProxy
from tests.postgres import Postgres


@pytest.fixture
async def ledger(database_url: str) -> AsyncIterator[PostgresLedger]:
    async with opened(database_url) as ledger:
        yield ledger


async def test_connections_that_break_in_the_middle_are_unavailable_and_renewed(
    ledger: PostgresLedger, postgres: Postgres, database_url: str
) -> None:
    sale = await claimed_in(ledger, State.CLAIMED)
    async with await psycopg.AsyncConnection.connect(database_url) as other:
        await other.execute("SELECT 1 FROM obol.sale FOR UPDATE")
        recording = asyncio.create_task(ledger.record(sale.id, [Event.SERVE]))
        await waits_for_a_lock(postgres)
        postgres.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'obol'")

        with pytest.raises(LedgerUnavailableError, match="SQLSTATE 57P01"):
            await recording

    await until_it_works(ledger)
    assert await ledger.sale(sale.id) == sale
    assert (await ledger.record(sale.id, [Event.SERVE], attempt=sale.attempt)).state is State.SERVING
    assert isinstance(await ledger.claim(a_new_sale()), Claimed)


async def test_idle_connections_that_broke_are_not_used_again(ledger: PostgresLedger, postgres: Postgres) -> None:
    sales = [await claimed_in(ledger, State.CLAIMED) for _ in range(2)]
    await asyncio.gather(*(ledger.sale(sale.id) for sale in sales for _ in range(10)))
    postgres.run("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'obol'")

    assert [await ledger.sale(sale.id) for sale in sales] == sales


async def test_a_hold_that_was_broken_and_renewed_is_the_same_hold(
    ledger: PostgresLedger, postgres: Postgres, database_url: str
) -> None:
    sale = await claimed_in(ledger, State.SERVING)
    break_hold(postgres, ledger)
    await until_it_works(ledger)

    async with opened(database_url) as other:
        assert await other.adopt() == []
        assert await ledger.adopt() == []
        served = await ledger.record(sale.id, [Event.OUTPUT], attempt=sale.attempt)
    assert served.state is State.SERVED


async def test_what_was_adopted_while_the_hold_was_broken_is_nobody_elses_any_more(
    ledger: PostgresLedger, postgres: Postgres, database_url: str
) -> None:
    """The gateway works on, and neither asks for the money of a sale nor serves one that another has now."""
    lost, kept = await claimed_in(ledger, State.SERVED), await claimed_in(ledger, State.SERVED, other_network())
    async with opened(database_url) as other, no_new_connections(postgres, other):
        break_hold(postgres, ledger)
        assert await other.adopt(lost.key.network) == [lost]

        for call in (
            ledger.record(lost.id, [Event.SETTLE], attempt=lost.attempt),
            ledger.record(lost.id, [Event.SETTLE]),
            ledger.trust(lost.id, [Event.SETTLE], NO_CHANGE, Standing(0, 1000)),
        ):
            with pytest.raises(SaleTakenError):
                await call
        while ledger.is_held:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        for refused in (ledger.claim(a_new_sale()), ledger.check(), ledger.adopt()):
            with pytest.raises(LedgerUnavailableError):
                await refused
        allow_connections(postgres, True)
        await until_it_works(ledger)

        assert await ledger.adopt() == []
        assert await other.adopt() == []
        assert isinstance(await ledger.claim(a_new_sale()), Claimed)
        assert (await ledger.record(kept.id, [Event.SETTLE], attempt=kept.attempt)).state is State.SETTLING
        with pytest.raises(SaleTakenError):
            await ledger.record(lost.id, [Event.SETTLE], attempt=lost.attempt)
        settling = await other.record(lost.id, [Event.SETTLE], attempt=lost.attempt)
    assert settling.state is State.SETTLING


async def test_a_gateway_whose_sale_was_adopted_can_redeem_it_like_any_other(
    ledger: PostgresLedger, postgres: Postgres, database_url: str
) -> None:
    sale = await claimed_in(ledger, State.SETTLING, key := a_key())
    async with opened(database_url) as other, no_new_connections(postgres, other):
        break_hold(postgres, ledger)
        assert await other.adopt() == [sale]
        await other.record(sale.id, [Event.SETTLED_UNDELIVERED], attempt=sale.attempt)
    await until_it_works(ledger)
    new = a_new_sale(key)

    outcome = await ledger.claim(new)

    assert isinstance(outcome, Redeeming)
    assert (await ledger.record(sale.id, [Event.OUTPUT], attempt=new.id)).state is State.SETTLED


def other_network() -> ClaimKey:
    return replace(a_key(), network="eip155:1")


@contextlib.asynccontextmanager
async def no_new_connections(postgres: Postgres, but: PostgresLedger) -> AsyncIterator[None]:
    """Until `allow_connections`, nobody can connect; `but` has its connection already."""
    await but.check()
    allow_connections(postgres, False)
    try:
        yield
    finally:
        allow_connections(postgres, True)


def allow_connections(postgres: Postgres, is_allowed: bool) -> None:
    postgres.run("UPDATE pg_database SET datallowconn = %s WHERE datname = 'obol_test'", is_allowed)


async def test_a_claim_whose_answer_was_lost_is_found_by_its_attempt(database_url: str, tmp_path: Path) -> None:
    async with PostgresProxy(database_url, tmp_path) as proxy, opened(proxy.url) as ledger:
        proxy.lose_answer_to(b"INSERT INTO obol.sale")
        new = a_new_sale()

        with pytest.raises(LedgerUnavailableError, match="cannot be reached"):
            await ledger.claim(new)

        assert proxy.lost_answers == 1
        held = await ledger.held_by(new.id)
        assert held == as_claimed(new, FakeClock().now_s())
        assert (await ledger.record(new.id, [Event.RELEASE], attempt=new.id)).state is State.RELEASED


async def test_a_server_that_falls_silent_is_given_up(database_url: str, tmp_path: Path) -> None:
    async with (
        PostgresProxy(database_url, tmp_path) as proxy,
        opened(proxy.url, Waits(work_s=0.2)) as ledger,
    ):
        sale = await claimed_in(ledger, State.CLAIMED)
        proxy.fall_silent()
        with pytest.raises(LedgerUnavailableError, match="did not answer in time"):
            await ledger.sale(sale.id)
        proxy.speak()

        await until_it_works(ledger)
        assert await ledger.sale(sale.id) == sale


async def test_a_wait_that_is_cancelled_leaves_the_ledger_in_order(
    ledger: PostgresLedger, postgres: Postgres, database_url: str
) -> None:
    sale = await claimed_in(ledger, State.CLAIMED)
    async with await psycopg.AsyncConnection.connect(database_url) as other:
        await other.execute("SELECT 1 FROM obol.sale FOR UPDATE")
        recording = asyncio.create_task(ledger.record(sale.id, [Event.SERVE]))
        await waits_for_a_lock(postgres)
        recording.cancel()
        with pytest.raises(asyncio.CancelledError):
            await recording

    assert (await ledger.record(sale.id, [Event.OUTPUT])).state is State.SERVED


async def test_a_transaction_that_holds_a_sale_too_long_makes_it_unavailable(
    database_url: str,
) -> None:
    async with opened(database_url, Waits(lock_s=0.1)) as ledger:
        sale = await claimed_in(ledger, State.CLAIMED)
        async with await psycopg.AsyncConnection.connect(database_url) as other:
            await other.execute("SELECT 1 FROM obol.sale FOR UPDATE")
            with pytest.raises(LedgerUnavailableError, match="SQLSTATE 55P03"):
                await ledger.record(sale.id, [Event.SERVE])

        assert (await ledger.record(sale.id, [Event.SERVE])).state is State.SERVING


async def test_a_step_is_taken_from_where_another_transaction_left_the_sale(
    ledger: PostgresLedger, postgres: Postgres, database_url: str
) -> None:
    sale = await claimed_in(ledger, State.CLAIMED)
    async with await psycopg.AsyncConnection.connect(database_url) as other:
        await other.execute("UPDATE obol.sale SET state = 'released'")
        recording = asyncio.create_task(ledger.record(sale.id, [Event.SERVE]))
        await waits_for_a_lock(postgres)
        await other.commit()

    with pytest.raises(IllegalTransitionError):
        await recording


async def test_a_lock_that_is_gone_although_the_connection_lives_is_taken_again(
    postgres: Postgres, database_url: str
) -> None:
    """As behind a pooler that gave the session to another."""
    async with opened(database_url, Waits(ping_s=0.02)) as ledger:
        [before] = pids_that_hold(postgres, ledger)
        await ledger._hold._connection.execute("SELECT pg_advisory_unlock_all()")

        while (now := pids_that_hold(postgres, ledger)) in ([], [before]):  # noqa: ASYNC110
            await asyncio.sleep(0.01)

        assert len(now) == 1
        await until_it_works(ledger)


# ------------------------------------------------------------------------------------------- claims that come late


@pytest.mark.parametrize("is_owed", [False, True])
async def test_a_claim_that_is_still_being_committed_is_waited_for_and_taken_back(
    postgres: Postgres, database_url: str, is_owed: bool
) -> None:
    """Its answer was given up; the server goes on, and nobody can see it yet."""
    async with (
        opened(database_url, Waits(work_s=0.5)) as ledger,
        opened(database_url, Waits(lock_s=0.1)) as impatient,
        opened(database_url) as patient,
    ):
        key = a_key()
        if is_owed:
            await claimed_in(ledger, State.OWED, key)
        new = a_new_sale(key)
        async with standby_away(postgres):
            with pytest.raises(LedgerUnavailableError):
                await ledger.claim(new)
            assert await ledger.held_by(new.id) is None
            with pytest.raises(LedgerUnavailableError, match="SQLSTATE 55P03"):
                await impatient.disown(new, "why")
            disowning = asyncio.create_task(patient.disown(new, "why"))
            await waits_for_a_lock(postgres)
        freed = await disowning

        assert freed is not None
        assert freed.state is (State.OWED if is_owed else State.RELEASED)
        await until_it_works(ledger)
        assert isinstance(await ledger.claim(a_new_sale(key)), Redeeming if is_owed else Claimed)


async def test_a_claim_whose_answer_was_lost_is_taken_back(database_url: str, tmp_path: Path) -> None:
    async with PostgresProxy(database_url, tmp_path) as proxy, opened(proxy.url) as ledger:
        proxy.lose_answer_to(b"INSERT INTO obol.sale")
        new = a_new_sale()
        with pytest.raises(LedgerUnavailableError):
            await ledger.claim(new)

        freed = await ledger.disown(new, "why")

    assert freed is not None
    assert (freed.id, freed.state, proxy.lost_answers) == (new.id, State.RELEASED, 1)


async def test_a_claim_that_another_gateway_adopted_is_not_taken_back(
    ledger: PostgresLedger, postgres: Postgres, database_url: str
) -> None:
    new = a_new_sale()
    await ledger.claim(new)
    async with opened(database_url) as other, no_new_connections(postgres, other):
        break_hold(postgres, ledger)
        [adopted] = await other.adopt()
        with pytest.raises(SaleTakenError):
            await ledger.disown(new, "why")
        assert await other.sale(new.id) == adopted
