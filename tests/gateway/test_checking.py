"""Checking a payment: refused for a reason, or nobody can say; nothing is claimed either way."""

import dataclasses
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from obol import LocalSigner
from obol.core.offer import SettlementPolicy
from obol.x402.client import payment_headers
from obol.x402.models import PaymentPayload
from tests.adapters.payments import pay as sign_with_eth_account
from tests.fakes.clock import FakeClock
from tests.fakes.facilitator import (
    BadGateway,
    Behaviour,
    Garbage,
    Huge,
    MakeBelieve,
    Ok,
    Redirect,
    RefuseVerify,
    SlowVerify,
)
from tests.fakes.model_server import Behaviour as Answering
from tests.gateway.fixtures import MakeShop
from tests.gateway.shop import PRICE_ATOMIC, USDC, Answer, Shop

Forge = Callable[[Shop], PaymentPayload]

OTHER = "0x" + "22" * 20


def changed(**changes: Any) -> Forge:
    """A payment signed as it is, whose terms are not those of the offer; `accepted` still is."""

    def forge(shop: Shop) -> PaymentPayload:
        terms = {name: changes[name] for name in ("amount", "pay_to") if name in changes}
        requirements = msgspec.structs.replace(shop.requirements, **terms)
        now_s = shop.clock.now_s() + changes.get("later_s", 0)
        return msgspec.structs.replace(shop.sign(requirements=requirements, now_s=now_s), accepted=shop.requirements)

    return forge


def poor(shop: Shop) -> PaymentPayload:
    return shop.sign(signer=LocalSigner.generate())


def signed_by_another(shop: Shop) -> PaymentPayload:
    ours, theirs = shop.sign(), shop.sign(signer=LocalSigner.generate())
    return msgspec.structs.replace(
        ours, payload=msgspec.structs.replace(ours.payload, signature=theirs.payload.signature)
    )


def of_domain(**domain: Any) -> Forge:
    def forge(shop: Shop) -> PaymentPayload:
        valid_before_s = int(shop.clock.now_s()) + 300
        return sign_with_eth_account(shop.requirements, domain=domain, validBefore=valid_before_s)

    return forge


def valid_from(ahead_s: int) -> Forge:
    def forge(shop: Shop) -> PaymentPayload:
        now_s = int(shop.clock.now_s())
        return sign_with_eth_account(shop.requirements, validAfter=now_s + ahead_s, validBefore=now_s + ahead_s + 300)

    return forge


def valid_for(length_s: int) -> Forge:
    def forge(shop: Shop) -> PaymentPayload:
        return sign_with_eth_account(shop.requirements, validBefore=int(shop.clock.now_s()) + length_s)

    return forge


