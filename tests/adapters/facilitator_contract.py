"""What every `Facilitator` must do, whoever moves the money. A subclass provides the fixture `facilitator`.

`chain` and `clock` are behind it. Run against the devnet in process and over HTTP.
"""

import asyncio
from typing import Any

import pytest

from obol.adapters.chain_devnet import DevnetChain
from obol.x402.facilitator import Accepted, Facilitator, Refused, SettleOutcome
from obol.x402.models import ExactPayload, PaymentPayload, PaymentRequirements
from obol.x402.reasons import Reason
from tests.adapters.payments import PRICE_ATOMIC, SELLER, USDC, account, pay, requirements
from tests.fakes.clock import FakeClock

BUYER = account(1)
FUNDS_ATOMIC = 5 * PRICE_ATOMIC
UNKNOWN_TOKEN = "0x" + "77" * 20

MISFITS: list[tuple[Reason, dict[str, Any], dict[str, Any]]] = [
    (Reason.UNSUPPORTED_SCHEME, {"scheme": "upto"}, {}),
    (Reason.INVALID_NETWORK, {"network": "eip155:8453"}, {}),
    (Reason.ASSET_NOT_SUPPORTED, {"asset": UNKNOWN_TOKEN}, {}),
    (Reason.MISSING_EIP712_DOMAIN, {"extra": None}, {}),
    (Reason.MISSING_EIP712_DOMAIN, {"extra": {"name": "USDC"}}, {}),
    (Reason.TOKEN_NAME_MISMATCH, {"extra": {"name": "USD Coin", "version": "2"}}, {}),
    (Reason.TOKEN_VERSION_MISMATCH, {"extra": {"name": "USDC", "version": "1"}}, {}),
    (Reason.RECIPIENT_MISMATCH, {}, {"to": BUYER.address}),
    (Reason.VALUE_MISMATCH, {}, {"value": PRICE_ATOMIC - 1}),
    (Reason.VALUE_MISMATCH, {}, {"value": PRICE_ATOMIC + 1}),
    (Reason.SIGNATURE, {}, {"domain": {"name": "USD Coin"}}),
    (Reason.SIGNATURE, {}, {"wallet": account(2), "from_": BUYER.address}),
]
"""Reason, changes of the requirements, changes of the payment."""


