"""A permit goes with a payment by Permit2 exactly where it must, and each nonce with one payment."""

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from obol.adapters.clock import SystemClock
from obol.adapters.signer_local import LocalSigner
from obol.buyer.payment_auth import PaymentAuth
from obol.buyer.permits import IN_USE, NO_PERMITS, permit_nonce
from obol.core.money import UINT256_MAX
from obol.core.networks import BASE_SEPOLIA, DEFAULT_CATALOGUE, Asset
from obol.errors import ChainUnavailableError, PaymentRefusedError, UnpayableError
from obol.x402.gas_sponsoring import declare_gas_sponsoring
from obol.x402.permit2 import PERMIT2_ADDRESS
from tests.fakes.seller import USDC, Answer, Challenge, Drop, FakeSeller

OBOL = DEFAULT_CATALOGUE.asset(BASE_SEPOLIA, "obol")
PRICE_ATOMIC = 5 * 10**16
VALID_S = 300
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@dataclass
class Token:
    """The allowances port; `asked` is what it was asked."""

    allowance_atomic: int = 0
    nonce: int | None = 0
    is_down: bool = False
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    async def permit2_allowance(self, asset: Asset, payer: str) -> int:
        self._note("allowance", asset, payer)
        return self.allowance_atomic

    async def permit_nonce(self, asset: Asset, payer: str) -> int | None:
        self._note("nonces", asset, payer)
        return self.nonce

    def _note(self, what: str, asset: Asset, payer: str) -> None:
        with self._lock:
            self.asked.append((what, asset.address, payer))
        if self.is_down:
            raise ChainUnavailableError("nobody answers")


class MovableClock(SystemClock):
    offset_s = 0.0

    def now_s(self) -> float:
        return super().now_s() + self.offset_s


@pytest.fixture
def seller() -> Iterator[FakeSeller]:
    with FakeSeller(asset=OBOL, price_atomic=PRICE_ATOMIC) as running:
        running.extensions = declare_gas_sponsoring()
        yield running


@pytest.fixture
def token() -> Token:
    return Token()


@pytest.fixture
def auth(signer: LocalSigner, token: Token) -> PaymentAuth:
    return PaymentAuth(signer, budget="1", allowances=token)


def post(seller: FakeSeller, auth: PaymentAuth, path: str = "/v1/x") -> httpx2.Response:
    with httpx2.Client(auth=auth) as client:
        return client.post(seller.url + path, json=BODY)


def nonces(seller: FakeSeller) -> list[int | None]:
    return [None if seen.permit is None else seen.permit.nonce for seen in seller.paid]


# --- the decision


@given(st.integers(0, UINT256_MAX), st.integers(1, UINT256_MAX), st.integers(0, UINT256_MAX))
def test_a_permit_is_needed_exactly_where_the_allowance_is_too_small(
    allowance_atomic: int, amount_atomic: int, nonce: int
) -> None:
    token = Token(allowance_atomic, nonce)
    needed = asyncio.run(permit_nonce(token, OBOL, "0x" + "11" * 20, amount_atomic))
    assert needed == (nonce if allowance_atomic < amount_atomic else None)
    assert ("nonces" in [what for what, *_ in token.asked]) == (allowance_atomic < amount_atomic)


def test_a_permit_is_of_the_amount_for_permit2_until_the_payment_ends(
    seller: FakeSeller, auth: PaymentAuth, token: Token
) -> None:
    token.allowance_atomic, token.nonce = PRICE_ATOMIC - 1, 41
    assert post(seller, auth).status_code == 200

    permit, payment = seller.paid[0].permit, auth.last_payment
    assert permit is not None
    assert payment is not None
    assert (permit.owner, permit.token, permit.spender) == (
        auth.address.lower(),
        OBOL.address.lower(),
        PERMIT2_ADDRESS.lower(),
    )
    assert (permit.value_atomic, permit.nonce, permit.deadline_s) == (PRICE_ATOMIC, 41, payment.valid_before_s)
    assert payment.permit_nonce == 41
    assert token.asked == [("allowance", OBOL.address, auth.address), ("nonces", OBOL.address, auth.address)]


