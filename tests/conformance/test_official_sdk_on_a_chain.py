"""The official Python SDK's server and facilitator client, unmodified, settle on a real chain by our facilitator."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from eth_account.signers.local import LocalAccount
from x402 import x402Client
from x402.http import FacilitatorConfig, HTTPFacilitatorClient
from x402.http.clients import x402HttpxClient
from x402.http.utils import (
    decode_payment_required_header,
    decode_payment_response_header,
    encode_payment_signature_header,
)
from x402.mechanisms.evm.exact.register import register_exact_evm_client
from x402.schemas import PaymentRequired, PaymentRequirements
from x402.schemas.v1 import PaymentRequiredV1, PaymentRequirementsV1

from tests.adapters.payments import PRICE_ATOMIC, SELLER, USDC
from tests.conformance.facilitators import address_of, our_facilitator
from tests.evm.anvil import Anvil, Moved
from tests.evm.facilitating import GAS_KEY
from tests.facilitator.test_official_sdk import in_a_thread, official_seller, v2_requirements

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(60)]
PURSE_ATOMIC = 10 * PRICE_ATOMIC
V1_REQUIREMENTS = PaymentRequirementsV1(
    scheme="exact",
    network="base-sepolia",
    max_amount_required=str(PRICE_ATOMIC),
    resource="http://seller.example/",
    pay_to=SELLER,
    max_timeout_seconds=300,
    asset=USDC.address,
    extra={"name": "USDC", "version": "2"},
)
Wanted = PaymentRequirements | PaymentRequirementsV1
V2, V1 = "eip155:84532", "base-sepolia"
VERSIONS = pytest.mark.parametrize("network", [V2, V1])


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def chain() -> AsyncIterator[Anvil]:
    async with Anvil() as anvil:
        yield anvil


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def url(chain: Anvil, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    async with our_facilitator(chain, tmp_path_factory.mktemp("facilitator")) as address:
        yield address


@pytest_asyncio.fixture(loop_scope="session")
async def facilitator(url: str) -> AsyncIterator[HTTPFacilitatorClient]:
    async with HTTPFacilitatorClient(FacilitatorConfig(url=url)) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="session")
async def buyer(chain: Anvil, wallet: LocalAccount) -> x402Client:
    """With money."""
    await chain.mint(wallet.address, PURSE_ATOMIC)
    return register_exact_evm_client(x402Client(), wallet)  # type: ignore[arg-type]


def asked(
    network: str,
) -> tuple[PaymentRequirements, PaymentRequired] | tuple[PaymentRequirementsV1, PaymentRequiredV1]:
    """The requirements of the version that names its network so, and the challenge that offers them."""
    if network == V1:
        return V1_REQUIREMENTS, PaymentRequiredV1(accepts=[V1_REQUIREMENTS])
    wanted = v2_requirements()
    return wanted, PaymentRequired(accepts=[wanted])


async def moved_by(chain: Anvil, wallet: LocalAccount) -> list[Moved]:
    """What a buyer has paid the seller, and nobody else."""
    moved = [move for move in await chain.transfers(SELLER) if move.payer == wallet.address.lower()]
    assert await chain.balance(wallet.address) == PURSE_ATOMIC - sum(move.amount_atomic for move in moved)
    return moved


async def test_its_facilitator_client_reads_what_we_can_do_and_who_pays_the_gas(
    facilitator: HTTPFacilitatorClient,
) -> None:
    supported = await asyncio.to_thread(facilitator.get_supported)  # it blocks
    kinds = {(kind.x402_version, kind.scheme, kind.network) for kind in supported.kinds}
    assert kinds == {(2, "exact", V2), (1, "exact", V1)}
    assert supported.signers == {"eip155:*": [address_of(GAS_KEY)]}


@VERSIONS
async def test_its_facilitator_client_verifies_and_settles(
    facilitator: HTTPFacilitatorClient, chain: Anvil, wallet: LocalAccount, buyer: x402Client, network: str
) -> None:
    wanted, challenge = asked(network)
    paid = await buyer.create_payment_payload(challenge)
    verified = await facilitator.verify(paid, wanted)
    assert (verified.is_valid, verified.payer) == (True, wallet.address)
    assert await moved_by(chain, wallet) == []

    settled = await facilitator.settle(paid, wanted)
    (moved,) = await moved_by(chain, wallet)
    assert (settled.success, settled.payer, settled.network) == (True, wallet.address, network)
    assert (settled.transaction, moved.amount_atomic) == (moved.transaction, PRICE_ATOMIC)


@VERSIONS
async def test_its_facilitator_client_is_told_that_a_payment_is_used(
    facilitator: HTTPFacilitatorClient, chain: Anvil, wallet: LocalAccount, buyer: x402Client, network: str
) -> None:
    wanted, challenge = asked(network)
    paid = await buyer.create_payment_payload(challenge)
    await facilitator.settle(paid, wanted)
    verified = await facilitator.verify(paid, wanted)
    assert (verified.is_valid, verified.invalid_reason) == (False, "invalid_exact_evm_nonce_already_used")
    assert len(await moved_by(chain, wallet)) == 1


@VERSIONS
async def test_its_facilitator_client_is_told_why_a_payment_is_not_settled(
    facilitator: HTTPFacilitatorClient, chain: Anvil, wallet: LocalAccount, buyer: x402Client, network: str
) -> None:
    wanted, challenge = asked(network)
    paid = await buyer.create_payment_payload(challenge)
    dearer = wanted.model_copy(update={"amount" if network == V2 else "max_amount_required": str(2 * PRICE_ATOMIC)})
    settled = await facilitator.settle(paid, dearer)
    assert (settled.success, settled.transaction, settled.network) == (False, "", network)
    assert settled.error_reason == "invalid_exact_evm_payload_authorization_value_mismatch"
    assert await moved_by(chain, wallet) == []


async def test_its_server_sells_to_its_buyer_and_refuses_the_same_payment_afterwards(
    url: str, chain: Anvil, wallet: LocalAccount, buyer: x402Client
) -> None:
    presented: list[Any] = []
    buyer.on_after_payment_creation(lambda made: presented.append(made.payment_payload))
    async with in_a_thread(official_seller(url)) as seller:
        async with x402HttpxClient(buyer, base_url=seller) as http:
            answer = await http.get("/weather")
        (moved,) = await moved_by(chain, wallet)
        assert (answer.status_code, answer.json()) == (200, {"weather": "sunny"})
        receipt = decode_payment_response_header(answer.headers["PAYMENT-RESPONSE"])
        assert (receipt.success, receipt.transaction) == (True, moved.transaction)
        assert moved.amount_atomic == PRICE_ATOMIC

        (payment,) = presented
        headers = {"PAYMENT-SIGNATURE": encode_payment_signature_header(payment)}
        async with aiohttp.request("GET", seller + "/weather", headers=headers) as again:
            assert again.status == 402
    assert await moved_by(chain, wallet) == [moved]


async def test_its_server_serves_once_for_one_payment_sent_ten_times_at_once(
    url: str, chain: Anvil, wallet: LocalAccount, buyer: x402Client
) -> None:
    async with in_a_thread(official_seller(url)) as seller, aiohttp.ClientSession() as http:
        async with http.get(seller + "/weather") as unpaid:
            challenge = decode_payment_required_header(unpaid.headers["PAYMENT-REQUIRED"])
        payment: Any = await buyer.create_payment_payload(challenge)
        headers = {"PAYMENT-SIGNATURE": encode_payment_signature_header(payment)}

        async def send() -> int:
            async with http.get(seller + "/weather", headers=headers) as answer:
                return answer.status

        async with asyncio.TaskGroup() as group:
            sending = [group.create_task(send()) for _ in range(10)]
    assert sorted(sent.result() for sent in sending) == [200, *[402] * 9]
    assert len(await moved_by(chain, wallet)) == 1
