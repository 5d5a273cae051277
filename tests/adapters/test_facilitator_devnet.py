"""The devnet facilitator in process."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from obol.adapters.chain_devnet import DevnetChain
from obol.adapters.facilitator_devnet import DevnetFacilitator
from obol.errors import FacilitatorUnavailableError
from obol.x402.facilitator import Refused, SettleOutcome
from obol.x402.models import ExactAuthorization, PaymentPayload
from obol.x402.reasons import Reason
from tests.adapters.facilitator_contract import FacilitatorContract
from tests.adapters.payments import PRICE_ATOMIC, USDC, account, pay, requirements
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
def facilitator(chain: DevnetChain) -> DevnetFacilitator:
    return DevnetFacilitator(chain)


class TestDevnetFacilitator(FacilitatorContract):
    """In process."""


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("value", "01000"),
        ("value", "1e3"),
        ("value", "+1000"),
        ("value", "-1000"),
        ("value", "1000.0"),
        ("valid_before", str(2**256)),
        ("valid_after", ""),
        ("nonce", "0x12"),
        ("from_", "alice"),
        ("to", "0x"),
    ],
)
async def test_numbers_and_addresses_in_other_forms_are_refused(
    facilitator: DevnetFacilitator, field: str, text: str
) -> None:
    wanted = requirements()
    paid = pay(wanted)
    assert isinstance(paid.payload.signed, ExactAuthorization)
    authorization = msgspec.structs.replace(paid.payload.signed, **{field: text})
    bent = PaymentPayload(wanted, msgspec.structs.replace(paid.payload, authorization=authorization))
    outcome = await facilitator.verify(bent, wanted)
    assert isinstance(outcome, Refused)
    assert outcome.reason == Reason.INVALID_PAYLOAD


async def test_requirements_with_an_amount_that_is_no_amount_are_met_by_nobody(facilitator: DevnetFacilitator) -> None:
    wanted = requirements()
    outcome = await facilitator.verify(pay(wanted), requirements(amount="01000"))
    assert isinstance(outcome, Refused)


async def test_settling_needs_no_margin_in_the_window(
    facilitator: DevnetFacilitator, chain: DevnetChain, clock: FakeClock
) -> None:
    await chain.fund(USDC, account().address, PRICE_ATOMIC)
    wanted = requirements()
    paid = pay(wanted, validBefore=int(clock.now_s()) + 1)
    assert (await facilitator.settle(paid, wanted)).outcome is SettleOutcome.SETTLED


async def test_a_devnet_that_cannot_be_used_is_unavailable_and_a_settlement_unknown(
    facilitator: DevnetFacilitator, chain: DevnetChain
) -> None:
    await chain.close()
    wanted = requirements()
    with pytest.raises(FacilitatorUnavailableError):
        await facilitator.verify(pay(wanted), wanted)
    assert (await facilitator.settle(pay(wanted), wanted)).outcome is SettleOutcome.UNKNOWN
