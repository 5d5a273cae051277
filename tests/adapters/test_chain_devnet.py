"""The devnet keeps EIP-3009's rules: one move per authorization, inside its window, within the balance."""

import asyncio
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from eth_account.signers.local import LocalAccount
from hypothesis import given, settings
from hypothesis import strategies as st

from obol.adapters.chain_devnet import ZERO_ADDRESS, DevnetChain
from obol.core.money import UINT256_MAX
from obol.core.networks import AVALANCHE_FUJI, BASE_SEPOLIA, DEFAULT_CATALOGUE, Network, TransferMethod
from obol.errors import LedgerUnavailableError, SettingsError
from obol.x402.authorization import Authorization, parse_authorization, parse_signature
from obol.x402.facilitator import Accepted, Refused, Settlement, SettleOutcome
from obol.x402.models import PaymentPayload
from obol.x402.reasons import Reason
from tests.adapters.payments import PRICE_ATOMIC, SELLER, USDC, account, pay, requirements
from tests.fakes.clock import FakeClock

BUYER = account(1)
OTHER = account(2)
NONCE = "0x" + "5a" * 32


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@asynccontextmanager
async def opened(
    file: Path, clock: FakeClock, networks: Sequence[Network] = (BASE_SEPOLIA,)
) -> AsyncIterator[DevnetChain]:
    """Closed whatever happens: its thread would outlive the test."""
    chain = await DevnetChain.open(file, clock, networks=networks)
    try:
        yield chain
    finally:
        await chain.close()


@pytest.fixture
async def chain(tmp_path: Path, clock: FakeClock) -> AsyncIterator[DevnetChain]:
    async with opened(tmp_path / "devnet.sqlite3", clock) as chain:
        await chain.fund(USDC, BUYER.address, 10 * PRICE_ATOMIC)
        yield chain


def signed(payload: PaymentPayload) -> tuple[Authorization, bytes]:
    return parse_authorization(payload.payload), parse_signature(payload.payload)


def authorize(wallet: LocalAccount = BUYER, **changes: object) -> tuple[Authorization, bytes]:
    return signed(pay(requirements(), wallet, **changes))  # type: ignore[arg-type]


async def balances(chain: DevnetChain) -> tuple[int, int]:
    return await chain.balance(USDC, BUYER.address), await chain.balance(USDC, SELLER)


async def test_settling_moves_exactly_the_signed_amount(chain: DevnetChain) -> None:
    settlement = await chain.settle(*authorize(), USDC)
    assert settlement.outcome is SettleOutcome.SETTLED
    assert await balances(chain) == (9 * PRICE_ATOMIC, PRICE_ATOMIC)


async def test_verifying_moves_nothing_and_says_what_settling_would(chain: DevnetChain) -> None:
    authorization, signature = authorize()
    assert await chain.verify(authorization, signature, USDC) == Accepted(BUYER.address.lower())
    assert await balances(chain) == (10 * PRICE_ATOMIC, 0)
    await chain.settle(authorization, signature, USDC)
    verified = await chain.verify(authorization, signature, USDC)
    assert isinstance(verified, Refused)
    assert verified.reason == Reason.AUTHORIZATION_USED


async def test_transactions_look_like_transactions_and_are_unique(chain: DevnetChain) -> None:
    transactions = {(await chain.settle(*authorize(), USDC)).transaction for _ in range(3)}
    assert len(transactions) == 3
    assert all(len(t) == 66 and t.startswith("0x") and int(t, 16) for t in transactions)


async def test_the_same_authorization_again_is_the_same_transaction_however_late(
    chain: DevnetChain, clock: FakeClock
) -> None:
    authorization, signature = authorize(validBefore=int(clock.now_s()) + 60)
    first = await chain.settle(authorization, signature, USDC)
    clock.advance(3600)
    assert await chain.settle(authorization, signature, USDC) == first
    assert await balances(chain) == (9 * PRICE_ATOMIC, PRICE_ATOMIC)


async def test_ten_at_once_move_the_money_once(chain: DevnetChain) -> None:
    authorization, signature = authorize()
    settlements = await asyncio.gather(*(chain.settle(authorization, signature, USDC) for _ in range(10)))
    assert len(set(settlements)) == 1
    assert await balances(chain) == (9 * PRICE_ATOMIC, PRICE_ATOMIC)


async def test_a_used_nonce_with_other_content_is_refused(chain: DevnetChain) -> None:
    await chain.settle(*authorize(nonce=NONCE), USDC)
    second = await chain.settle(*authorize(nonce=NONCE, to=OTHER.address), USDC)
    assert (second.outcome, second.reason) == (SettleOutcome.FAILED, Reason.AUTHORIZATION_USED)


async def test_nonces_belong_to_their_payer(chain: DevnetChain) -> None:
    await chain.fund(USDC, OTHER.address, PRICE_ATOMIC)
    first = await chain.settle(*authorize(nonce=NONCE), USDC)
    second = await chain.settle(*authorize(OTHER, nonce=NONCE), USDC)
    assert second.outcome is SettleOutcome.SETTLED
    assert second.transaction != first.transaction


