"""PaymentAuth in httpx2 clients, against a seller on a real port."""

import asyncio
import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from obol.adapters.clock import SystemClock
from obol.adapters.signer_local import LocalSigner
from obol.buyer.payment import Payment, PaymentStatus
from obol.buyer.payment_auth import PaymentAuth
from obol.core.networks import BASE, BASE_SEPOLIA, DEFAULT_CATALOGUE
from obol.errors import (
    BudgetExceededError,
    PaymentRefusedError,
    PeerProtocolError,
    SettingsError,
    UnpayableError,
)
from obol.x402.headers import PAYMENT_SIGNATURE
from obol.x402.models import SettleResponse
from obol.x402.permit2 import PERMIT2_ADDRESS
from tests.fakes.seller import (
    PAY_TO,
    TRANSACTION,
    USDC,
    Answer,
    Behaviour,
    Break,
    Challenge,
    Drop,
    FakeSeller,
    Hang,
    Serve,
    requirements,
)

OBOL = DEFAULT_CATALOGUE.asset(BASE_SEPOLIA, "obol")


class MovableClock(SystemClock):
    """The machine's clock and an offset: signatures must be valid for a seller that uses the real one."""

    offset_s = 0.0

    def now_s(self) -> float:
        return super().now_s() + self.offset_s


BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
SETTLED = SettleResponse(success=True, transaction=TRANSACTION, network="eip155:84532")
FAILED = SettleResponse(success=False, transaction="", network="eip155:84532", error_reason="insufficient_funds")
PENDING = SettleResponse(success=False, transaction="", network="eip155:84532", error_reason="settlement_pending")


def post(
    seller: FakeSeller, auth: PaymentAuth, path: str = "/v1/chat/completions", **options: object
) -> httpx2.Response:
    with httpx2.Client(auth=auth, follow_redirects=True) as client:
        return client.post(seller.url + path, json=BODY)


def test_a_402_is_paid_and_answered_in_one_call(seller: FakeSeller, signer: LocalSigner) -> None:
    auth = PaymentAuth(signer)

    response = post(seller, auth)

    assert (
        response.status_code,
        response.json()["choices"][0]["message"]["content"],
    ) == (200, "Three small words.")
    payment = auth.last_payment
    assert payment is not None
    assert (
        payment.status,
        payment.amount,
        payment.asset.symbol,
        payment.network,
        payment.pay_to,
        payment.transaction,
    ) == (PaymentStatus.PAID, "0.001", "USDC", "base-sepolia", PAY_TO, TRANSACTION)
    assert payment.receipt_url == f"{seller.url}/receipts/sale-1"
    assert (auth.spent, auth.unknown, len(seller.paid)) == ("0.001", "0", 1)


def test_the_paid_request_is_the_same_request(seller: FakeSeller, signer: LocalSigner) -> None:
    with httpx2.Client(auth=PaymentAuth(signer), headers={"Authorization": "Bearer sk-mine"}) as client:
        client.post(seller.url + "/v1/chat/completions", json=BODY)
        client.post(seller.url + "/v1/chat/completions", content=(part for part in (b'{"a":', b"1}")))

    assert seller.bodies[1] == b'{"a":1}'
    assert [seen.authorization for seen in seller.paid] == ["Bearer sk-mine"] * 2


async def test_an_async_client_pays_too(seller: FakeSeller, signer: LocalSigner) -> None:
    auth = PaymentAuth(signer)
    async with httpx2.AsyncClient(auth=auth) as client:
        response = await client.post(seller.url + "/v1/chat/completions", json=BODY)

    assert (response.status_code, auth.spent) == (200, "0.001")


@pytest.fixture
def obol_seller() -> Iterator[FakeSeller]:
    with FakeSeller(asset=OBOL, price_atomic=5 * 10**16) as running:
        yield running


def test_an_asset_that_is_moved_by_permit2_is_paid_too(obol_seller: FakeSeller, signer: LocalSigner) -> None:
    auth = PaymentAuth(signer, max_price="0.05")

    assert post(obol_seller, auth).status_code == 200
    payment = auth.last_payment
    assert payment is not None
    assert (payment.status, payment.amount, payment.asset, payment.pay_to) == (
        PaymentStatus.PAID,
        "0.05",
        OBOL,
        PAY_TO,
    )
    assert [seen.header for seen in obol_seller.paid] == [PAYMENT_SIGNATURE]


