"""The contract doubles do what the real ones do, as far as payments see it."""

import asyncio
import importlib.util
from copy import deepcopy
from typing import Any

import pytest
from eth_abi.abi import decode
from eth_account.signers.local import LocalAccount
from eth_typing import Hash32
from x402 import SpendControlAsset, x402ClientSync, x402FacilitatorSync
from x402.mechanisms.evm import FacilitatorWeb3Signer
from x402.mechanisms.evm.constants import EIP2612_PERMIT_TYPES
from x402.mechanisms.evm.erc6492 import parse_erc6492_signature
from x402.mechanisms.evm.exact.client import ExactEvmScheme
from x402.mechanisms.evm.exact.register import register_exact_evm_client, register_exact_evm_facilitator
from x402.mechanisms.evm.signers import EthAccountSigner, EthAccountSignerWithRPC
from x402.schemas import PaymentPayload, PaymentRequired, PaymentRequirements, SettleResponse, VerifyResponse

from obol.adapters.evm_abi import selector, topic
from obol.core.networks import BASE_SEPOLIA
from obol.x402.eip712 import domain_separator, permit2_domain_separator
from obol.x402.permit2 import EXACT_PROXY_ADDRESS, PERMIT2_ADDRESS
from tests.adapters.payments import SELLER, account, pay, requirements
from tests.components import missing
from tests.evm.anvil import USDC, Anvil, compiled
from tests.evm.authorizing import transfer_call
from tests.evm.contracts import (
    OBOL,
    allow_permit2,
    call,
    deploy_factory,
    deploy_wallet,
    place_obol,
    place_permit2,
    settle_call,
    settle_with_permit_call,
    undeployed_signature,
    wallet_address,
    wallet_creation,
)

BUYER = account()
GAS_ACCOUNT = account(5)
PRICE_ATOMIC = 10**18
WANTED = PaymentRequirements(
    scheme="exact",
    network=BASE_SEPOLIA.caip2,
    asset=OBOL.address,
    amount=str(PRICE_ATOMIC),
    pay_to=SELLER,
    max_timeout_seconds=300,
    extra={"assetTransferMethod": "permit2", "name": OBOL.eip712_name, "version": OBOL.eip712_version},
)
SPONSORED = {"eip2612GasSponsoring": {"info": {"description": "a permit takes the place of approve", "version": "1"}}}
OBOL_ALLOWED: SpendControlAsset = {"asset": OBOL.address, "network": BASE_SEPOLIA.caip2}
"""The official client pays only with tokens that it knows, and has to be told of others."""
EIP1271_YES = bytes.fromhex("1626ba7e").ljust(32, b"\0")
MALLORY = account(6)


class WalletSigner(EthAccountSigner):
    """Signs for a contract wallet with its owner's key."""

    def __init__(self, owner: LocalAccount, wallet: str) -> None:
        super().__init__(owner)
        self._wallet = wallet

    @property
    def address(self) -> str:
        return self._wallet


def signed(wallet: Any = BUYER) -> dict[str, Any]:
    """A payment's `payload`, as the official client signs it."""
    return ExactEvmScheme(wallet).create_payment_payload(WANTED)


async def view(anvil: Anvil, to: str, data: bytes) -> bytes:
    """What a call returns. Raises `RuntimeError` with the revert's data."""
    returned: str = await anvil.rpc("eth_call", {"to": to, "data": "0x" + data.hex()}, "latest")
    return bytes.fromhex(returned[2:])


async def refused(anvil: Anvil, to: str, data: bytes, *, error: str) -> None:
    """Check that a call reverts by this custom error."""
    with pytest.raises(RuntimeError, match=selector(error).hex()):
        await view(anvil, to, data)


@pytest.fixture
async def obol(anvil: Anvil) -> Anvil:
    """A chain with Permit2, the x402 proxy, the Obol token, and a buyer who has some."""
    await place_permit2(anvil)
    await place_obol(anvil)
    await anvil.mint(BUYER.address, 5 * PRICE_ATOMIC, OBOL.address)
    return anvil


def test_what_the_factory_deploys_was_compiled_from_the_wallet_that_is_committed() -> None:
    assert compiled("WalletFactory")["runtime"].count(compiled("Wallet1271")["creation"][2:]) == 1


