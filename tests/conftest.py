from collections.abc import AsyncIterator

import pytest

from tests.evm.anvil import Anvil


@pytest.fixture
async def anvil() -> AsyncIterator[Anvil]:
    async with Anvil() as anvil:
        yield anvil