@pytest.mark.parametrize("refusal", [Challenge("permit2_allowance_required"), Answer(412)])
def test_a_refused_permit2_payment_says_what_must_be_allowed_once(
    obol_seller: FakeSeller, signer: LocalSigner, refusal: Challenge | Answer
) -> None:
    obol_seller.then(refusal)
    auth = PaymentAuth(signer)
    with pytest.raises(PaymentRefusedError) as refused:
        post(obol_seller, auth)
    said = str(refused.value)
    assert "permit2_allowance_required" in said or "http_412" in said
    assert f"approve({PERMIT2_ADDRESS}, amount) of {OBOL.address}" in said
    assert (auth.spent, auth.unknown_count, len(obol_seller.paid)) == ("0", 0, 1)


def test_another_refusal_says_nothing_of_permit2(seller: FakeSeller, signer: LocalSigner) -> None:
    seller.then(Challenge(), Answer(412))
    auth = PaymentAuth(signer)
    with pytest.raises(PaymentRefusedError) as refused:
        post(seller, auth)
    assert "Permit2" not in str(refused.value)
    assert post(seller, auth).status_code == 412


def test_what_is_free_costs_nothing(seller: FakeSeller, signer: LocalSigner) -> None:
    auth = PaymentAuth(signer)

    assert post(seller, auth, "/free").status_code == 200
    assert auth.payments == ()


@pytest.mark.parametrize(("generation", "header"), [("v1", "X-PAYMENT"), ("v2-body", "PAYMENT-SIGNATURE")])
def test_a_seller_of_another_generation_is_paid_in_its_own_words(
    signer: LocalSigner, generation: str, header: str
) -> None:
    with FakeSeller(generation=generation) as seller:
        assert post(seller, PaymentAuth(signer)).status_code == 200
        assert [header] == [seen.header for seen in seller.paid]


def test_a_402_of_something_else_is_said_to_be_none_of_x402(signer: LocalSigner) -> None:
    with FakeSeller(generation="none") as seller, pytest.raises(PeerProtocolError):
        post(seller, PaymentAuth(signer))


def test_an_endless_402_is_not_read_to_its_end(seller: FakeSeller, signer: LocalSigner) -> None:
    seller.unpaid_body = b"x" * (1024 * 1024)
    auth = PaymentAuth(signer)

    with pytest.raises(PeerProtocolError):
        post(seller, auth)
    assert auth.payments == ()


def test_a_price_above_the_limit_is_refused_naming_both_amounts(seller: FakeSeller, signer: LocalSigner) -> None:
    seller.requirements = requirements(USDC, 100_001)

    with pytest.raises(BudgetExceededError, match=r"0\.100001 USDC.*0\.10"):
        post(seller, PaymentAuth(signer))
    assert seller.paid == []


def test_the_budget_ends_before_it_is_passed(seller: FakeSeller, signer: LocalSigner) -> None:
    auth = PaymentAuth(signer, budget="0.0025")
    post(seller, auth)
    post(seller, auth)

    with pytest.raises(BudgetExceededError, match=r"0\.001 USDC, 0\.0005 of the budget of 0\.0025"):
        post(seller, auth)
    assert (auth.spent, auth.remaining, len(seller.paid)) == ("0.002", "0.0005", 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"asset": "0x" + "11" * 20},
        {"network": "eip155:999999"},
        {"scheme": "upto"},
        {"extra": {"name": "Not USDC", "version": "2"}},
    ],
    ids=["unknown asset", "unknown network", "other scheme", "other signing domain"],
)
def test_what_cannot_be_signed_is_unpayable(
    seller: FakeSeller, signer: LocalSigner, changes: dict[str, object]
) -> None:
    seller.requirements = msgspec.structs.replace(requirements(USDC, 1000), **changes)
    auth = PaymentAuth(signer, budget="1")

    with pytest.raises(UnpayableError):
        post(seller, auth)
    assert (seller.paid, auth.remaining) == ([], "1")