class FacilitatorContract:
    """Inherit, name the class Test…, and provide `facilitator`."""

    @pytest.fixture(autouse=True)
    async def funds(self, chain: DevnetChain) -> None:
        await chain.fund(USDC, BUYER.address, FUNDS_ATOMIC)

    async def test_a_good_payment_is_accepted_and_settled(self, facilitator: Facilitator, chain: DevnetChain) -> None:
        wanted = requirements()
        paid = pay(wanted)
        assert await facilitator.verify(paid, wanted) == Accepted(BUYER.address.lower())
        settlement = await facilitator.settle(paid, wanted)
        assert settlement.outcome is SettleOutcome.SETTLED
        (moved,) = await chain.transfers(USDC, payee=SELLER)
        assert (moved.transaction, moved.amount_atomic) == (settlement.transaction, PRICE_ATOMIC)

    async def test_verifying_changes_nothing(self, facilitator: Facilitator, chain: DevnetChain) -> None:
        wanted = requirements()
        paid = pay(wanted)
        for _ in range(3):
            assert isinstance(await facilitator.verify(paid, wanted), Accepted)
        assert await chain.balance(USDC, SELLER) == 0

    async def test_settling_again_with_the_same_payload_moves_once(
        self, facilitator: Facilitator, chain: DevnetChain
    ) -> None:
        wanted = requirements()
        paid = pay(wanted)
        settlements = await asyncio.gather(*(facilitator.settle(paid, wanted) for _ in range(5)))
        assert len(set(settlements)) == 1
        assert await chain.balance(USDC, SELLER) == PRICE_ATOMIC

    async def test_a_settlement_is_found_again_after_the_window(
        self, facilitator: Facilitator, clock: FakeClock
    ) -> None:
        wanted = requirements()
        paid = pay(wanted, validBefore=int(clock.now_s()) + 30)
        first = await facilitator.settle(paid, wanted)
        clock.advance(60)
        assert await facilitator.settle(paid, wanted) == first
        assert first.outcome is SettleOutcome.SETTLED

    @pytest.mark.parametrize(("reason", "wanted_changes", "paid_changes"), MISFITS)
    async def test_what_does_not_fit_is_refused_and_moves_nothing(
        self,
        facilitator: Facilitator,
        chain: DevnetChain,
        reason: Reason,
        wanted_changes: dict[str, Any],
        paid_changes: dict[str, Any],
    ) -> None:
        wanted = requirements(**wanted_changes)
        await self._refused(facilitator, pay(wanted, **paid_changes), wanted, reason)
        assert await chain.balance(USDC, BUYER.address) == FUNDS_ATOMIC

    async def test_a_payment_accepted_for_another_network_is_refused(self, facilitator: Facilitator) -> None:
        paid = pay(requirements(network="eip155:8453"))
        await self._refused(facilitator, paid, requirements(), Reason.NETWORK_MISMATCH)

    @pytest.mark.parametrize("left_s", [-1, 0, 5])
    async def test_too_little_left_of_the_window_is_refused(
        self, facilitator: Facilitator, clock: FakeClock, left_s: int
    ) -> None:
        wanted = requirements()
        paid = pay(wanted, validBefore=int(clock.now_s()) + left_s)
        outcome = await facilitator.verify(paid, wanted)
        assert isinstance(outcome, Refused)
        assert outcome.reason == Reason.VALID_BEFORE

    async def test_a_payment_that_is_not_valid_yet_is_refused(self, facilitator: Facilitator, clock: FakeClock) -> None:
        wanted = requirements()
        paid = pay(wanted, validAfter=int(clock.now_s()) + 10)
        await self._refused(facilitator, paid, wanted, Reason.VALID_AFTER)

    async def test_an_empty_wallet_is_refused(self, facilitator: Facilitator) -> None:
        wanted = requirements(FUNDS_ATOMIC + 1)
        await self._refused(facilitator, pay(wanted), wanted, Reason.INSUFFICIENT_BALANCE)

    async def test_funds_that_left_between_verify_and_settle_are_a_definite_no(
        self, facilitator: Facilitator, chain: DevnetChain
    ) -> None:
        wanted, everything = requirements(), requirements(FUNDS_ATOMIC)
        paid = pay(wanted)
        assert isinstance(await facilitator.verify(paid, wanted), Accepted)
        await facilitator.settle(pay(everything), everything)
        assert (await facilitator.settle(paid, wanted)).outcome is SettleOutcome.FAILED

    async def test_a_cancelled_authorization_never_settles(self, facilitator: Facilitator, chain: DevnetChain) -> None:
        wanted = requirements()
        paid = pay(wanted)
        await chain.cancel(USDC, BUYER.address, paid.payload.signed.nonce)
        verified = await facilitator.verify(paid, wanted)
        settlement = await facilitator.settle(paid, wanted)
        assert isinstance(verified, Refused)
        assert verified.reason == settlement.reason == Reason.AUTHORIZATION_USED
        assert settlement.outcome in (SettleOutcome.FAILED, SettleOutcome.UNKNOWN)  # over HTTP: used by whom?

    async def test_letter_case_of_addresses_does_not_matter(self, facilitator: Facilitator) -> None:
        wanted = requirements(pay_to=SELLER.lower(), asset=USDC.address.lower())
        paid = pay(wanted, from_=BUYER.address.lower())
        assert isinstance(await facilitator.verify(paid, wanted), Accepted)

    @pytest.mark.parametrize("v_offset", [0, 27])
    async def test_both_spellings_of_v_are_understood(self, facilitator: Facilitator, v_offset: int) -> None:
        wanted = requirements()
        paid = pay(wanted)
        signature = bytes.fromhex(paid.payload.signature[2:])
        respelled = signature[:64] + bytes((signature[64] % 27 + v_offset,))
        payload = ExactPayload("0x" + respelled.hex(), paid.payload.authorization)
        assert isinstance(await facilitator.verify(PaymentPayload(wanted, payload), wanted), Accepted)

    async def test_it_says_what_it_can_do(self, facilitator: Facilitator) -> None:
        kinds = {(kind.x402_version, kind.scheme, kind.network) for kind in (await facilitator.supported()).kinds}
        assert kinds == {(2, "exact", "eip155:84532"), (1, "exact", "base-sepolia")}

    async def test_closing_twice_is_harmless(self, facilitator: Facilitator) -> None:
        await facilitator.close()
        await facilitator.close()

    async def _refused(
        self, facilitator: Facilitator, paid: PaymentPayload, wanted: PaymentRequirements, reason: Reason
    ) -> None:
        """By verify and, for good, by settle."""
        verified = await facilitator.verify(paid, wanted)
        settlement = await facilitator.settle(paid, wanted)
        assert isinstance(verified, Refused)
        assert verified.reason == settlement.reason == reason
        assert settlement.outcome is SettleOutcome.FAILED
        assert settlement.transaction == ""
