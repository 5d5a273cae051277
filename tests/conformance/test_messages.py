"""The official schemas as judges of every x402 message that the gateway emits: challenges, receipts, refusals."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from x402.http.utils import decode_payment_required_header, safe_base64_decode
from x402.schemas import SettleResponse
from x402.schemas.v1 import PaymentRequiredV1

from obol import SettlementPolicy
from obol.adapters.clock import SystemClock
from obol.x402.client import payment_headers
from obol.x402.models import PaymentPayload
from tests.adapters.payments import SELLER, USDC, account, pay, requirements
from tests.conformance import node
from tests.conformance.purchase import PATH, Order
from tests.conformance.shop import PRICE_ATOMIC, Shop, open_shop
from tests.fakes.facilitator import Behaviour, Drop, Ok, Pending, RefuseSettle, RefuseVerify
from tests.fakes.model_server import FakeModelServer

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(90)]
BUYER = account()
RECEIPTS = {"PAYMENT-RESPONSE": "eip155:84532", "X-PAYMENT-RESPONSE": "base-sepolia"}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


def paid(**changes: Any) -> PaymentPayload:
    """A payment that fits the shop's offer, but for `changes` to the authorization."""
    valid_before_s = int(SystemClock().now_s()) + 300
    return pay(requirements(), BUYER, **({"validBefore": valid_before_s} | changes))


async def ask(shop: Shop, payload: PaymentPayload | None = None, *, stream: bool = False) -> Answer:
    headers = payment_headers(payload, 2) if payload else {}
    body = Order(shop.url, BUYER, stream=stream).body
    async with shop.http.post(shop.url + PATH, json=body, headers=headers) as answer:
        return Answer(answer.status, dict(answer.headers), await answer.read())


def read_exactly(text: str, model: Any) -> Any:
    """What the SDK's model reads; nothing in our JSON is foreign to it, nothing is converted, and no field is null."""
    read = model.model_validate_json(text, strict=True, extra="forbid")
    assert read.model_dump(mode="json", by_alias=True, exclude_none=True) == json.loads(text)
    return read


def check_challenge(answer: Answer, shop: Shop) -> None:
    """Both versions are there, whole, and offer the same."""
    header = decode_payment_required_header(answer.headers["PAYMENT-REQUIRED"])
    v2 = read_exactly(safe_base64_decode(answer.headers["PAYMENT-REQUIRED"]), type(header))
    v1 = read_exactly(answer.body.decode(), PaymentRequiredV1)
    (new,), (old,) = v2.accepts, v1.accepts
    assert (v2.x402_version, v1.x402_version, v2.error) == (2, 1, v1.error)
    assert (new.network, old.network) == ("eip155:84532", "base-sepolia")
    assert new.amount == old.max_amount_required == str(PRICE_ATOMIC)
    assert (new.pay_to, old.pay_to, new.asset, old.asset) == (SELLER, SELLER, USDC.address, USDC.address)
    assert v2.resource.url == old.resource == shop.url + PATH
    assert answer.headers["Cache-Control"] == "no-store"


async def test_every_402_carries_both_challenges_as_the_official_schemas_say(
    model_server: FakeModelServer, tmp_path: Path, scripts: Path
) -> None:
    async with open_shop(model_server.url, tmp_path) as shop:
        await shop.fund(BUYER.address)
        answers = [
            await ask(shop),
            await ask(shop, pay(requirements(PRICE_ATOMIC - 1), BUYER)),
            await ask(shop, paid(validBefore=1)),
            await ask(shop, paid(value=PRICE_ATOMIC + 1)),
        ]
        for behaviour in (RefuseVerify(), RefuseSettle()):
            shop.facilitator.behaviour = behaviour
            answers.append(await ask(shop, paid()))
        for answer in answers:
            assert answer.status == 402
            check_challenge(answer, shop)
    await check_by_the_typescript_schemas(answers, scripts)


async def check_by_the_typescript_schemas(answers: list[Answer], scripts: Path) -> None:
    sent = [{"header": answer.headers["PAYMENT-REQUIRED"], "body": json.loads(answer.body)} for answer in answers]
    (told,) = [line async for line in node.run(scripts, "schemas.mjs", {"OBOL_CHALLENGES": json.dumps(sent)})]
    assert told["verdicts"] == [{"v2": [], "v1": [], "oldV1": []}] * len(answers)


@pytest.mark.parametrize(
    ("settings", "behaviour", "stream", "status", "success", "reason"),
    [
        ({}, Ok(), False, 200, True, None),
        ({}, Ok(), True, 200, True, None),
        ({"settlement": SettlementPolicy.BEFORE}, Ok(), False, 200, True, None),
        ({"settlement": SettlementPolicy.BEFORE}, Ok(), True, 200, True, None),
        ({"verify_only": True}, Ok(), False, 200, False, "verify_only"),
        ({"verify_only": True}, Ok(), True, 200, False, "verify_only"),
        ({}, RefuseSettle("insufficient_funds"), False, 402, False, "insufficient_funds"),
        (
            {"settlement": SettlementPolicy.BEFORE},
            RefuseSettle("insufficient_funds"),
            True,
            402,
            False,
            "insufficient_funds",
        ),
        ({}, Drop(after_settling=True), False, 503, False, "settlement_pending"),
        ({"settlement": SettlementPolicy.BEFORE}, Pending(1), True, 503, False, "settlement_pending"),
    ],
)
async def test_every_receipt_header_is_as_the_official_schema_says(
    model_server: FakeModelServer,
    tmp_path: Path,
    settings: dict[str, Any],
    behaviour: Behaviour,
    stream: bool,
    status: int,
    success: bool,
    reason: str | None,
) -> None:
    async with open_shop(model_server.url, tmp_path, **settings) as shop:
        await shop.fund(BUYER.address)
        shop.facilitator.behaviour = behaviour
        answer = await ask(shop, paid(), stream=stream)
    assert answer.status == status
    for name, network in RECEIPTS.items():
        receipt = read_exactly(safe_base64_decode(answer.headers[name]), SettleResponse)
        assert (receipt.success, receipt.error_reason) == (success, reason)
        assert (receipt.network, receipt.payer) == (network, BUYER.address)


async def test_a_pending_settlement_names_its_transaction(model_server: FakeModelServer, tmp_path: Path) -> None:
    async with open_shop(model_server.url, tmp_path) as shop:
        await shop.fund(BUYER.address)
        shop.facilitator.behaviour = pending = Pending(times=1)
        answer = await ask(shop, paid())
    receipt = read_exactly(safe_base64_decode(answer.headers["PAYMENT-RESPONSE"]), SettleResponse)
    assert (answer.status, receipt.transaction) == (503, pending.transaction)
