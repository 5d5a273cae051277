"""A devnet, and our facilitator listening on it."""

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from obol.adapters.chain_devnet import DevnetChain
from obol.adapters.facilitator_devnet import DevnetFacilitator
from tests.facilitator.running import running
from tests.fakes.clock import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def chain(tmp_path: Path, clock: FakeClock) -> AsyncIterator[DevnetChain]:
    opened = await DevnetChain.open(tmp_path / "devnet.sqlite3", clock)
    yield opened
    await opened.close()


@pytest.fixture
async def url(chain: DevnetChain) -> AsyncIterator[str]:
    async with running(DevnetFacilitator(chain)) as address:
        yield address


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session