async def test_an_async_client_sends_one_too(seller: FakeSeller, auth: PaymentAuth) -> None:
    async with httpx2.AsyncClient(auth=auth) as client:
        assert (await client.post(seller.url + "/v1/x", json=BODY)).status_code == 200
    assert nonces(seller) == [0]


def test_an_allowance_that_is_enough_is_left_as_it_is(seller: FakeSeller, auth: PaymentAuth, token: Token) -> None:
    token.allowance_atomic = PRICE_ATOMIC
    post(seller, auth)
    assert (nonces(seller), [what for what, *_ in token.asked]) == ([None], ["allowance"])


def test_no_permit_is_signed_for_a_seller_that_does_not_offer_it(
    seller: FakeSeller, auth: PaymentAuth, token: Token
) -> None:
    seller.extensions = {"bazaar": {"info": {}}}
    post(seller, auth)
    assert (nonces(seller), token.asked) == ([None], [])


def test_no_permit_is_signed_for_an_asset_of_another_transfer_method(auth: PaymentAuth, token: Token) -> None:
    with FakeSeller(asset=USDC) as seller:
        seller.extensions = declare_gas_sponsoring()
        post(seller, auth)
        assert (nonces(seller), token.asked) == ([None], [])


def test_no_permit_is_signed_where_nobody_tells_the_allowance(seller: FakeSeller, signer: LocalSigner) -> None:
    assert post(seller, PaymentAuth(signer)).status_code == 200
    assert nonces(seller) == [None]


def test_nothing_is_signed_or_held_where_it_cannot_be_found_out(
    seller: FakeSeller, auth: PaymentAuth, token: Token
) -> None:
    token.is_down = True
    with pytest.raises(ChainUnavailableError):
        post(seller, auth)
    assert (seller.paid, auth.payments, auth.remaining) == ([], (), "1")


async def test_nothing_is_held_either_by_an_async_client(seller: FakeSeller, auth: PaymentAuth, token: Token) -> None:
    token.is_down = True
    async with httpx2.AsyncClient(auth=auth) as client:
        with pytest.raises(ChainUnavailableError):
            await client.post(seller.url + "/v1/x", json=BODY)
    assert (seller.paid, auth.payments, auth.remaining) == ([], (), "1")


def test_a_token_that_takes_no_permits_has_to_be_approved(seller: FakeSeller, auth: PaymentAuth, token: Token) -> None:
    token.nonce = None
    with pytest.raises(UnpayableError, match=r"approve\(") as unpayable:
        post(seller, auth)
    assert (unpayable.value.reason, seller.paid, auth.remaining) == (NO_PERMITS, [], "1")


# --- refusals


@pytest.mark.parametrize(
    "refusal", [Challenge("the payment is not valid: permit2_allowance_required"), Answer(412)], ids=str
)
def test_a_missing_allowance_is_a_reason_of_its_own(
    seller: FakeSeller, signer: LocalSigner, refusal: Challenge | Answer
) -> None:
    seller.then(refusal)
    with pytest.raises(PaymentRefusedError, match=r"approve\(") as refused:
        post(seller, PaymentAuth(signer))
    assert refused.value.reason == "permit2_allowance_required"


def test_who_sent_a_permit_is_not_told_to_allow_what_it_allows(seller: FakeSeller, auth: PaymentAuth) -> None:
    seller.then(Challenge("insufficient_funds"))
    with pytest.raises(PaymentRefusedError) as refused:
        post(seller, auth)
    assert "approve" not in str(refused.value)
    assert refused.value.reason == "payment_refused"


# --- each nonce is one payment's


def test_what_was_settled_is_followed_by_the_next_nonce(seller: FakeSeller, auth: PaymentAuth, token: Token) -> None:
    post(seller, auth)
    token.nonce = 1
    post(seller, auth)
    assert nonces(seller) == [0, 1]


