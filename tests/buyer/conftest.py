from collections.abc import Iterator

import pytest

from obol.adapters.signer_local import LocalSigner
from tests.fakes.seller import FakeSeller


@pytest.fixture
def seller() -> Iterator[FakeSeller]:
    with FakeSeller() as running:
        yield running


@pytest.fixture(scope="session")
def signer() -> LocalSigner:
    return LocalSigner.generate()
