"""The other contracts of the tests, put in place on anvil: each at the address where the real one is, if there is one.

Multicall3, which the official facilitator asks to explain a refusal and to simulate ERC-6492 payments, is not among
them.
"""

from collections.abc import Mapping
from typing import Any

from eth_abi.abi import encode

from obol.adapters.contracts.batcher import FACTORY, load_batcher
from obol.adapters.evm_abi import split_types
from obol.core.networks import BASE_SEPOLIA, DEFAULT_CATALOGUE
from obol.x402.eip712 import checksum_address, keccak
from obol.x402.permit2 import EXACT_PROXY_ADDRESS, PERMIT2_ADDRESS
from tests.evm.anvil import Anvil, compiled

OBOL = DEFAULT_CATALOGUE.asset(BASE_SEPOLIA, "obol")
DEPLOYER = "0x" + "de" * 20
UNLIMITED = 2**256 - 1
ERC6492_END = bytes.fromhex("6492" * 16)
_DEPLOY_GAS = 2_000_000
_PERMIT = "((address,uint256),uint256,uint256),address,(address,uint256),bytes"


def call(signature: str, *values: object) -> bytes:
    """Call data of `name(type,…)`, encoded by eth-abi."""
    return keccak(signature.encode())[:4] + encode(split_types(signature[signature.index("(") :]), values)


async def place_permit2(anvil: Anvil) -> None:
    """Permit2 and the x402 exact proxy."""
    await anvil.place("Permit2", PERMIT2_ADDRESS)
    await anvil.place("X402ExactPermit2Proxy", EXACT_PROXY_ADDRESS)


async def place_obol(anvil: Anvil) -> None:
    """The Obol token. `anvil.mint(address, amount, OBOL.address)` makes some."""
    await anvil.place("TestOBOL", OBOL.address)


async def allow_permit2(anvil: Anvil, owner: str, amount_atomic: int = UNLIMITED, token: str = OBOL.address) -> None:
    """What a payer does once: its `approve` of Permit2, which is sent without its key."""
    await anvil.send(token, call("approve(address,uint256)", PERMIT2_ADDRESS, amount_atomic), sender=owner)


def settle_call(payload: Mapping[str, Any]) -> bytes:
    """`settle` of the x402 exact proxy for a payment's `payload` in its wire form, as anybody can send it."""
    return call(f"settle({_PERMIT})", *_settled(payload))


def settle_with_permit_call(payload: Mapping[str, Any], permit: Mapping[str, Any]) -> bytes:
    """`settleWithPermit`; `permit` is the `info` of the extension `eip2612GasSponsoring` in its wire form."""
    signature = bytes.fromhex(permit["signature"][2:])
    first = (int(permit["amount"]), int(permit["deadline"]), signature[:32], signature[32:64], signature[64])
    kinds = "(uint256,uint256,bytes32,bytes32,uint8)"
    return call(f"settleWithPermit({kinds},{_PERMIT})", first, *_settled(payload))


async def deploy(anvil: Anvil, contract: str, arguments: bytes = b"") -> str:
    """A new contract's address; `arguments` are those of its constructor, encoded."""
    await anvil.fund_native(DEPLOYER)
    await anvil.rpc("anvil_impersonateAccount", DEPLOYER)
    creation = compiled(contract)["creation"] + arguments.hex()
    asked = {"from": DEPLOYER, "data": creation, "gas": hex(_DEPLOY_GAS)}
    receipt = await anvil.mined(await anvil.rpc("eth_sendTransaction", asked))
    assert receipt["status"] == "0x1", receipt
    return checksum_address(receipt["contractAddress"])


async def deploy_wallet(anvil: Anvil, owner: str) -> str:
    """A contract wallet, which has signed what the owner's key has signed (EIP-1271)."""
    return await deploy(anvil, "Wallet1271", encode(["address"], [owner]))


async def deploy_factory(anvil: Anvil) -> str:
    """What deploys contract wallets at addresses known before (ERC-6492)."""
    return await deploy(anvil, "WalletFactory")


def wallet_creation(owner: str, salt: int = 0) -> bytes:
    """The call of the factory that deploys a wallet."""
    return call("create(address,bytes32)", owner, salt.to_bytes(32, "big"))


def wallet_address(factory: str, owner: str, salt: int = 0) -> str:
    """Where the factory deploys that wallet, whether it is there or not (EIP-1014)."""
    creation = bytes.fromhex(compiled("Wallet1271")["creation"][2:]) + encode(["address"], [owner])
    start = b"\xff" + bytes.fromhex(factory[2:]) + salt.to_bytes(32, "big")
    return checksum_address("0x" + keccak(start + keccak(creation))[-20:].hex())


def undeployed_signature(factory: str, owner: str, signature: bytes, salt: int = 0) -> bytes:
    """The signature of a wallet that is not there yet, with what deploys it (ERC-6492)."""
    wrapped = encode(["address", "bytes", "bytes"], [factory, wallet_creation(owner, salt), signature])
    return wrapped + ERC6492_END


async def deploy_batcher(anvil: Anvil) -> str:
    """The batcher's address, the same on every chain; deploys it by the factory that every chain has."""
    batcher = load_batcher()
    await anvil.send(FACTORY, batcher.deployment)
    return batcher.address


def _settled(payload: Mapping[str, Any]) -> tuple[object, ...]:
    signed = payload["permit2Authorization"]
    permitted = (signed["permitted"]["token"], int(signed["permitted"]["amount"]))
    permit = (permitted, int(signed["nonce"]), int(signed["deadline"]))
    witness = (signed["witness"]["to"], int(signed["witness"]["validAfter"]))
    return permit, signed["from"], witness, bytes.fromhex(payload["signature"][2:])