class TestWithTheOfficialSdk:
    """Its client signs, its facilitator verifies and settles: neither knows that the contracts are doubles."""

    @pytest.fixture(autouse=True)
    def sdk(self) -> None:
        if importlib.util.find_spec("jsonschema") is None:
            missing("jsonschema, which the official SDK's Permit2 imports", "pip install jsonschema")

    async def test_permit2_pays_after_an_approval(self, obol: Anvil) -> None:
        await allow_permit2(obol, BUYER.address, PRICE_ATOMIC)
        verdict, settled = await _sell(obol, sponsored=False)
        assert (verdict.is_valid, settled.success) == (True, True), (verdict, settled)
        (moved,) = await obol.transfers(SELLER, OBOL.address)
        assert (moved.transaction, moved.payer) == (settled.transaction, BUYER.address.lower())
        assert await obol.balance(SELLER, OBOL.address) == PRICE_ATOMIC

    async def test_without_an_approval_nothing_is_sold(self, obol: Anvil) -> None:
        verdict, settled = await _sell(obol, sponsored=False)
        assert (verdict.is_valid, verdict.invalid_reason) == (False, "permit2_allowance_required")
        assert not settled.success
        assert not await obol.transfers(SELLER, OBOL.address)

    async def test_a_permit_of_the_token_takes_the_place_of_the_approval(self, obol: Anvil) -> None:
        verdict, settled = await _sell(obol, sponsored=True)
        assert (verdict.is_valid, settled.success) == (True, True), (verdict, settled)
        receipt = await obol.mined(settled.transaction)
        assert receipt["logs"][-1]["topics"] == [topic("SettledWithPermit()")]
        assert await obol.balance(SELLER, OBOL.address) == PRICE_ATOMIC


