import os
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.evm.anvil import Anvil
from tests.postgres import Postgres


@pytest.fixture(scope="session", autouse=True)
def data_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Programs that are told no folder keep their data in one of the tests', not in that of whoever runs them."""
    before = os.environ.get("XDG_DATA_HOME")
    os.environ["XDG_DATA_HOME"] = str(tmp_path_factory.mktemp("data"))
    yield
    if before is None:
        del os.environ["XDG_DATA_HOME"]
    else:
        os.environ["XDG_DATA_HOME"] = before


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
