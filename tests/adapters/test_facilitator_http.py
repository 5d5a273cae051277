"""The HTTP facilitator client against a facilitator that may be down, slow, broken or lying."""

import asyncio
import gzip
import json
import socket
from collections.abc import AsyncIterator

import msgspec
import pytest

from obol.adapters.facilitator_http import HttpFacilitator, facilitator_url
from obol.errors import FacilitatorUnavailableError, PeerProtocolError, SettingsError
from obol.x402.facilitator import Accepted, Refused, SettleOutcome
from tests.adapters.payments import requirements, unsigned
from tests.fakes.facilitator import (
    BadGateway,
    Behaviour,
    Drop,
    FakeFacilitator,
    Garbage,
    Huge,
    Lie,
    Pending,
    Redirect,
    RefuseSettle,
    RefuseVerify,
    SettleThenHang,
    SlowVerify,
    WrongStatus,
)

WANTED = requirements()
PAID = unsigned(WANTED)
PAYER = PAID.payer
TRANSACTION = "0x" + "ab" * 32


@pytest.fixture
async def fake() -> AsyncIterator[FakeFacilitator]:
    async with FakeFacilitator() as running:
        yield running


@pytest.fixture
async def client(fake: FakeFacilitator) -> AsyncIterator[HttpFacilitator]:
    facilitator = HttpFacilitator(fake.url, verify_timeout_s=0.5, settle_timeout_s=0.5)
    yield facilitator
    await facilitator.close()


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize(
    "url",
    [
        "https://facilitator.example",
        "https://facilitator.example/",
        "https://facilitator.example:8443/x402/",
        "http://localhost:4022",
        "http://127.0.0.1:4022/",
        "http://[::1]:4022",
        "http://host.docker.internal:4022",
        "http://host.k3d.internal",
        "http://LOCALHOST:1",
    ],
)
def test_an_allowed_address_is_kept_without_its_trailing_slash(url: str) -> None:
    assert facilitator_url(url) == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    [
        "http://facilitator.example",
        "http://localhost.example",
        "http://127.0.0.1.example",
        "http://127.0.0.2",
        "http://0.0.0.0",
        "http://2130706433",
        "http://localhost@facilitator.example",
        "https://user:word@facilitator.example",
        "https://facilitator.example/?key=1",
        "https://facilitator.example/#x",
        "https://facilitator.example:port",
        "https://facilitator.example\r\nX: 1",
        "https://",
        "ftp://facilitator.example",
        "facilitator.example",
        "file:///etc/passwd",
        "http://[::1",
        "",
    ],
)
def test_any_other_address_is_refused_by_the_flags_name(url: str) -> None:
    with pytest.raises(SettingsError, match=r"^--facilitator: "):
        HttpFacilitator(url)


def test_credentials_do_not_show() -> None:
    shown = repr(HttpFacilitator("https://facilitator.example", headers={"Authorization": "Bearer s3cret"}))
    assert "s3cret" not in shown
    assert "Authorization" in shown


async def test_a_good_payment_is_accepted_and_settled(client: HttpFacilitator, fake: FakeFacilitator) -> None:
    assert await client.verify(PAID, WANTED) == Accepted(PAYER)
    settlement = await client.settle(PAID, WANTED)
    assert settlement.outcome is SettleOutcome.SETTLED
    assert settlement.transaction.startswith("0x")
    assert len(fake.settled) == 1


@pytest.mark.parametrize(
    ("extra", "log_index"),
    [
        ({"logIndex": 7}, 7),
        ({"logIndex": 0}, 0),
        ({"logIndex": -1}, None),
        ({"logIndex": True}, None),
        ({"logIndex": "7"}, None),
        ({"logIndex": 2**40}, None),
        ({}, None),
        ([7], None),
        ("7", None),
        (None, None),
    ],
)
async def test_which_transfer_of_the_transaction_is_read_where_it_is_said(
    client: HttpFacilitator, fake: FakeFacilitator, extra: object, log_index: int | None
) -> None:
    answer = {"success": True, "transaction": "0x" + "f0" * 32, "network": WANTED.network, "extra": extra}
    fake.behaviour = Garbage(msgspec.json.encode(answer))
    settlement = await client.settle(PAID, WANTED)
    assert (settlement.outcome, settlement.log_index) == (SettleOutcome.SETTLED, log_index)


async def test_bodies_are_v2_as_the_specification_has_them(client: HttpFacilitator, fake: FakeFacilitator) -> None:
    await client.verify(PAID, WANTED)
    (body,) = fake.bodies
    assert body["x402Version"] == body["paymentPayload"]["x402Version"] == 2
    assert set(body) == {"x402Version", "paymentPayload", "paymentRequirements"}
    assert body["paymentRequirements"]["maxTimeoutSeconds"] == 300
    assert set(body["paymentPayload"]["payload"]["authorization"]) == {
        "from",
        "to",
        "value",
        "validAfter",
        "validBefore",
        "nonce",
    }