class TestPermit2:
    @pytest.fixture(autouse=True)
    async def allowance(self, obol: Anvil) -> None:
        await allow_permit2(obol, BUYER.address)

    async def test_its_domain_is_the_real_ones(self, obol: Anvil) -> None:
        separator = await view(obol, PERMIT2_ADDRESS, call("DOMAIN_SEPARATOR()"))
        assert separator == permit2_domain_separator(BASE_SEPOLIA.chain_id)

    async def test_a_payment_moves_the_money_once(self, obol: Anvil) -> None:
        payload = signed()
        assert (await obol.send(EXACT_PROXY_ADDRESS, settle_call(payload)))["status"] == "0x1"
        assert await obol.balance(SELLER, OBOL.address) == PRICE_ATOMIC
        await refused(obol, EXACT_PROXY_ADDRESS, settle_call(payload), error="InvalidNonce()")

    async def test_a_used_nonce_is_a_bit_of_its_word(self, obol: Anvil) -> None:
        payload = signed()
        nonce = int(payload["permit2Authorization"]["nonce"])
        await obol.send(EXACT_PROXY_ADDRESS, settle_call(payload))
        word = await view(obol, PERMIT2_ADDRESS, call("nonceBitmap(address,uint256)", BUYER.address, nonce >> 8))
        assert int.from_bytes(word, "big") == 1 << (nonce & 0xFF)

    async def test_its_owner_cancels_a_nonce(self, obol: Anvil) -> None:
        payload = signed()
        nonce = int(payload["permit2Authorization"]["nonce"])
        cancel = call("invalidateUnorderedNonces(uint256,uint256)", nonce >> 8, 1 << (nonce & 0xFF))
        await obol.send(PERMIT2_ADDRESS, cancel, sender=BUYER.address)
        await refused(obol, EXACT_PROXY_ADDRESS, settle_call(payload), error="InvalidNonce()")

    @pytest.mark.parametrize(
        ("part", "field", "value"),
        [
            ("witness", "to", MALLORY.address),
            ("witness", "validAfter", "1"),
            ("permitted", "amount", str(2 * PRICE_ATOMIC)),
            ("permitted", "token", USDC.address),
        ],
    )
    async def test_what_was_not_signed_is_refused(self, obol: Anvil, part: str, field: str, value: str) -> None:
        payload = deepcopy(signed())
        payload["permit2Authorization"][part][field] = value
        await refused(obol, EXACT_PROXY_ADDRESS, settle_call(payload), error="InvalidSigner()")

    async def test_it_pays_nobody_but_through_the_spender_that_was_signed(self, obol: Anvil) -> None:
        await obol.place("X402ExactPermit2Proxy", MALLORY.address)
        await refused(obol, MALLORY.address, settle_call(signed()), error="InvalidSigner()")

    async def test_a_payment_ends_with_its_deadline(self, obol: Anvil) -> None:
        payload = signed()
        await obol.pass_time(WANTED.max_timeout_seconds + 60)
        await refused(obol, EXACT_PROXY_ADDRESS, settle_call(payload), error="SignatureExpired(uint256)")

    async def test_without_enough_money_nothing_moves(self, obol: Anvil) -> None:
        spent = call("transfer(address,uint256)", MALLORY.address, 5 * PRICE_ATOMIC)
        await obol.send(OBOL.address, spent, sender=BUYER.address)
        with pytest.raises(RuntimeError, match="TRANSFER_FROM_FAILED"):
            await view(obol, EXACT_PROXY_ADDRESS, settle_call(signed()))

    async def test_a_signature_of_another_length_is_refused(self, obol: Anvil) -> None:
        payload = signed()
        payload["signature"] += "00"
        await refused(obol, EXACT_PROXY_ADDRESS, settle_call(payload), error="InvalidSignatureLength()")

    async def test_a_v_of_zero_or_one_is_refused_and_the_short_form_is_not(self, obol: Anvil) -> None:
        payload = signed()
        signature = bytes.fromhex(payload["signature"][2:])
        parity = signature[64] - 27
        payload["signature"] = "0x" + signature[:64].hex() + f"{parity:02x}"
        await refused(obol, EXACT_PROXY_ADDRESS, settle_call(payload), error="InvalidSignature()")
        short = signature[:32] + bytes([signature[32] | parity << 7]) + signature[33:64]
        payload["signature"] = "0x" + short.hex()
        assert (await obol.send(EXACT_PROXY_ADDRESS, settle_call(payload)))["status"] == "0x1"

    async def test_a_contract_wallet_pays_with_its_owners_signature(self, obol: Anvil) -> None:
        wallet = await deploy_wallet(obol, BUYER.address)
        await obol.mint(wallet, PRICE_ATOMIC, OBOL.address)
        await allow_permit2(obol, wallet)
        forged, payload = signed(WalletSigner(MALLORY, wallet)), signed(WalletSigner(BUYER, wallet))
        await refused(obol, EXACT_PROXY_ADDRESS, settle_call(forged), error="InvalidContractSignature()")
        assert (await obol.send(EXACT_PROXY_ADDRESS, settle_call(payload)))["status"] == "0x1"
        assert await obol.balance(SELLER, OBOL.address) == PRICE_ATOMIC


class TestTheProxy:
    async def test_a_permit_of_another_amount_is_refused(self, obol: Anvil) -> None:
        permit = _permit(PRICE_ATOMIC + 1)
        data = settle_with_permit_call(signed(), permit)
        await refused(obol, EXACT_PROXY_ADDRESS, data, error="Permit2612AmountMismatch()")

    async def test_a_permit_that_somebody_used_before_does_no_harm(self, obol: Anvil) -> None:
        permit, payload = _permit(PRICE_ATOMIC), signed()
        signature = bytes.fromhex(permit["signature"][2:])
        window = (BUYER.address, PERMIT2_ADDRESS, PRICE_ATOMIC, int(permit["deadline"]))
        kinds = "address,address,uint256,uint256,uint8,bytes32,bytes32"
        used = call(f"permit({kinds})", *window, signature[64], signature[:32], signature[32:64])
        assert (await obol.send(OBOL.address, used))["status"] == "0x1"
        await refused(obol, OBOL.address, used, error="ERC2612InvalidSigner(address,address)")
        receipt = await obol.send(EXACT_PROXY_ADDRESS, settle_with_permit_call(payload, permit))
        assert receipt["status"] == "0x1"
        assert await obol.balance(SELLER, OBOL.address) == PRICE_ATOMIC


