"""The facilitator contract through our client and our app over a socket, as a gateway uses it."""

from collections.abc import AsyncIterator

import pytest

from obol.adapters.facilitator_http import HttpFacilitator
from tests.adapters.facilitator_contract import FacilitatorContract


@pytest.fixture
async def facilitator(url: str) -> AsyncIterator[HttpFacilitator]:
    client = HttpFacilitator(url + "/")
    yield client
    await client.close()


class TestHttpFacilitatorAndOurApp(FacilitatorContract):
    """Over a socket."""