async def test_a_cancelled_authorization_is_refused(chain: DevnetChain) -> None:
    authorization, signature = authorize()
    assert await chain.cancel(USDC, BUYER.address, authorization.nonce)
    settlement = await chain.settle(authorization, signature, USDC)
    assert (settlement.outcome, settlement.reason) == (SettleOutcome.FAILED, Reason.AUTHORIZATION_USED)
    assert await balances(chain) == (10 * PRICE_ATOMIC, 0)


async def test_a_used_authorization_cannot_be_cancelled(chain: DevnetChain) -> None:
    authorization, signature = authorize()
    settlement = await chain.settle(authorization, signature, USDC)
    assert not await chain.cancel(USDC, BUYER.address, authorization.nonce)
    assert await chain.settle(authorization, signature, USDC) == settlement


@pytest.mark.parametrize(
    ("after", "before", "reason"),
    [
        (-1, 1, None),
        (0, 60, Reason.VALID_AFTER),
        (1, 60, Reason.VALID_AFTER),
        (-60, 0, Reason.VALID_BEFORE),
        (-60, -1, Reason.VALID_BEFORE),
    ],
)
async def test_the_window_is_open_strictly_between_its_ends(
    chain: DevnetChain, clock: FakeClock, after: int, before: int, reason: Reason | None
) -> None:
    now_s = int(clock.now_s())
    settlement = await chain.settle(*authorize(validAfter=now_s + after, validBefore=now_s + before), USDC)
    assert settlement.reason == (reason or "")
    assert (settlement.outcome is SettleOutcome.SETTLED) == (reason is None)


async def test_more_than_the_balance_is_refused_and_leaves_the_nonce_unused(chain: DevnetChain) -> None:
    authorization, signature = signed(pay(requirements(), BUYER, value=10 * PRICE_ATOMIC + 1))
    refused = await chain.settle(authorization, signature, USDC)
    assert (refused.outcome, refused.reason) == (SettleOutcome.FAILED, Reason.INSUFFICIENT_BALANCE)
    await chain.fund(USDC, BUYER.address, 1)
    assert (await chain.settle(authorization, signature, USDC)).outcome is SettleOutcome.SETTLED


async def test_the_whole_balance_can_be_paid(chain: DevnetChain) -> None:
    await chain.settle(*signed(pay(requirements(), BUYER, value=10 * PRICE_ATOMIC)), USDC)
    assert await balances(chain) == (0, 10 * PRICE_ATOMIC)


async def test_paying_oneself_changes_no_balance(chain: DevnetChain) -> None:
    await chain.settle(*authorize(to=BUYER.address), USDC)
    assert await balances(chain) == (10 * PRICE_ATOMIC, 0)


async def test_nothing_goes_to_the_zero_address(chain: DevnetChain) -> None:
    assert (await chain.settle(*authorize(to=ZERO_ADDRESS), USDC)).reason == Reason.TRANSACTION_FAILED
    with pytest.raises(SettingsError):
        await chain.fund(USDC, ZERO_ADDRESS, 1)


@pytest.mark.parametrize(
    "domain",
    [{"name": "USD Coin"}, {"version": "1"}, {"chainId": 8453}, {"verifyingContract": "0x" + "11" * 20}],
)
async def test_a_signature_for_another_domain_is_refused(chain: DevnetChain, domain: dict[str, object]) -> None:
    authorization, signature = signed(pay(requirements(), BUYER, domain=domain))
    assert await chain.settle(authorization, signature, USDC) == Settlement(SettleOutcome.FAILED, "", Reason.SIGNATURE)


async def test_somebody_elses_signature_is_refused(chain: DevnetChain) -> None:
    authorization, signature = authorize(OTHER, from_=BUYER.address)
    assert await chain.verify(authorization, signature, USDC) == Refused(Reason.SIGNATURE)


@pytest.mark.parametrize("length", [1, 64, 66, 160])
async def test_only_plain_wallets_sign_here(chain: DevnetChain, length: int) -> None:
    authorization, signature = authorize()
    assert await chain.verify(authorization, (signature * 3)[:length], USDC) == Refused(Reason.SIGNATURE)


@pytest.mark.parametrize("account_text", ["", "0x12", "alice", "0x" + "g" * 40])
async def test_what_is_no_address_holds_nothing(chain: DevnetChain, account_text: str) -> None:
    with pytest.raises(SettingsError, match=r"^ADDRESS: "):
        await chain.balance(USDC, account_text)
    with pytest.raises(SettingsError, match=r"^ADDRESS: "):
        await chain.fund(USDC, account_text, 1)


async def test_addresses_may_be_in_any_letter_case(chain: DevnetChain) -> None:
    await chain.fund(USDC, OTHER.address.upper().replace("X", "x", 1), 3)
    assert await chain.fund(USDC, OTHER.address.lower(), 4) == 7


