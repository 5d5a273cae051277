"""Payments of earlier processes: found by the identical request, within the limits, and by one at a time."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from obol.adapters.kept_payments import KeptPayments
from obol.adapters.signer_local import LocalSigner
from obol.buyer.paid_request import PaymentHeaders
from obol.buyer.payment import EXPIRY_MARGIN_S, Payment, PaymentStatus
from obol.buyer.payment_auth import PaymentAuth
from obol.buyer.unresolved import UNREADABLE, Unresolved
from obol.errors import BudgetExceededError, UnpayableError
from obol.x402.gas_sponsoring import declare_gas_sponsoring
from tests.buyer.processes import NewAuth, kept, nonces, try_to_buy
from tests.buyer.test_payment_auth import BODY, FAILED, OBOL, PENDING, SETTLED, MovableClock, post
from tests.buyer.test_permits import Token
from tests.fakes.seller import (
    USDC,
    Answer,
    Behaviour,
    Challenge,
    Drop,
    FakeSeller,
    Hang,
    requirements,
)

VALID_S = 300


@pytest.mark.parametrize(
    "behaviour",
    [Drop(), Answer(500), Answer(503, PENDING), Answer(502, SETTLED), Answer(409), Answer(429), Answer(502, FAILED)],
    ids=str,
)
def test_the_next_process_presents_it_and_signs_nothing(
    seller: FakeSeller, new_auth: NewAuth, folder: Path, found: list[Payment], behaviour: Behaviour
) -> None:
    seller.then(behaviour, behaviour)
    try_to_buy(seller, new_auth())
    try_to_buy(seller, new_auth())
    assert (len(kept(folder)), nonces(seller)) == (1, 1)

    last = new_auth(budget="0.001")
    assert try_to_buy(seller, last) == 200
    assert (kept(folder), nonces(seller), len(seller.paid)) == ([], 1, 3)
    assert (last.spent, last.unknown_count, last.remaining) == ("0.001", 0, "0")
    assert [payment.amount for payment in found] == ["0.001"] * 2


def test_a_payment_of_x402_v1_is_found_again(signer: LocalSigner, new_auth: NewAuth, folder: Path) -> None:
    with FakeSeller(generation="v1") as seller:
        seller.then(Drop())
        assert [try_to_buy(seller, new_auth()) for _ in range(2)] == ["lost", 200]
        assert (nonces(seller), {seen.header for seen in seller.paid}, kept(folder)) == (1, {"X-PAYMENT"}, [])


def test_a_payment_with_a_permit_is_found_again_with_it(new_auth: NewAuth, folder: Path) -> None:
    with FakeSeller(asset=OBOL, price_atomic=10**16) as seller:
        seller.extensions = declare_gas_sponsoring()
        seller.then(Drop())
        assert try_to_buy(seller, new_auth(allowances=Token(nonce=7))) == "lost"
        late = new_auth()
        assert try_to_buy(seller, late) == 200

        assert nonces(seller) == 1
        assert [seen.permit.nonce for seen in seller.paid if seen.permit is not None] == [7, 7]
        assert [payment.permit_nonce for payment in late.payments] == [7]
        assert kept(folder) == []


@pytest.mark.parametrize("change", ["path", "body", "method", "key"])
def test_another_request_or_key_is_another_purchase(
    seller: FakeSeller, new_auth: NewAuth, folder: Path, change: str
) -> None:
    seller.then(Drop())
    assert try_to_buy(seller, new_auth()) == "lost"
    auth = new_auth(signer=LocalSigner.generate()) if change == "key" else new_auth()

    with httpx2.Client(auth=auth) as client:
        method, path = "PUT" if change == "method" else "POST", "/v1/y" if change == "path" else "/v1/x"
        body = BODY | {"n": 1} if change == "body" else BODY
        assert client.request(method, seller.url + path, json=body).status_code == 200
    assert (len(kept(folder)), nonces(seller)) == (1, 2)


def test_a_payment_that_was_used_is_dropped_and_not_followed_by_another(
    seller: FakeSeller, new_auth: NewAuth, folder: Path
) -> None:
    seller.then(Drop(claims=True))
    assert [try_to_buy(seller, new_auth()) for _ in range(2)] == ["lost", "payment_used"]
    assert (kept(folder), nonces(seller)) == ([], 1)


def test_an_owed_answer_that_another_is_getting_stays_owed(seller: FakeSeller, new_auth: NewAuth, folder: Path) -> None:
    seller.then(Answer(502, SETTLED), Answer(409, code="payment_in_use"))
    assert [try_to_buy(seller, new_auth()) for _ in range(3)] == [502, 409, 200]
    assert (kept(folder), nonces(seller)) == ([], 1)


def test_one_that_the_seller_refuses_is_dropped(seller: FakeSeller, new_auth: NewAuth, folder: Path) -> None:
    seller.then(Drop(), Challenge())
    assert [try_to_buy(seller, new_auth()) for _ in range(2)] == ["lost", "payment_refused"]
    assert kept(folder) == []
    assert (try_to_buy(seller, new_auth()), nonces(seller)) == (200, 2)


def test_one_of_unknown_fate_is_presented_after_it_expired_and_dropped_when_refused(
    seller: FakeSeller, new_auth: NewAuth, folder: Path
) -> None:
    clock = MovableClock()
    clock.offset_s = -VALID_S - EXPIRY_MARGIN_S - 1
    hooks = {"request": [break_off]}
    with httpx2.Client(auth=new_auth(clock=clock), event_hooks=hooks) as client, pytest.raises(httpx2.WriteError):
        client.post(seller.url + "/v1/x", json=BODY)
    assert len(kept(folder)) == 1

    late = new_auth()
    assert try_to_buy(seller, late) == "payment_refused"
    assert [payment.status for payment in late.payments] == [PaymentStatus.UNKNOWN]
    assert (kept(folder), seller.paid) == ([], [])
    assert try_to_buy(seller, new_auth()) == 200


def break_off(request: httpx2.Request) -> None:
    """The connection breaks where a payment is about to leave."""
    if isinstance(request.headers, PaymentHeaders):
        raise httpx2.WriteError("broken", request=request)


def test_an_owed_answer_is_had_after_the_payment_expired(seller: FakeSeller, new_auth: NewAuth, folder: Path) -> None:
    seller.then(Answer(502, SETTLED))
    assert try_to_buy(seller, new_auth()) == 502
    clock = MovableClock()
    clock.offset_s = VALID_S + EXPIRY_MARGIN_S + 1

    late = new_auth(clock=clock)
    assert (try_to_buy(seller, late), nonces(seller), kept(folder)) == (200, 1, [])
    assert [payment.status for payment in late.payments] == [PaymentStatus.PAID]


def test_a_declined_one_that_expired_is_dropped(
    seller: FakeSeller, new_auth: NewAuth, folder: Path, found: list[Payment]
) -> None:
    seller.then(Answer(429))
    assert try_to_buy(seller, new_auth(), "/v1/other") == 429
    assert len(kept(folder)) == 1
    clock = MovableClock()

    clock.offset_s = VALID_S + EXPIRY_MARGIN_S - 5  # expired, as far as our clock can be believed
    drop(new_auth(clock=clock), seller)
    assert len(kept(folder)) == 1
    clock.offset_s = VALID_S + EXPIRY_MARGIN_S + 5
    drop(new_auth(clock=clock), seller)
    assert (kept(folder), found) == ([], [])


def drop(auth: PaymentAuth, seller: FakeSeller) -> None:
    """Try to buy something that is too dear."""
    seller.requirements = requirements(USDC, 10**9)
    with pytest.raises(BudgetExceededError):
        post(seller, auth)


def test_a_declined_one_is_not_used_on_other_terms(seller: FakeSeller, new_auth: NewAuth, folder: Path) -> None:
    seller.then(Answer(429))
    assert try_to_buy(seller, new_auth()) == 429
    seller.requirements = requirements(USDC, 500)

    assert try_to_buy(seller, new_auth()) == 200
    assert [seen.value_atomic for seen in seller.paid] == [1000, 500]
    assert len(kept(folder)) == 1


def test_a_declined_one_that_is_used_for_another_request_is_found_by_that_one(
    seller: FakeSeller, new_auth: NewAuth, folder: Path
) -> None:
    seller.then(Answer(429), Drop())
    auth = new_auth()
    assert [try_to_buy(seller, auth, "/v1/a"), try_to_buy(seller, auth, "/v1/b")] == [429, "lost"]

    assert try_to_buy(seller, new_auth(), "/v1/b") == 200
    assert (kept(folder), nonces(seller)) == ([], 1)


def test_declined_and_lost_is_unknown_again(seller: FakeSeller, new_auth: NewAuth, folder: Path) -> None:
    seller.then(Answer(429), Drop())
    assert [try_to_buy(seller, new_auth()) for _ in range(2)] == [429, "lost"]
    (path,) = kept(folder)
    assert json.loads(path.read_bytes().splitlines()[-1])["status"] == "unknown"


def test_it_is_within_the_limits_of_who_presents_it(seller: FakeSeller, new_auth: NewAuth, folder: Path) -> None:
    seller.then(Drop())
    assert try_to_buy(seller, new_auth()) == "lost"

    for limit in ({"max_price": "0.0009"}, {"budget": "0.0009"}):
        with pytest.raises(BudgetExceededError, match="earlier payment"):
            post(seller, new_auth(**limit), "/v1/x")
    assert (len(kept(folder)), len(seller.paid)) == (1, 1)
    assert (try_to_buy(seller, new_auth()), nonces(seller)) == (200, 1)


def test_ignoring_it_signs_another_and_tells(
    seller: FakeSeller, new_auth: NewAuth, folder: Path, found: list[Payment]
) -> None:
    seller.then(Drop())
    assert try_to_buy(seller, new_auth()) == "lost"

    assert try_to_buy(seller, new_auth(is_ignored=True)) == 200
    assert (len(kept(folder)), nonces(seller), len(found)) == (1, 2, 1)
    assert (try_to_buy(seller, new_auth()), kept(folder), nonces(seller)) == (200, [], 2)


def test_what_cannot_be_read_may_be_money_and_stops_the_purchase(
    seller: FakeSeller, new_auth: NewAuth, folder: Path
) -> None:
    seller.then(Drop())
    assert try_to_buy(seller, new_auth()) == "lost"
    (path,) = kept(folder)
    path.write_text("something else\n")

    with pytest.raises(UnpayableError, match=path.name) as unpayable:
        post(seller, new_auth(), "/v1/x")
    assert (unpayable.value.reason, len(kept(folder)), len(seller.paid)) == (UNREADABLE, 1, 1)


# --- several at once


def test_two_processes_never_present_the_same_payment(seller: FakeSeller, signer: LocalSigner, folder: Path) -> None:
    seller.then(Drop(), Hang())
    stores = [KeptPayments(folder) for _ in range(3)]
    first, second, third = (PaymentAuth(signer, unresolved=Unresolved(store)) for store in stores)
    assert try_to_buy(seller, first) == "lost"
    stores[0].close()
    seller.arrived.clear()

    with ThreadPoolExecutor(1) as pool:
        buying = pool.submit(try_to_buy, seller, second)
        seller.arrived.wait()
        assert try_to_buy(seller, third) == 200
        seller.release()
        assert buying.result() == 200
    lost, again, other = (seen.nonce for seen in seller.paid)
    assert lost == again != other
    assert kept(folder) == []


def test_of_fifty_threads_one_presents_it(seller: FakeSeller, new_auth: NewAuth, folder: Path) -> None:
    seller.then(Drop())
    assert try_to_buy(seller, new_auth()) == "lost"
    auth = new_auth()

    with ThreadPoolExecutor(50) as pool:
        statuses = set(pool.map(lambda _: try_to_buy(seller, auth), range(50)))
    assert (statuses, nonces(seller), len(seller.paid), kept(folder)) == ({200}, 50, 51, [])


def test_within_a_process_a_kept_payment_does_not_end_by_expiring(
    seller: FakeSeller, new_auth: NewAuth, folder: Path
) -> None:
    seller.then(Answer(502, SETTLED))
    clock = MovableClock()
    auth = new_auth(clock=clock)
    assert try_to_buy(seller, auth) == 502
    clock.offset_s = VALID_S + EXPIRY_MARGIN_S + 1

    assert (try_to_buy(seller, auth), nonces(seller), kept(folder)) == (200, 1, [])


def test_the_payload_is_nowhere_but_in_the_file(seller: FakeSeller, new_auth: NewAuth, found: list[Payment]) -> None:
    seller.then(Drop())
    assert try_to_buy(seller, new_auth()) == "lost"
    assert try_to_buy(seller, new_auth()) == 200

    (secret,) = found[0].headers.values()
    assert secret not in repr(found)
