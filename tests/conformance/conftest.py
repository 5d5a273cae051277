"""One llama.cpp server and two gateways before it, for the whole folder; a wallet of its own for each test.

Everything here lives in one event loop, the session's: the tests' modules ask for it too.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from eth_account import Account
from eth_account.signers.local import LocalAccount

from obol import SettlementPolicy
from obol.adapters.llamacpp import LlamaCppServer
from tests.components import missing
from tests.conformance import node
from tests.conformance.shop import Shop, open_shop
from tests.fakes.model_server import FakeModelServer


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def llamacpp(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LlamaCppServer]:
    for module in ("gguf", "numpy", "xllamacpp"):
        try:
            __import__(module)
        except ImportError:
            missing(module, "pip install 'obol-inference[demo]'")
    async with LlamaCppServer(tmp_path_factory.mktemp("llamacpp")) as server:
        yield server


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def real_shops(
    llamacpp: LlamaCppServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[dict[SettlementPolicy, Shop]]:
    """In front of the real server, by settlement policy."""
    on_output, before = SettlementPolicy.ON_OUTPUT, SettlementPolicy.BEFORE
    async with (
        open_shop(llamacpp.url, tmp_path_factory.mktemp("on-output"), settlement=on_output) as first,
        open_shop(llamacpp.url, tmp_path_factory.mktemp("before"), settlement=before) as second,
    ):
        yield {on_output: first, before: second}


@pytest_asyncio.fixture(loop_scope="session")
async def model_server() -> AsyncIterator[FakeModelServer]:
    async with FakeModelServer() as server:
        yield server


@pytest.fixture(scope="session")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where Node finds the scripts and the packages."""
    return node.prepare(tmp_path_factory.mktemp("js"))


@pytest.fixture
def wallet() -> LocalAccount:
    created: LocalAccount = Account.create()
    return created