REFUSED: dict[str, tuple[Forge, str]] = {
    "too little": (changed(amount=str(PRICE_ATOMIC - 1)), "value_mismatch"),
    "too much": (changed(amount=str(PRICE_ATOMIC + 1)), "value_mismatch"),
    "another payee": (changed(pay_to=OTHER), "recipient_mismatch"),
    "expired": (changed(later_s=-400), "valid_before"),
    "about to expire": (changed(later_s=-296), "valid_before"),
    "not valid yet": (valid_from(600), "valid_after"),
    "valid for 30 days": (valid_for(30 * 86400), "valid too long"),
    "no funds": (poor, "insufficient"),
    "another's signature": (signed_by_another, "signature"),
    "another token's name": (of_domain(name="USD Coin"), "signature"),
    "another chain": (of_domain(chainId=8453), "signature"),
    "another contract": (of_domain(verifyingContract=OTHER), "signature"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_payment_that_is_no_good_is_refused_with_the_reason(shop: Shop, name: str) -> None:
    forge, reason = REFUSED[name]
    answer = await shop.post(payment_headers(forge(shop), 2))
    assert answer.status == 402
    assert reason in answer.challenge.error
    assert answer.challenge.accepts == [shop.requirements]
    assert answer.json["error"] == answer.challenge.error
    assert_nothing_happened(shop, await shop.ledger_rows())


@pytest.mark.parametrize("settlement", list(SettlementPolicy))
async def test_a_refused_buyer_can_pay_properly(make_shop: MakeShop, settlement: SettlementPolicy) -> None:
    shop = await make_shop(settlement=settlement)
    assert (await shop.post(payment_headers(changed(amount="1")(shop), 2))).status == 402
    assert (await shop.pay()).status == 200


async def test_a_payment_for_other_requirements_is_shown_ours(shop: Shop) -> None:
    for changes in ({"amount": "1"}, {"pay_to": OTHER}, {"network": "eip155:8453"}, {"scheme": "upto"}):
        requirements = msgspec.structs.replace(shop.requirements, **changes)
        accepted = msgspec.structs.replace(shop.sign(), accepted=requirements)
        answer = await shop.post(payment_headers(accepted, 2))
        assert answer.status == 402
        assert "does not fit" in answer.challenge.error
        assert answer.challenge.accepts == [shop.requirements]
    assert_nothing_happened(shop, await shop.ledger_rows())


async def test_a_cancelled_authorization_is_refused(shop: Shop) -> None:
    payload = shop.sign()
    await shop.chain.cancel(USDC, shop.signer.address, payload.payload.signed.nonce)
    answer = await shop.post(payment_headers(payload, 2))
    assert (answer.status, await shop.states()) == (402, [])


async def test_the_facilitators_no_is_a_no(make_shop: MakeShop) -> None:
    shop = await make_shop(facilitator=True)
    shop.facilitator.behaviour = RefuseVerify("blocked_account")
    answer = await shop.pay()
    assert answer.status == 402
    assert "blocked_account" in answer.challenge.error
    assert_nothing_happened(shop, await shop.ledger_rows())


@dataclasses.dataclass(frozen=True)
class Outage:
    """What is wrong with the facilitator (None: it is not there), and the status that says so."""

    behaviour: Behaviour | None
    status: int = 503


OUTAGES = {
    "down": Outage(None),
    "slow": Outage(SlowVerify()),
    "502": Outage(BadGateway(after_settling=False)),
    "garbage": Outage(Garbage(), 502),
    "too much": Outage(Huge(), 502),
    "a redirect": Outage(Redirect("http://127.0.0.1:1/"), 502),
    "another language": Outage(Garbage(b"<h1>Welcome</h1>"), 502),
}


@pytest.mark.parametrize("name", OUTAGES)
async def test_nobody_to_ask_is_no_reason_to_ask_for_money(make_shop: MakeShop, name: str) -> None:
    shop = await make_shop(facilitator=True, verify_timeout_s=0.3)
    payment = shop.payment()
    await spoil(shop, OUTAGES[name])
    answer = await shop.post(payment)
    assert (answer.status, answer.asks_for_money) == (OUTAGES[name].status, False)
    assert answer.json["retriable"]
    if answer.status == 503:
        assert int(answer.headers["Retry-After"]) >= 1
    assert_nothing_happened(shop, await shop.ledger_rows())

    shop.facilitator.behaviour = Ok()
    shop.facilitator.release.set()
    if OUTAGES[name].behaviour is None:
        await shop.facilitator.start()
    assert (await shop.post(payment)).status == 200


@pytest.mark.parametrize("name", OUTAGES)
async def test_a_used_payment_is_known_without_the_facilitator(make_shop: MakeShop, name: str) -> None:
    shop = await make_shop(facilitator=True, verify_timeout_s=0.3)
    answer = await shop.pay()
    await spoil(shop, OUTAGES[name])
    again = await shop.again(answer.payment)
    assert (again.status, again.reason, again.sale_id) == (409, "payment_used", answer.sale_id)


async def test_the_verdict_of_a_facilitator_is_not_kept(make_shop: MakeShop) -> None:
    shop = await make_shop(facilitator=True)
    payment = shop.payment()
    shop.facilitator.behaviour = RefuseVerify()
    assert (await shop.post(payment)).status == 402
    shop.facilitator.behaviour = Ok()
    assert (await shop.post(payment)).status == 200


@pytest.mark.parametrize("settlement", list(SettlementPolicy))
async def test_a_contract_wallet_is_for_the_facilitator_to_judge(
    make_shop: MakeShop, settlement: SettlementPolicy
) -> None:
    shop = await make_shop(facilitator=True, settlement=settlement)
    payload = shop.sign()
    wallets = msgspec.structs.replace(
        payload, payload=msgspec.structs.replace(payload.payload, signature="0x" + "ab" * 200)
    )
    headers = payment_headers(wallets, 2)
    refused = await shop.post(headers)
    assert (refused.status, await shop.ledger_rows()) == (402, [])
    shop.facilitator.inner = MakeBelieve()
    assert (await shop.post(headers)).status == 200
    again = await shop.again(headers)
    assert (again.status, again.reason) == (409, "payment_used")
    assert len(shop.upstream.calls) == 1


async def test_a_contract_wallet_gets_the_answer_that_it_is_owed(make_shop: MakeShop) -> None:
    """Its nonce is used on the chain by then, and the window may be over: the facilitator says no, or is not there."""
    clock = FakeClock()
    shop = await make_shop(facilitator=True, settlement=SettlementPolicy.BEFORE, clock=clock)
    shop.facilitator.inner = MakeBelieve()
    payments = [payment_headers(with_signature(shop.sign(), "0x" + "ab" * 200), 2) for _ in range(3)]
    shop.upstream.script = [Answering(status=500)] * 3
    for payment in payments:
        assert (await shop.post(payment)).status == 500
    await shop.until_states("owed", "owed", "owed")
    shop.facilitator.behaviour = RefuseVerify("invalid_exact_evm_nonce_already_used")
    assert (await shop.post(payments[0])).status == 200
    await shop.facilitator.stop()
    assert (await shop.post(payments[1])).status == 200
    clock.advance(400)
    assert (await shop.post(payments[2])).status == 200
    again = await shop.again(payments[2])
    assert (again.status, again.reason) == (409, "payment_used")


async def test_only_the_signature_of_a_contract_wallet_takes_what_it_is_owed(make_shop: MakeShop) -> None:
    shop = await make_shop(facilitator=True, settlement=SettlementPolicy.BEFORE)
    shop.facilitator.inner = MakeBelieve()
    payload = shop.sign()
    shop.upstream.script = [Answering(status=500)]
    assert (await shop.post(payment_headers(with_signature(payload, "0x" + "ab" * 200), 2))).status == 500
    shop.facilitator.behaviour = RefuseVerify("invalid_exact_evm_nonce_already_used")
    forged = await shop.post(payment_headers(with_signature(payload, "0x" + "cd" * 200), 2))
    assert (forged.status, "X-Obol-Receipt" in forged.headers) == (402, False)
    await shop.until_states("owed")


def with_signature(payload: PaymentPayload, signature: str) -> PaymentPayload:
    return msgspec.structs.replace(payload, payload=msgspec.structs.replace(payload.payload, signature=signature))


async def test_a_used_payment_that_has_expired_gets_its_receipt(make_shop: MakeShop) -> None:
    clock = FakeClock()
    shop = await make_shop(clock=clock)
    answer = await shop.pay()
    clock.advance(400)
    again = await shop.again(answer.payment)
    assert (again.status, again.reason, again.sale_id) == (409, "payment_used", answer.sale_id)


async def test_nobody_learns_of_anothers_sale(shop: Shop) -> None:
    """The nonce and payer of a sale are public once it is settled; only their signature shows the receipt."""
    payload = shop.sign()
    await shop.post(payment_headers(payload, 2))
    forged = msgspec.structs.replace(
        payload, payload=msgspec.structs.replace(payload.payload, signature="0x" + "11" * 64 + "1b")
    )
    answer = await shop.post(payment_headers(forged, 2))
    assert answer.status == 402
    assert "X-Obol-Receipt" not in answer.headers


async def test_a_release_by_a_facilitators_change_of_mind_serves_nothing(make_shop: MakeShop) -> None:
    """A payment that the ledger knows only as released is no sale: the facilitator's no stands."""
    shop = await make_shop(facilitator=True)
    await shop.upstream.stop()
    answer: Answer = await shop.pay()
    assert (answer.status, await shop.states()) == (503, ["released"])
    await shop.upstream.start()
    await shop.restart()
    shop.facilitator.behaviour = RefuseVerify()
    assert (await shop.post(answer.payment)).status == 402
    assert await shop.states() == ["released"]


async def spoil(shop: Shop, outage: Outage) -> None:
    if outage.behaviour is None:
        await shop.facilitator.stop()
    else:
        shop.facilitator.behaviour = outage.behaviour


def assert_nothing_happened(shop: Shop, rows: list[Any]) -> None:
    assert rows == []
    assert shop.upstream.calls == []