async def test_a_balance_fits_a_uint256(chain: DevnetChain) -> None:
    assert await chain.fund(USDC, OTHER.address, UINT256_MAX) == UINT256_MAX
    for amount_atomic in (1, 0, -1):
        with pytest.raises(SettingsError, match=r"^AMOUNT: "):
            await chain.fund(USDC, OTHER.address, amount_atomic)
    huge, signature = signed(pay(requirements(), OTHER, value=UINT256_MAX))
    assert (await chain.settle(huge, signature, USDC)).outcome is SettleOutcome.SETTLED
    assert await chain.balance(USDC, SELLER) == UINT256_MAX


async def test_the_log_holds_every_movement_in_order(chain: DevnetChain) -> None:
    authorization, signature = authorize()
    settlement = await chain.settle(authorization, signature, USDC)
    funded, moved = await chain.transfers(USDC)
    assert (funded.payer, funded.payee, funded.nonce) == (ZERO_ADDRESS, BUYER.address.lower(), "")
    assert (moved.transaction, moved.payer, moved.payee, moved.amount_atomic, moved.nonce) == (
        settlement.transaction,
        authorization.payer,
        authorization.to,
        PRICE_ATOMIC,
        authorization.nonce,
    )
    assert await chain.transfers(USDC, payer=BUYER.address, nonce=authorization.nonce) == [moved]
    assert await chain.transfers(USDC, payee=SELLER) == [moved]
    assert await chain.transfers(USDC, payee=OTHER.address) == []


async def test_everything_is_there_after_reopening(tmp_path: Path, clock: FakeClock) -> None:
    file = tmp_path / "devnet.sqlite3"
    authorization, signature = authorize()
    async with opened(file, clock) as before:
        await before.fund(USDC, BUYER.address, PRICE_ATOMIC)
        settlement = await before.settle(authorization, signature, USDC)
    async with opened(file, clock) as after:
        assert await after.settle(authorization, signature, USDC) == settlement
        assert await balances(after) == (0, PRICE_ATOMIC)


async def test_two_programs_share_a_file(chain: DevnetChain, tmp_path: Path, clock: FakeClock) -> None:
    authorizations = [authorize() for _ in range(20)]
    async with opened(tmp_path / "devnet.sqlite3", clock) as other:
        await asyncio.gather(
            *(other.fund(USDC, BUYER.address, PRICE_ATOMIC) for _ in range(10)),
            *(c.settle(*a, USDC) for a in authorizations for c in (chain, other)),
        )
        held = await balances(other)
    assert sum(held) == 20 * PRICE_ATOMIC
    assert held[1] == sum(moved.amount_atomic for moved in await chain.transfers(USDC, payee=SELLER))


async def test_networks_do_not_share_money(tmp_path: Path, clock: FakeClock) -> None:
    fuji = DEFAULT_CATALOGUE.asset(AVALANCHE_FUJI, "usdc")
    async with opened(tmp_path / "devnet.sqlite3", clock, (BASE_SEPOLIA, AVALANCHE_FUJI)) as chain:
        await chain.fund(USDC, BUYER.address, 5)
        assert await chain.balance(fuji, BUYER.address) == 0
    assert chain.asset("eip155:43113", fuji.address.lower()) == fuji
    assert chain.asset("eip155:43113", USDC.address) is None


async def test_only_tokens_that_move_by_signature_exist(chain: DevnetChain) -> None:
    assert chain.assets == (USDC,)
    obol = DEFAULT_CATALOGUE.asset(BASE_SEPOLIA, "obol")
    assert obol.transfer_method is TransferMethod.PERMIT2
    assert chain.asset("eip155:84532", obol.address) is None


async def test_a_closed_devnet_is_unavailable(tmp_path: Path, clock: FakeClock) -> None:
    chain = await DevnetChain.open(tmp_path / "devnet.sqlite3", clock)
    await chain.close()
    await chain.close()
    with pytest.raises(LedgerUnavailableError):
        await chain.settle(*authorize(), USDC)


async def test_another_programs_file_is_left_alone(tmp_path: Path, clock: FakeClock) -> None:
    file = tmp_path / "devnet.sqlite3"
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    with pytest.raises(SettingsError, match=r"^--data-dir: "):
        await DevnetChain.open(file, clock)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([1, 2]), st.integers(0, 3000), st.integers(0, 4)), max_size=8))
def test_no_order_of_settlements_makes_or_loses_money(steps: list[tuple[int, int, int]]) -> None:
    async def play() -> None:
        with tempfile.TemporaryDirectory() as folder:
            async with opened(Path(folder) / "devnet.sqlite3", FakeClock()) as chain:
                await chain.fund(USDC, BUYER.address, 5000)
                await chain.fund(USDC, OTHER.address, 1000)
                orders = [
                    signed(pay(requirements(), account(n), value=value, to=account(3 - n).address, nonce=_nonce(nonce)))
                    for n, value, nonce in steps
                ]
                await asyncio.gather(*(chain.settle(*order, USDC) for order in orders))
                held = [await chain.balance(USDC, wallet.address) for wallet in (BUYER, OTHER)]
                moved = await chain.transfers(USDC)
            assert sum(held) == 6000
            assert min(held) >= 0
            assert len({(t.payer, t.nonce) for t in moved if t.nonce}) == len([t for t in moved if t.nonce])

    asyncio.run(play())


def _nonce(number: int) -> str:
    return f"0x{number:064x}"