async def test_credentials_go_with_every_request(fake: FakeFacilitator) -> None:
    client = HttpFacilitator(fake.url, headers={"Authorization": "Bearer s3cret"})
    await client.verify(PAID, WANTED)
    await client.settle(PAID, WANTED)
    await client.close()
    assert [seen["Authorization"] for seen in fake.headers] == ["Bearer s3cret"] * 2


async def test_the_list_of_kinds_is_read(client: HttpFacilitator) -> None:
    (kind,) = (await client.supported()).kinds
    assert (kind.x402_version, kind.scheme, kind.network) == (2, "exact", "eip155:84532")


async def test_a_refusal_carries_the_facilitators_reason(client: HttpFacilitator, fake: FakeFacilitator) -> None:
    fake.behaviour = RefuseVerify("invalid_exact_evm_insufficient_balance")
    assert await client.verify(PAID, WANTED) == Refused("invalid_exact_evm_insufficient_balance")


@pytest.mark.parametrize("behaviour", [BadGateway(after_settling=False), SlowVerify()])
async def test_nobody_to_ask_is_unavailable(
    client: HttpFacilitator, fake: FakeFacilitator, behaviour: Behaviour
) -> None:
    fake.behaviour = behaviour
    with pytest.raises(FacilitatorUnavailableError):
        await client.verify(PAID, WANTED)


