"""Pages of a table that others are writing."""

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest

from obol.adapters.ledger_postgres import PostgresLedger
from obol.adapters.ledger_postgres_pages import read_page
from obol.adapters.ledger_postgres_sql import INSERT, inserted
from obol.core.ledger import EVERY_SALE
from obol.core.payment import State
from tests.adapters.postgres_ledgers import opened
from tests.adapters.sales import a_new_sale, as_claimed, claimed_in


@pytest.fixture
async def ledger(database_url: str) -> AsyncIterator[PostgresLedger]:
    async with opened(database_url) as ledger:
        yield ledger


async def test_a_page_waits_for_an_earlier_claim_that_is_not_committed_yet(
    ledger: PostgresLedger, database_url: str
) -> None:
    async with await psycopg.AsyncConnection.connect(database_url) as other:
        await other.execute(INSERT, inserted([as_claimed(a_new_sale(), 1.0)], 1))
        later = await claimed_in(ledger, State.CLAIMED)
        reading = asyncio.create_task(ledger.page(EVERY_SALE))
        done, _ = await asyncio.wait((reading,), timeout=0.1)
        assert not done
        await other.commit()

    page = await reading
    assert len(page.sales) == 2
    assert page.sales[1] == later


async def test_a_page_does_not_wait_for_ever(ledger: PostgresLedger, database_url: str) -> None:
    await claimed_in(ledger, State.CLAIMED)
    async with (
        await psycopg.AsyncConnection.connect(database_url) as other,
        await psycopg.AsyncConnection.connect(database_url, autocommit=True) as reader,
    ):
        await other.execute(INSERT, inserted([as_claimed(a_new_sale(), 1.0)], 1))
        with pytest.raises(TimeoutError):
            await read_page(reader, EVERY_SALE, None, 10, wait_s=0.05)


async def test_pages_beside_claims_give_every_sale_once(database_url: str) -> None:
    async with opened(database_url) as one, opened(database_url) as two, opened(database_url) as reader:
        found: list[str] = []
        cursor: int | None = None

        async def sell(ledger: PostgresLedger) -> list[str]:
            return [(await claimed_in(ledger, State.CLAIMED)).id for _ in range(60)]

        selling = [asyncio.create_task(sell(ledger)) for ledger in (one, two, one, two)]
        while True:
            is_over = all(task.done() for task in selling)
            page = await reader.page(EVERY_SALE, after=cursor, limit=7)
            found.extend(sale.id for sale in page.sales)
            cursor = page.cursor or cursor
            if page.cursor is None:
                if is_over:
                    break
                found = found[: len(found) - len(page.sales)]  # without a cursor the last page is read again

    assert sorted(found) == sorted(sale_id for task in selling for sale_id in task.result())
