"""The facilitator's HTTP face: both generations of bodies, and what it answers to everything else."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
import pytest

from obol.adapters.chain_devnet import DevnetChain
from obol.errors import FacilitatorUnavailableError, IllegalTransitionError, LedgerUnavailableError, PeerProtocolError
from obol.facilitator.app import MAX_BODY_BYTES
from obol.x402.facilitator import Accepted, Settlement, SettleOutcome, VerifyOutcome
from obol.x402.models import (
    FacilitatorRequest,
    PaymentPayload,
    PaymentRequirements,
    SupportedResponse,
)
from tests.adapters.payments import PRICE_ATOMIC, SELLER, USDC, account, pay, requirements
from tests.facilitator.running import running
from tests.x402.samples import BUYER as PERMIT2_BUYER
from tests.x402.samples import OBOL_REQUIREMENTS, pay_obol

BUYER = account()


def v2_body(**changes: Any) -> dict[str, Any]:
    wanted = requirements()
    body: dict[str, Any] = msgspec.to_builtins(FacilitatorRequest(pay(wanted, **changes), wanted))
    return body


def v1_body(**changes: Any) -> dict[str, Any]:
    paid = pay(requirements(), **changes)
    return {
        "x402Version": 1,
        "paymentPayload": {
            "x402Version": 1,
            "scheme": "exact",
            "network": "base-sepolia",
            "payload": msgspec.to_builtins(paid.payload),
        },
        "paymentRequirements": {
            "scheme": "exact",
            "network": "base-sepolia",
            "maxAmountRequired": str(PRICE_ATOMIC),
            "resource": "http://seller.example/v1/chat/completions",
            "description": "",
            "mimeType": "application/json",
            "payTo": SELLER,
            "maxTimeoutSeconds": 300,
            "asset": USDC.address,
            "outputSchema": None,
            "extra": {"name": "USDC", "version": "2"},
        },
    }


async def post(http: aiohttp.ClientSession, address: str, body: object) -> tuple[int, dict[str, Any]]:
    async with http.post(address, json=body) as response:
        assert response.content_type == "application/json"
        assert response.headers["X-Request-Id"]
        return response.status, await response.json()


@pytest.mark.parametrize(("body", "network"), [(v2_body, "eip155:84532"), (v1_body, "base-sepolia")])
async def test_both_generations_are_verified_settled_and_answered_in_kind(
    http: aiohttp.ClientSession, url: str, chain: DevnetChain, body: Any, network: str
) -> None:
    await chain.fund(USDC, BUYER.address, PRICE_ATOMIC)
    asked = body()
    assert await post(http, url + "/verify", asked) == (200, {"isValid": True, "payer": BUYER.address})
    status, settled = await post(http, url + "/settle", asked)
    (moved,) = await chain.transfers(USDC, payee=SELLER)
    assert status == 200
    assert settled == {
        "success": True,
        "transaction": moved.transaction,
        "network": network,
        "payer": BUYER.address,
    }


@pytest.mark.parametrize("body", [v2_body, v1_body])
async def test_an_invalid_payment_is_a_200_that_says_so(http: aiohttp.ClientSession, url: str, body: Any) -> None:
    asked = body()
    status, verified = await post(http, url + "/verify", asked)
    assert (status, verified["isValid"], verified["payer"]) == (200, False, BUYER.address)
    assert verified["invalidReason"] == "invalid_exact_evm_insufficient_balance"
    status, settled = await post(http, url + "/settle", asked)
    assert (status, settled["success"], settled["transaction"]) == (200, False, "")
    assert settled["errorReason"] == "invalid_exact_evm_insufficient_balance"
    assert None not in settled.values()


@pytest.mark.parametrize("value", [PRICE_ATOMIC - 1, PRICE_ATOMIC + 1])
async def test_a_v1_payment_must_be_exactly_the_amount(http: aiohttp.ClientSession, url: str, value: int) -> None:
    _, verified = await post(http, url + "/verify", v1_body(value=value))
    assert verified["invalidReason"] == "invalid_exact_evm_payload_authorization_value_mismatch"


async def test_v1_networks_must_agree(http: aiohttp.ClientSession, url: str) -> None:
    asked = v1_body()
    asked["paymentPayload"]["network"] = "base"
    _, verified = await post(http, url + "/verify", asked)
    assert verified["invalidReason"] == "network_mismatch"


async def test_a_v1_network_that_nobody_knows_is_invalid(http: aiohttp.ClientSession, url: str) -> None:
    asked = v1_body()
    asked["paymentPayload"]["network"] = asked["paymentRequirements"]["network"] = "nowhere"
    _, settled = await post(http, url + "/settle", asked)
    assert (settled["errorReason"], settled["network"]) == ("invalid_network", "nowhere")


async def test_other_schemes_are_invalid_not_malformed(http: aiohttp.ClientSession, url: str) -> None:
    asked = v2_body()
    asked["paymentPayload"]["accepted"]["scheme"] = "upto"
    asked["paymentPayload"]["payload"] = {"signature": "0x", "permit2Authorization": {}}
    _, verified = await post(http, url + "/verify", asked)
    _, settled = await post(http, url + "/settle", asked)
    assert verified["invalidReason"] == settled["errorReason"] == "unsupported_scheme"


def permit2_body() -> dict[str, Any]:
    body: dict[str, Any] = msgspec.to_builtins(FacilitatorRequest(pay_obol(), OBOL_REQUIREMENTS))
    return body


async def test_permit2_is_no_payment_on_the_devnet(http: aiohttp.ClientSession, url: str) -> None:
    _, verified = await post(http, url + "/verify", permit2_body())
    _, settled = await post(http, url + "/settle", permit2_body())
    assert verified == {
        "isValid": False,
        "invalidReason": "invalid_payload",
        "invalidMessage": "permit2 is not supported on the devnet",
        "payer": PERMIT2_BUYER.address,
    }
    assert (settled["success"], settled["errorReason"], settled["transaction"]) == (False, "invalid_payload", "")
    assert settled["payer"] == PERMIT2_BUYER.address


async def test_a_permit2_payment_reaches_the_facilitator_as_it_came(http: aiohttp.ClientSession) -> None:
    facilitator = Scripted(Settlement(SettleOutcome.SETTLED, "0x" + "ab" * 32))
    async with running(facilitator) as url:
        assert await post(http, url + "/verify", permit2_body()) == (
            200,
            {"isValid": True, "payer": PERMIT2_BUYER.address},
        )
        status, settled = await post(http, url + "/settle", permit2_body())
    assert (status, settled["success"], settled["payer"]) == (200, True, PERMIT2_BUYER.address)
    assert facilitator.asked == [(pay_obol(), OBOL_REQUIREMENTS)] * 2


async def test_v1_has_no_permit2(http: aiohttp.ClientSession, url: str) -> None:
    asked = v1_body()
    asked["paymentPayload"]["payload"] = permit2_body()["paymentPayload"]["payload"]
    _, verified = await post(http, url + "/verify", asked)
    _, settled = await post(http, url + "/settle", asked)
    assert verified["invalidReason"] == settled["errorReason"] == "invalid_payload"
    assert "v1 has no Permit2" in verified["invalidMessage"]


@pytest.mark.parametrize("has_both", [False, True])
async def test_a_payload_has_exactly_one_authorization(http: aiohttp.ClientSession, url: str, has_both: bool) -> None:
    asked = v2_body()
    payload = asked["paymentPayload"]["payload"]
    if has_both:
        payload |= permit2_body()["paymentPayload"]["payload"]
    else:
        del payload["authorization"]
    status, problem = await post(http, url + "/verify", asked)
    assert (status, problem["field"]) == (400, "paymentPayload.payload")
    assert "`authorization`" in problem["error"]
    assert "`permit2Authorization`" in problem["error"]


def without(path: str, body: dict[str, Any]) -> dict[str, Any]:
    *parents, last = path.split(".")
    place = body
    for name in parents:
        place = place[name]
    del place[last]
    return body


@pytest.mark.parametrize("endpoint", ["/verify", "/settle"])
@pytest.mark.parametrize(
    ("body", "path"),
    [
        (v2_body, "x402Version"),
        (v2_body, "paymentPayload"),
        (v2_body, "paymentRequirements"),
        (v2_body, "paymentPayload.accepted"),
        (v2_body, "paymentPayload.payload"),
        (v2_body, "paymentPayload.payload.signature"),
        (v2_body, "paymentPayload.payload.authorization.validBefore"),
        (v2_body, "paymentRequirements.payTo"),
        (v2_body, "paymentRequirements.network"),
        (v1_body, "paymentPayload.network"),
        (v1_body, "paymentRequirements.maxAmountRequired"),
    ],
)
async def test_a_body_without_a_field_is_a_400_that_names_it(
    http: aiohttp.ClientSession, url: str, endpoint: str, body: Any, path: str
) -> None:
    status, problem = await post(http, url + endpoint, without(path, body()))
    assert (status, problem["field"]) == (400, path)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"x402Version": 3}, "x402Version"),
        ({"x402Version": "2"}, "x402Version"),
        ({"x402Version": 1}, "paymentPayload.scheme"),
        ({"paymentPayload": []}, "paymentPayload"),
    ],
)
async def test_a_wrong_field_is_a_400_that_names_it(
    http: aiohttp.ClientSession, url: str, changes: dict[str, Any], field: str
) -> None:
    status, problem = await post(http, url + "/verify", v2_body() | changes)
    assert (status, problem["field"], problem["reason"]) == (400, field, "malformed_request")


@pytest.mark.parametrize("body", [v1_body, v2_body])
async def test_the_payload_must_be_of_the_bodys_version(http: aiohttp.ClientSession, url: str, body: Any) -> None:
    asked = body()
    asked["paymentPayload"]["x402Version"] = 3 - asked["x402Version"]
    status, problem = await post(http, url + "/verify", asked)
    assert (status, problem["field"]) == (400, "paymentPayload.x402Version")


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b"null", b"[" * 30_000, b'{"x402Version": 1e999}'])
async def test_what_is_not_json_is_a_400(http: aiohttp.ClientSession, url: str, raw: bytes) -> None:
    async with http.post(url + "/settle", data=raw) as response:
        assert response.status == 400
        assert (await response.json())["reason"] == "malformed_request"


async def test_a_problem_never_repeats_what_was_sent(http: aiohttp.ClientSession, url: str) -> None:
    asked = v2_body()
    signature = asked["paymentPayload"]["payload"]["signature"]
    asked["paymentRequirements"]["amount"] = 5
    _, problem = await post(http, url + "/settle", asked)
    assert signature not in json.dumps(problem)


async def test_a_body_above_the_limit_is_413(http: aiohttp.ClientSession, url: str) -> None:
    async with http.post(url + "/verify", data=b" " * (MAX_BODY_BYTES + 1)) as response:
        assert response.status == 413
        assert (await response.json())["reason"] == "body_too_large"
    status, _ = await post(http, url + "/verify", v2_body())
    assert status == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("POST", "/Verify", 404), ("GET", "/verify", 405), ("DELETE", "/settle", 405)],
)
async def test_other_paths_and_methods_are_refused_in_json(
    http: aiohttp.ClientSession, url: str, method: str, path: str, status: int
) -> None:
    async with http.request(method, url + path) as response:
        assert response.status == status
        assert "error" in await response.json()
        assert ("Allow" in response.headers) == (status == 405)


async def test_supported_lists_both_generations(http: aiohttp.ClientSession, url: str) -> None:
    async with http.get(url + "/supported") as response:
        assert await response.json() == {
            "kinds": [
                {"x402Version": 2, "scheme": "exact", "network": "eip155:84532"},
                {"x402Version": 1, "scheme": "exact", "network": "base-sepolia"},
            ],
            "extensions": [],
            "signers": {},
        }


async def test_health_is_a_200(http: aiohttp.ClientSession, url: str) -> None:
    async with http.get(url + "/health") as response:
        assert (response.status, await response.json()) == (200, {"status": "ok"})


class Scripted:
    """A facilitator that ends as it is told to."""

    def __init__(self, ending: Exception | Settlement) -> None:
        self.ending = ending
        self.asked: list[tuple[PaymentPayload, PaymentRequirements]] = []

    async def verify(self, payload: PaymentPayload, requirements: PaymentRequirements) -> VerifyOutcome:
        self.asked.append((payload, requirements))
        if isinstance(self.ending, Exception):
            raise self.ending
        return Accepted(payload.payer.lower())

    async def settle(self, payload: PaymentPayload, requirements: PaymentRequirements) -> Settlement:
        self.asked.append((payload, requirements))
        if isinstance(self.ending, Exception):
            raise self.ending
        return self.ending

    async def supported(self) -> SupportedResponse:
        return SupportedResponse([])

    async def close(self) -> None:
        return None


@asynccontextmanager
async def scripted(ending: Exception | Settlement, logged: list[dict[str, object]]) -> AsyncIterator[str]:
    async with running(Scripted(ending), logged) as address:
        yield address


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (FacilitatorUnavailableError("the node says secret detail"), 503),
        (LedgerUnavailableError("secret detail"), 503),
        (PeerProtocolError("secret detail"), 502),
        (IllegalTransitionError("secret detail"), 500),
        (RuntimeError("secret detail"), 500),
    ],
)
async def test_an_error_has_its_status_and_no_details(
    http: aiohttp.ClientSession, error: Exception, status: int
) -> None:
    logged: list[dict[str, object]] = []
    async with scripted(error, logged) as url:
        answered, problem = await post(http, url + "/verify", v2_body())
    assert answered == status
    assert "secret" not in json.dumps(problem)
    if status == 500:
        (entry,) = logged
        assert (entry["event"], entry["request_id"]) == ("bug", "request-1")
        assert "secret detail" in str(entry["exception"])


async def test_a_pending_settlement_is_told_in_the_word_that_clients_know(http: aiohttp.ClientSession) -> None:
    pending = Settlement(SettleOutcome.PENDING, "0x" + "ab" * 32)
    async with scripted(pending, []) as url:
        status, answer = await post(http, url + "/settle", v2_body())
    assert (status, answer["success"], answer["errorReason"]) == (200, False, "settlement_pending")
    assert answer["transaction"] == pending.transaction


async def test_an_unknown_settlement_is_neither_yes_nor_no(http: aiohttp.ClientSession) -> None:
    async with scripted(Settlement(SettleOutcome.UNKNOWN, "", "facilitator_timeout"), []) as url:
        status, problem = await post(http, url + "/settle", v2_body())
    assert (status, problem["reason"]) == (502, "facilitator_timeout")
    assert "success" not in problem


async def test_settlements_are_logged_without_the_payload(http: aiohttp.ClientSession) -> None:
    logged: list[dict[str, object]] = []
    asked = v2_body()
    async with scripted(Settlement(SettleOutcome.SETTLED, "0x" + "ab" * 32), logged) as url:
        await post(http, url + "/settle", asked)
    (entry,) = logged
    assert entry["event"] == "settled"
    assert asked["paymentPayload"]["payload"]["signature"] not in json.dumps(entry)