def test_a_nonce_that_is_out_is_not_signed_again(seller: FakeSeller, auth: PaymentAuth) -> None:
    post(seller, auth)  # and the chain does not show it yet
    with pytest.raises(UnpayableError, match="not settled yet") as unpayable:
        post(seller, auth)
    assert (unpayable.value.reason, nonces(seller), auth.remaining) == (IN_USE, [0], "0.95")


def test_a_nonce_is_given_out_again_when_its_payment_has_expired(
    seller: FakeSeller, signer: LocalSigner, token: Token
) -> None:
    clock = MovableClock()
    auth = PaymentAuth(signer, clock=clock, allowances=token)
    seller.then(Answer(500))
    post(seller, auth)
    clock.offset_s = VALID_S + 61
    seller.then(Challenge())  # its clock is another
    with pytest.raises(PaymentRefusedError):
        post(seller, auth)
    assert [payment.permit_nonce for payment in auth.payments] == [0, 0]


def test_a_nonce_is_given_out_again_when_its_payment_was_refused(seller: FakeSeller, auth: PaymentAuth) -> None:
    seller.then(Challenge())
    with pytest.raises(PaymentRefusedError):
        post(seller, auth)
    assert post(seller, auth).status_code == 200
    assert (nonces(seller), len({seen.nonce for seen in seller.paid})) == ([0, 0], 2)


def test_a_lost_answer_is_asked_for_with_the_same_permit(seller: FakeSeller, auth: PaymentAuth, token: Token) -> None:
    seller.then(Drop())
    with pytest.raises(httpx2.TransportError):
        post(seller, auth)
    token.nonce = 1
    assert post(seller, auth).status_code == 200
    assert (nonces(seller), len({seen.nonce for seen in seller.paid})) == ([0, 0], 1)


def test_a_payment_that_a_busy_seller_declined_is_used_with_its_permit(seller: FakeSeller, auth: PaymentAuth) -> None:
    seller.then(Answer(429))
    post(seller, auth)
    assert post(seller, auth).status_code == 200
    assert (nonces(seller), len({seen.nonce for seen in seller.paid})) == ([0, 0], 1)


def test_a_declined_payment_whose_nonce_went_to_another_stays_where_it_is(
    seller: FakeSeller, auth: PaymentAuth, token: Token
) -> None:
    seller.then(Answer(429))
    post(seller, auth)
    with FakeSeller(asset=OBOL, price_atomic=PRICE_ATOMIC) as other:
        other.extensions = declare_gas_sponsoring()
        post(other, auth)
        assert nonces(other) == [0]
    token.nonce = 1
    post(seller, auth)
    assert nonces(seller) == [0, 1]


def test_a_declined_payment_that_is_used_after_all_has_its_nonce_again(seller: FakeSeller, auth: PaymentAuth) -> None:
    seller.then(Answer(429))
    post(seller, auth)
    with FakeSeller(asset=OBOL, price_atomic=PRICE_ATOMIC) as other:
        other.extensions = declare_gas_sponsoring()
        other.then(Challenge())
        with pytest.raises(PaymentRefusedError):
            post(other, auth)
    post(seller, auth)
    with pytest.raises(UnpayableError, match="not settled yet"):
        post(seller, auth)
    assert (nonces(seller), len({seen.nonce for seen in seller.paid})) == ([0, 0], 1)


async def test_of_purchases_at_once_each_nonce_is_in_one(seller: FakeSeller, auth: PaymentAuth) -> None:
    async with httpx2.AsyncClient(auth=auth) as client:
        sent = [client.post(f"{seller.url}/v1/{number}", json=BODY) for number in range(8)]
        ended = await asyncio.gather(*sent, return_exceptions=True)
    assert nonces(seller) == [0]
    refused = [error.reason for error in ended if isinstance(error, UnpayableError)]
    assert (refused, auth.remaining) == ([IN_USE] * 7, "0.95")
