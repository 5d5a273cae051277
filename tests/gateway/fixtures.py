"""Fixtures of everything that tests a whole gateway; the `conftest.py` of such a folder imports them."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.gateway.shop import Shop

MakeShop = Callable[..., Awaitable[Shop]]
"""`await make_shop(max_inflight=1, facilitator=True, …)`: arguments as of `Shop`, without the folder."""


@pytest.fixture
async def make_shop(tmp_path: Path) -> AsyncIterator[MakeShop]:
    """Shops of one data folder, closed when the test ends."""
    async with AsyncExitStack() as stack:

        async def make(**how: object) -> Shop:
            return await stack.enter_async_context(Shop(tmp_path, **how))  # type: ignore[arg-type]

        yield make


@pytest.fixture
async def shop(make_shop: MakeShop) -> Shop:
    """A shop without limits that settles on its own devnet."""
    return await make_shop()