class TestObol:
    async def test_it_has_the_real_ones_domain(self, obol: Anvil) -> None:
        separator = await view(obol, OBOL.address, call("DOMAIN_SEPARATOR()"))
        ours = domain_separator(OBOL.eip712_name, OBOL.eip712_version, BASE_SEPOLIA.chain_id, OBOL.address)
        assert separator == ours

    async def test_it_tells_its_version_by_eip_5267_only(self, obol: Anvil) -> None:
        kinds = ["bytes1", "string", "string", "uint256", "address", "bytes32", "uint256[]"]
        said = decode(kinds, await view(obol, OBOL.address, call("eip712Domain()")))
        assert said[1:5] == (OBOL.eip712_name, OBOL.eip712_version, BASE_SEPOLIA.chain_id, OBOL.address.lower())
        with pytest.raises(RuntimeError, match="revert"):
            await view(obol, OBOL.address, call("version()"))

    async def test_it_has_18_decimals(self, obol: Anvil) -> None:
        assert int.from_bytes(await view(obol, OBOL.address, call("decimals()")), "big") == OBOL.decimals == 18


class TestContractWallets:
    async def test_a_wallet_signs_with_its_owners_key_only(self, anvil: Anvil) -> None:
        wallet = await deploy_wallet(anvil, BUYER.address)
        digest = Hash32(bytes([7] * 32))
        for signer, is_owner in ((BUYER, True), (MALLORY, False)):
            signature = bytes(signer.unsafe_sign_hash(digest).signature)
            answer = await view(anvil, wallet, call("isValidSignature(bytes32,bytes)", digest, signature))
            assert (answer == EIP1271_YES) is is_owner

    async def test_the_signature_of_a_wallet_to_be_names_what_deploys_it(self, anvil: Anvil) -> None:
        factory = await deploy_factory(anvil)
        read = parse_erc6492_signature(undeployed_signature(factory, BUYER.address, b"signature"))
        assert read.inner_signature == b"signature"
        await anvil.send("0x" + read.factory.hex(), read.factory_calldata)
        assert await view(anvil, wallet_address(factory, BUYER.address), call("owner()"))

    async def test_the_factory_puts_a_wallet_where_it_was_known_to_be(self, anvil: Anvil) -> None:
        factory = await deploy_factory(anvil)
        wallet = wallet_address(factory, BUYER.address)
        await anvil.mint(wallet, 1000)
        for _ in range(2):  # the second one changes nothing
            assert (await anvil.send(factory, wallet_creation(BUYER.address)))["status"] == "0x1"
        paid = pay(requirements(), BUYER, from_=wallet)
        assert (await anvil.send(USDC.address, transfer_call(paid)))["status"] == "0x1"
        assert await anvil.balance(SELLER) == 1000


async def _sell(anvil: Anvil, *, sponsored: bool) -> tuple[VerifyResponse, SettleResponse]:
    """A sale by the official SDK, whose chain access blocks."""
    await anvil.fund_native(GAS_ACCOUNT.address)

    def sell() -> tuple[VerifyResponse, SettleResponse]:
        wallet = EthAccountSignerWithRPC(BUYER, anvil.url)
        client = register_exact_evm_client(x402ClientSync(), wallet)
        client.set_spend_controls({"allowed_assets": [OBOL_ALLOWED]})
        asked = PaymentRequired(accepts=[WANTED], extensions=SPONSORED if sponsored else None)
        payment = client.create_payment_payload(asked)
        assert isinstance(payment, PaymentPayload)
        gas_wallet = FacilitatorWeb3Signer(GAS_ACCOUNT.key.hex(), anvil.url)
        facilitator = register_exact_evm_facilitator(x402FacilitatorSync(), gas_wallet, BASE_SEPOLIA.caip2)
        return facilitator.verify(payment, WANTED), facilitator.settle(payment, WANTED)

    return await asyncio.to_thread(sell)


def _permit(amount_atomic: int) -> dict[str, Any]:
    """The buyer's first EIP-2612 permit for Permit2, in the wire form of the extension."""
    domain = {
        "name": OBOL.eip712_name,
        "version": OBOL.eip712_version,
        "chainId": BASE_SEPOLIA.chain_id,
        "verifyingContract": OBOL.address,
    }
    message = {
        "owner": BUYER.address,
        "spender": PERMIT2_ADDRESS,
        "value": amount_atomic,
        "nonce": 0,
        "deadline": 2**40,
    }
    signed = BUYER.sign_typed_data(domain, EIP2612_PERMIT_TYPES, message)
    return {"amount": str(amount_atomic), "deadline": str(2**40), "signature": "0x" + signed.signature.hex()}
