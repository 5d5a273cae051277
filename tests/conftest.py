from collections.abc import AsyncIterator, Iterator

import pytest

from tests.evm.anvil import Anvil
from tests.postgres import Postgres


@pytest.fixture
async def anvil() -> AsyncIterator[Anvil]:
    async with Anvil() as anvil:
        yield anvil


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with Postgres() as postgres:
        yield postgres


@pytest.fixture
def database_url(postgres: Postgres) -> str:
    """Of a database that is empty when the test begins."""
    return postgres.empty_database()