def test_only_allowed_networks_are_paid_on(seller: FakeSeller, signer: LocalSigner) -> None:
    with pytest.raises(UnpayableError, match="networks"):
        post(seller, PaymentAuth(signer, networks=["base"]))
    assert post(seller, PaymentAuth(signer, networks=["base", "base-sepolia"])).status_code == 200


@pytest.mark.parametrize(
    "arguments",
    [{"max_price": "0,01"}, {"max_price": "0"}, {"budget": "-1"}, {"budget": "1e3"}, {"networks": ["basee"]}],
    ids=str,
)
def test_a_wrong_setting_is_refused_at_once(signer: LocalSigner, arguments: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=next(iter(arguments))):
        PaymentAuth(signer, **arguments)  # type: ignore[arg-type]


def test_a_402_to_a_paid_request_ends_it(seller: FakeSeller, signer: LocalSigner) -> None:
    seller.then(Challenge("insufficient_funds"))
    auth = PaymentAuth(signer)

    with pytest.raises(PaymentRefusedError, match="insufficient_funds"):
        post(seller, auth)
    assert (len(seller.paid), auth.spent, [p.status for p in auth.payments]) == (1, "0", [PaymentStatus.UNPAID])


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_seller_is_paid_with_the_same_payment_later(
    seller: FakeSeller, signer: LocalSigner, status: int
) -> None:
    seller.then(Answer(status))
    auth = PaymentAuth(signer, budget="0.001")

    assert status == post(seller, auth).status_code
    assert (auth.spent, auth.remaining) == ("0", "0")
    assert post(seller, auth).status_code == 200

    assert (auth.spent, len({seen.nonce for seen in seller.paid})) == ("0.001", 1)


def test_what_a_seller_declined_stays_held_until_it_can_no_longer_be_settled(
    seller: FakeSeller, signer: LocalSigner
) -> None:
    seller.then(Challenge())
    clock = MovableClock()
    auth = PaymentAuth(signer, budget="0.001", clock=clock)
    with pytest.raises(PaymentRefusedError):
        post(seller, auth)

    with pytest.raises(BudgetExceededError):
        post(seller, auth)
    clock.offset_s = 300 + 61
    assert auth.remaining == "0.001"


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (Answer(400), PaymentStatus.UNPAID),
        (Answer(404), PaymentStatus.UNPAID),
        (Answer(500), PaymentStatus.UNKNOWN),
        (Answer(502), PaymentStatus.UNKNOWN),
        (Answer(504), PaymentStatus.UNKNOWN),
        (Answer(408), PaymentStatus.UNKNOWN),
        (Answer(409), PaymentStatus.UNKNOWN),
        (Answer(303), PaymentStatus.UNKNOWN),
        (Answer(502, SETTLED), PaymentStatus.PAID),
        (Answer(502, FAILED), PaymentStatus.UNPAID),
        (Answer(502, PENDING), PaymentStatus.UNKNOWN),
        (Answer(200, FAILED), PaymentStatus.UNPAID),
        (Serve(has_receipt=False), PaymentStatus.UNKNOWN),
        (Serve(settled=False), PaymentStatus.PAID),
    ],
    ids=str,
)
def test_the_status_and_the_receipt_decide_what_is_known(
    seller: FakeSeller, signer: LocalSigner, answer: Answer | Serve, status: PaymentStatus
) -> None:
    seller.then(answer)
    auth = PaymentAuth(signer, budget="0.001")

    post(seller, auth)

    assert status == auth.payments[0].status
    assert auth.remaining == "0"  # whatever it is, the amount is not free for another signature yet
    unknown = status is PaymentStatus.UNKNOWN
    assert (int(unknown), "0.001" if unknown else "0") == (auth.unknown_count, auth.unknown)


