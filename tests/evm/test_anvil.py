"""The chain that other tests stand on: our token there is what its source says, and signs like the real one."""

import hashlib

import pytest

from obol.x402.eip712 import domain_separator, keccak
from tests.adapters.payments import PRICE_ATOMIC, SELLER, account, pay, requirements
from tests.evm.anvil import COMPILED, ROOT, USDC, Anvil, compiled
from tests.evm.authorizing import transfer_call


@pytest.mark.parametrize("contract", sorted(path.stem for path in COMPILED.glob("*.json")))
def test_what_is_committed_was_compiled_from_the_source_that_is_committed(contract: str) -> None:
    source = (ROOT / "contracts" / f"{contract}.sol").read_bytes()
    assert compiled(contract)["source_sha256"] == hashlib.sha256(source).hexdigest()


def test_every_contract_is_compiled() -> None:
    assert {path.stem for path in (ROOT / "contracts").glob("*.sol")} == {path.stem for path in COMPILED.glob("*.json")}


async def test_the_token_has_the_real_ones_domain(anvil: Anvil) -> None:
    data = "0x" + keccak(b"DOMAIN_SEPARATOR()")[:4].hex()
    separator = await anvil.rpc("eth_call", {"to": USDC.address, "data": data}, "latest")
    assert separator == "0x" + domain_separator("USDC", "2", 84532, USDC.address).hex()


async def test_an_authorization_moves_money_once_and_a_snapshot_takes_it_back(anvil: Anvil) -> None:
    await anvil.mint(account().address, PRICE_ATOMIC)
    before = await anvil.snapshot()
    receipt = await anvil.send(USDC.address, transfer_call(pay(requirements())))
    assert receipt["status"] == "0x1"
    assert await anvil.balance(SELLER) == PRICE_ATOMIC
    await anvil.revert(before)
    assert await anvil.balance(SELLER) == 0