async def test_no_connection_is_unavailable_and_names_no_address() -> None:
    client = HttpFacilitator(f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(FacilitatorUnavailableError) as caught:
        await client.verify(PAID, WANTED)
    with pytest.raises(FacilitatorUnavailableError):
        await client.supported()
    await client.close()
    assert "127.0.0.1" not in str(caught.value)


@pytest.mark.parametrize(
    "behaviour",
    [
        Garbage(),
        Garbage(b""),
        Garbage(b"[]"),
        Garbage(b"{}"),
        Garbage(b'{"isValid": "true"}'),
        Garbage(b'{"isValid": 1}'),
        Garbage(b'{"isValid": null}'),
        Garbage(b'\xff{"isValid": true}'),
        Garbage(gzip.compress(b'{"isValid": true}')),
        Garbage(gzip.compress(b'{"isValid": true}'), "gzip"),
        WrongStatus(201),
        WrongStatus(402),
        Garbage(b'{"isValid": true, "payer": "0x' + b"9" * 40 + b'"}'),
        Huge(),
        Redirect("http://127.0.0.1:1/verify"),
    ],
)
async def test_nonsense_never_accepts_a_payment(
    client: HttpFacilitator, fake: FakeFacilitator, behaviour: Behaviour
) -> None:
    fake.behaviour = behaviour
    with pytest.raises(PeerProtocolError):
        await client.verify(PAID, WANTED)


async def test_a_refusal_under_a_refusals_status_is_one(client: HttpFacilitator, fake: FakeFacilitator) -> None:
    """Some facilitators answer 400 to a payer without money."""
    fake.behaviour = RefuseVerify("insufficient_funds", status=400)
    refused = await client.verify(PAID, WANTED)
    assert isinstance(refused, Refused)
    assert refused.reason == "insufficient_funds"


async def test_a_redirect_is_not_followed(client: HttpFacilitator, fake: FakeFacilitator) -> None:
    async with FakeFacilitator() as elsewhere:
        fake.behaviour = Redirect(elsewhere.url + "/settle")
        assert (await client.settle(PAID, WANTED)).outcome is SettleOutcome.UNKNOWN
        assert elsewhere.settle_asked == []


@pytest.mark.parametrize(
    ("behaviour", "moved"),
    [
        (SettleThenHang(), True),
        (BadGateway(after_settling=True), True),
        (BadGateway(after_settling=False), False),
        (Drop(after_settling=True), True),
        (Drop(after_settling=False), False),
        (Huge(), True),
        (WrongStatus(201), True),
        (WrongStatus(500), True),
        (Garbage(), False),
        (Garbage(b"{}"), False),
        (Garbage(b'{"success": "true"}'), False),
        (Garbage(json.dumps({"transaction": TRANSACTION, "network": WANTED.network}).encode()), False),
        (Lie(transaction=""), False),
        (Lie(transaction="0x1234"), False),
        (Lie(transaction="x" * 66), False),
        (Lie(network="eip155:8453"), False),
        (Lie(payer="0x" + "9" * 40), False),
        (Redirect("http://127.0.0.1:1/settle"), False),
    ],
)
async def test_an_answer_that_cannot_be_trusted_is_unknown_and_never_settled(
    client: HttpFacilitator, fake: FakeFacilitator, behaviour: Behaviour, moved: bool
) -> None:
    fake.behaviour = behaviour
    settlement = await client.settle(PAID, WANTED)
    assert settlement.outcome is SettleOutcome.UNKNOWN
    assert settlement.reason
    assert len(fake.settled) == moved


async def test_a_refused_connection_is_unknown_and_says_that_nothing_was_sent() -> None:
    client = HttpFacilitator(f"http://127.0.0.1:{closed_port()}")
    settlement = await client.settle(PAID, WANTED)
    await client.close()
    assert (settlement.outcome, settlement.reason) == (SettleOutcome.UNKNOWN, "facilitator_unreachable")
    assert "nothing was sent" in settlement.message


async def test_asking_again_after_a_lost_answer_finds_the_same_transaction(
    client: HttpFacilitator, fake: FakeFacilitator
) -> None:
    fake.behaviour = SettleThenHang()
    assert (await client.settle(PAID, WANTED)).outcome is SettleOutcome.UNKNOWN
    fake.release.set()
    settlement = await client.settle(PAID, WANTED)
    assert settlement.outcome is SettleOutcome.SETTLED
    assert len(fake.settled) == 1


async def test_pending_is_neither_settled_nor_failed(client: HttpFacilitator, fake: FakeFacilitator) -> None:
    fake.behaviour = Pending(times=1, transaction=TRANSACTION)
    first = await client.settle(PAID, WANTED)
    assert (first.outcome, first.transaction) == (SettleOutcome.PENDING, TRANSACTION)
    assert (await client.settle(PAID, WANTED)).outcome is SettleOutcome.SETTLED


@pytest.mark.parametrize(
    ("behaviour", "outcome"),
    [
        (RefuseSettle("invalid_exact_evm_insufficient_balance"), SettleOutcome.FAILED),
        (RefuseSettle("insufficient_funds"), SettleOutcome.FAILED),
        (RefuseSettle("some_reason_nobody_knows"), SettleOutcome.UNKNOWN),
        (RefuseSettle("settle_exact_node_failure"), SettleOutcome.UNKNOWN),
        (RefuseSettle("settle_exact_evm_transaction_confirmation_timed_out"), SettleOutcome.UNKNOWN),
        (RefuseSettle("unknown_error"), SettleOutcome.UNKNOWN),
        (RefuseSettle("invalid_payload"), SettleOutcome.UNKNOWN),
        (RefuseSettle("smart_wallet_deployment_failed"), SettleOutcome.UNKNOWN),
        (RefuseSettle("duplicate_settlement"), SettleOutcome.UNKNOWN),
        (RefuseSettle(""), SettleOutcome.UNKNOWN),
        (Garbage(b'{"success":false,"error":"upstream request timed out"}'), SettleOutcome.UNKNOWN),
        (RefuseSettle("transaction_failed", TRANSACTION), SettleOutcome.FAILED),
        (RefuseSettle("transaction_failed"), SettleOutcome.UNKNOWN),
        (RefuseSettle("invalid_exact_evm_transaction_failed", TRANSACTION), SettleOutcome.FAILED),
        (RefuseSettle("invalid_exact_evm_transaction_failed"), SettleOutcome.UNKNOWN),
        (RefuseSettle("invalid_exact_evm_failed_to_get_receipt", TRANSACTION), SettleOutcome.UNKNOWN),
        (RefuseSettle("invalid_exact_evm_failed_to_execute_transfer"), SettleOutcome.UNKNOWN),
        (RefuseSettle("some_reason_nobody_knows", TRANSACTION), SettleOutcome.UNKNOWN),
        (RefuseSettle("invalid_exact_evm_nonce_already_used"), SettleOutcome.UNKNOWN),
        (RefuseSettle("permit2_invalid_nonce"), SettleOutcome.UNKNOWN),
        (RefuseSettle("unexpected_settle_error"), SettleOutcome.UNKNOWN),
        (Lie(success=False, transaction=""), SettleOutcome.UNKNOWN),
    ],
)
async def test_a_no_is_definite_only_when_its_reason_leaves_no_doubt(
    client: HttpFacilitator, fake: FakeFacilitator, behaviour: Behaviour, outcome: SettleOutcome
) -> None:
    fake.behaviour = behaviour
    settlement = await client.settle(PAID, WANTED)
    assert settlement.outcome is outcome
    assert settlement.reason


async def test_a_peers_words_are_cut_and_printable(client: HttpFacilitator, fake: FakeFacilitator) -> None:
    fake.behaviour = RefuseSettle("a\r\nb\x1b[31m" + "c" * 10_000)
    settlement = await client.settle(PAID, WANTED)
    assert settlement.reason.isprintable()
    assert len(settlement.reason) <= 200


async def test_a_verify_survives_a_kept_connection_that_the_peer_closed(fake: FakeFacilitator) -> None:
    client = HttpFacilitator(fake.url)
    await client.verify(PAID, WANTED)
    await fake.stop()
    await fake.start()
    assert await client.verify(PAID, WANTED) == Accepted(PAYER)
    await client.close()


async def test_closing_twice_is_harmless() -> None:
    client = HttpFacilitator("https://facilitator.example")
    await client.close()
    await client.close()


async def test_a_cancelled_settle_is_cancelled(client: HttpFacilitator, fake: FakeFacilitator) -> None:
    fake.behaviour = SettleThenHang()
    asking = asyncio.ensure_future(client.settle(PAID, WANTED))
    await fake.settle_arrived.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