def test_a_lost_answer_is_asked_for_with_the_same_payment(seller: FakeSeller, signer: LocalSigner) -> None:
    seller.then(Drop())
    auth = PaymentAuth(signer, budget="0.001")

    with pytest.raises(httpx2.TransportError):
        post(seller, auth)
    assert (auth.spent, auth.unknown, auth.unknown_count) == ("0", "0.001", 1)
    assert post(seller, auth).status_code == 200

    assert (len(seller.paid), len({seen.nonce for seen in seller.paid})) == (2, 1)
    assert (auth.spent, auth.unknown, auth.unknown_count, len(auth.payments)) == ("0.001", "0", 0, 1)


async def test_a_cancelled_request_is_of_unknown_fate(seller: FakeSeller, signer: LocalSigner) -> None:
    seller.then(Hang())
    auth = PaymentAuth(signer)
    async with httpx2.AsyncClient(auth=auth) as client:
        task = asyncio.get_running_loop().create_task(client.post(seller.url + "/v1/x", json=BODY))
        await asyncio.to_thread(seller.arrived.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert [p.status for p in auth.payments] == [PaymentStatus.UNKNOWN]


def test_a_seller_that_hangs_ends_in_the_clients_timeout_and_an_unknown_payment(
    seller: FakeSeller, signer: LocalSigner
) -> None:
    seller.then(Hang())
    auth = PaymentAuth(signer)
    with httpx2.Client(auth=auth, timeout=0.2) as client, pytest.raises(httpx2.ReadTimeout):
        client.post(seller.url + "/v1/x", json=BODY)

    assert auth.unknown_count == 1


def test_a_lost_answer_does_not_hold_up_another_request(seller: FakeSeller, signer: LocalSigner) -> None:
    seller.then(Drop())
    auth = PaymentAuth(signer)
    with pytest.raises(httpx2.TransportError):
        post(seller, auth)

    assert post(seller, auth, "/v1/other").status_code == 200
    assert len({seen.nonce for seen in seller.paid}) == 2


def test_the_kept_header_can_be_sent_again_by_hand(seller: FakeSeller, signer: LocalSigner) -> None:
    seller.then(Drop())
    auth = PaymentAuth(signer)
    with pytest.raises(httpx2.TransportError):
        post(seller, auth)
    payment = auth.last_payment
    assert payment is not None

    with httpx2.Client(auth=auth) as client:
        response = client.post(payment.url, json=BODY, headers=dict(payment.headers))

    assert (response.status_code, len({seen.nonce for seen in seller.paid})) == (200, 1)


def test_a_payment_that_bought_an_answer_is_not_followed_by_another(seller: FakeSeller, signer: LocalSigner) -> None:
    seller.then(Drop(claims=True))
    auth = PaymentAuth(signer)
    with pytest.raises(httpx2.TransportError):
        post(seller, auth)

    with pytest.raises(PaymentRefusedError, match="used before") as refused:
        post(seller, auth)
    assert (refused.value.reason, auth.spent, auth.unknown_count) == ("payment_used", "0.001", 0)
    assert len({seen.nonce for seen in seller.paid}) == 1


def test_a_used_payment_is_known_by_the_error_code_too(seller: FakeSeller, signer: LocalSigner) -> None:
    seller.tells_used_by_receipt = False
    seller.then(Drop(claims=True))
    auth = PaymentAuth(signer)
    with pytest.raises(httpx2.TransportError):
        post(seller, auth)

    with pytest.raises(PaymentRefusedError, match="used before"):
        post(seller, auth)
    assert (auth.spent, auth.unknown) == ("0", "0.001")  # used, but by whom, and whether settled, was not said
    assert post(seller, auth).status_code == 200


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_body_that_breaks_is_not_bought_twice(seller: FakeSeller, signer: LocalSigner, is_streamed: bool) -> None:
    seller.then(Break())
    auth = PaymentAuth(signer)
    with httpx2.Client(auth=auth) as client:
        request = client.build_request("POST", seller.url + "/v1/x", json=BODY)
        with pytest.raises(httpx2.TransportError):
            client.send(request, stream=is_streamed).read()
        with pytest.raises(PaymentRefusedError):
            client.post(seller.url + "/v1/x", json=BODY)

    assert (auth.spent, len({seen.nonce for seen in seller.paid})) == ("0.001", 1)


async def test_an_async_body_that_breaks_is_not_bought_twice(seller: FakeSeller, signer: LocalSigner) -> None:
    seller.then(Break())
    async with httpx2.AsyncClient(auth=PaymentAuth(signer)) as client:
        with pytest.raises(httpx2.TransportError):
            await client.post(seller.url + "/v1/x", json=BODY)
        with pytest.raises(PaymentRefusedError):
            await client.post(seller.url + "/v1/x", json=BODY)

    assert len({seen.nonce for seen in seller.paid}) == 1


def test_an_owed_answer_is_collected_with_the_same_payment(seller: FakeSeller, signer: LocalSigner) -> None:
    seller.then(Answer(502, SETTLED))
    auth = PaymentAuth(signer)

    assert [post(seller, auth).status_code, post(seller, auth).status_code] == [502, 200]
    assert (auth.spent, len({seen.nonce for seen in seller.paid})) == ("0.001", 1)


def test_a_payment_in_use_is_the_callers_to_see(seller: FakeSeller, signer: LocalSigner) -> None:
    seller.then(Answer(409))
    auth = PaymentAuth(signer)

    assert post(seller, auth).status_code == 409
    assert post(seller, auth).status_code == 200
    assert len({seen.nonce for seen in seller.paid}) == 1


def test_a_redirect_never_takes_the_payment_along(seller: FakeSeller, signer: LocalSigner) -> None:
    with FakeSeller() as other:
        seller.then(Answer(307, headers={"Location": other.url + "/v1/x"}))
        auth = PaymentAuth(signer)

        with pytest.raises(PaymentRefusedError):
            post(seller, auth)

        assert (len(seller.paid), other.unpaid, other.paid) == (1, ["/v1/x"], [])
        assert [p.status for p in auth.payments] == [PaymentStatus.UNKNOWN]


def test_a_redirect_on_the_same_origin_does_not_take_it_along_either(seller: FakeSeller, signer: LocalSigner) -> None:
    seller.then(Answer(308, headers={"Location": "/v1/elsewhere"}))

    with pytest.raises(PaymentRefusedError):
        post(seller, PaymentAuth(signer))
    assert [seen.path for seen in seller.paid] == ["/v1/chat/completions"]


def test_the_receipt_of_a_redirects_target_is_not_believed(seller: FakeSeller, signer: LocalSigner) -> None:
    seller.then(Answer(307, headers={"Location": "/free"}))
    auth = PaymentAuth(signer)

    assert post(seller, auth).status_code == 200
    assert ([p.status for p in auth.payments], auth.spent) == ([PaymentStatus.UNKNOWN], "0")


def test_another_origin_that_was_redirected_to_is_not_paid(seller: FakeSeller, signer: LocalSigner) -> None:
    with FakeSeller() as other:
        seller.redirect_unpaid = other.url + "/v1/x"

        with pytest.raises(UnpayableError) as unpayable:
            post(seller, PaymentAuth(signer))
        assert (unpayable.value.reason, other.paid) == ("redirected", [])


def test_a_seller_that_moved_within_its_origin_is_paid_there(seller: FakeSeller, signer: LocalSigner) -> None:
    auth = PaymentAuth(signer)

    def stop_redirecting(response: httpx2.Response) -> None:
        seller.redirect_unpaid = ""

    seller.redirect_unpaid = "/v1/moved"
    hooks = {"response": [stop_redirecting]}
    with httpx2.Client(auth=auth, follow_redirects=True, event_hooks=hooks) as client:
        assert client.post(seller.url + "/v1/x", json=BODY).status_code == 200
    assert [seen.path for seen in seller.paid] == ["/v1/moved"]


@pytest.mark.parametrize("change", ["payee", "price"])
def test_terms_that_change_get_a_signature_of_their_own(seller: FakeSeller, signer: LocalSigner, change: str) -> None:
    seller.then(Answer(429))
    auth = PaymentAuth(signer)
    post(seller, auth)
    other = "0x" + "22" * 20
    seller.requirements = requirements(USDC, 2000) if change == "price" else requirements(USDC, 1000, pay_to=other)

    assert post(seller, auth).status_code == 200
    assert ([1000, 2000] if change == "price" else [1000, 1000]) == [seen.value_atomic for seen in seller.paid]
    assert len({seen.nonce for seen in seller.paid}) == 2


def test_every_payment_is_told_once_its_answer_is_there(seller: FakeSeller, signer: LocalSigner) -> None:
    told: list[Payment] = []
    auth = PaymentAuth(signer, on_payment=told.append)
    seller.then(Drop())
    with pytest.raises(httpx2.TransportError):
        post(seller, auth)
    post(seller, auth)

    assert [p.status for p in told] == [PaymentStatus.UNKNOWN, PaymentStatus.PAID]


def test_neither_key_nor_payload_shows_in_a_repr(seller: FakeSeller, signer: LocalSigner) -> None:
    auth = PaymentAuth(signer)
    response = post(seller, auth)
    payment = auth.last_payment
    assert payment is not None

    secret = next(iter(payment.headers.values()))
    assert secret not in repr(payment) + repr(response.request.headers) + str(dict(response.request.headers))


@pytest.mark.parametrize("affordable", [7, 50])
def test_fifty_threads_never_pass_the_budget(seller: FakeSeller, signer: LocalSigner, affordable: int) -> None:
    auth = PaymentAuth(signer, budget=f"0.0{affordable:02}5")
    seller.requirements = requirements(USDC, 1000)

    def buy(number: int) -> int:
        with httpx2.Client(auth=auth) as client:
            try:
                return client.post(f"{seller.url}/v1/{number}", json=BODY).status_code
            except BudgetExceededError:
                return 402

    with ThreadPoolExecutor(50) as pool:
        statuses = list(pool.map(buy, range(50)))

    assert (affordable, affordable) == (statuses.count(200), len(seller.paid))
    assert (f"{affordable / 1000:g}", "0.0005") == (auth.spent, auth.remaining)


async def test_fifty_tasks_never_pass_the_budget_whatever_the_seller_does(
    seller: FakeSeller, signer: LocalSigner
) -> None:
    mixed: list[Behaviour] = [Answer(429), Drop(), Answer(500), Challenge(), Answer(502, SETTLED)]
    seller.then(*[*mixed, Serve(has_receipt=False)] * 10)
    auth = PaymentAuth(signer, budget="0.0205")

    async with httpx2.AsyncClient(auth=auth) as client:

        async def buy(number: int) -> None:
            with contextlib.suppress(BudgetExceededError, PaymentRefusedError, httpx2.TransportError):
                await client.post(f"{seller.url}/v1/{number}", json=BODY)

        await asyncio.gather(*(buy(number) for number in range(50)))

    assert len({seen.nonce for seen in seller.paid}) == 20  # never more signatures than the budget pays for


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.sampled_from([Serve(), Answer(429), Drop(), Drop(claims=True), Answer(500), Challenge(), Break()]),
        max_size=8,
    ),
    st.integers(1, 4),
)
def test_no_seller_gets_more_signatures_than_the_budget_pays_for(behaviours: list[Behaviour], affordable: int) -> None:
    auth = PaymentAuth(LocalSigner(b"\1" * 32), budget=f"0.00{affordable}")
    with FakeSeller() as seller, httpx2.Client(auth=auth) as client:
        seller.then(*behaviours)
        for number in range(8):
            with contextlib.suppress(BudgetExceededError, PaymentRefusedError, httpx2.TransportError):
                client.post(f"{seller.url}/v1/{number % 3}", json=BODY)

        assert len({seen.nonce for seen in seller.paid}) <= affordable


def test_the_catalogue_decides_what_is_known(signer: LocalSigner) -> None:
    base_usdc = DEFAULT_CATALOGUE.asset(BASE, "usdc")
    with FakeSeller(asset=base_usdc) as seller:
        known = PaymentAuth(signer, networks=["eip155:8453"])
        assert post(seller, known).status_code == 200
        with pytest.raises(UnpayableError):
            post(seller, PaymentAuth(signer, networks=[BASE_SEPOLIA.caip2]))
