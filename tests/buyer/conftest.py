from collections.abc import Iterator
from pathlib import Path

import pytest

from obol.adapters.kept_payments import KeptPayments
from obol.adapters.signer_local import LocalSigner
from obol.buyer.payment import Payment
from obol.buyer.payment_auth import PaymentAuth
from obol.buyer.unresolved import Unresolved
from tests.buyer.processes import NewAuth
from tests.fakes.seller import FakeSeller


@pytest.fixture
def seller() -> Iterator[FakeSeller]:
    with FakeSeller() as running:
        yield running


@pytest.fixture(scope="session")
def signer() -> LocalSigner:
    return LocalSigner.generate()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "payments"


@pytest.fixture
def found() -> list[Payment]:
    """What was presented again, or passed over, in every process."""
    return []


@pytest.fixture
def new_auth(signer: LocalSigner, folder: Path, found: list[Payment]) -> NewAuth:
    """A buyer in a new process: the one before is gone, and its locks with it."""
    stores: list[KeptPayments] = []

    def make(*, signer: LocalSigner = signer, is_ignored: bool = False, **options: object) -> PaymentAuth:
        for store in stores:
            store.close()
        stores.append(KeptPayments(folder))
        unresolved = Unresolved(stores[-1], on_found=found.append, is_ignored=is_ignored)
        return PaymentAuth(signer, unresolved=unresolved, **options)  # type: ignore[arg-type]

    return make
