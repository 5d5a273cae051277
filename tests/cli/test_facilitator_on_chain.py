"""`obol facilitator run --rpc`: the process that a seller's payments are settled by, on a real chain."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from eth_account import Account

from obol.adapters.facilitator_http import HttpFacilitator
from obol.adapters.signer_local import LocalSigner
from obol.errors import FacilitatorUnavailableError
from obol.x402.facilitator import Accepted, Refused, SettleOutcome
from obol.x402.reasons import Reason
from tests.adapters.payments import PRICE_ATOMIC, SELLER, USDC, account, pay, requirements
from tests.evm.anvil import Anvil

BUYER = account()
GAS_KEY = bytes([5] * 32)
WANTED = requirements()
OBOL = [sys.executable, "-c", "from obol.cli.main import main; main()", "facilitator", "run"]


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "gas.key"
    LocalSigner(GAS_KEY).write_key_file(path)
    return path


@pytest.fixture
async def funded(anvil: Anvil) -> Anvil:
    await anvil.fund_native(LocalSigner(GAS_KEY).address)
    await anvil.mint(BUYER.address, 5 * PRICE_ATOMIC)
    return anvil


async def start(*arguments: str | Path, environment: dict[str, str] | None = None) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *OBOL,
        *map(str, arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
    )


@asynccontextmanager
async def running(*arguments: str | Path, environment: dict[str, str] | None = None) -> AsyncIterator[dict[str, Any]]:
    """What it announces; ended by SIGTERM, with exit code 0."""
    process = await start("--listen", "127.0.0.1:0", *arguments, environment=environment)
    assert process.stdout is not None
    try:
        line = await process.stdout.readline()
        if not line:
            raise AssertionError((await process.communicate())[1].decode())
        yield json.loads(line)
        process.send_signal(signal.SIGTERM)
        await process.communicate()
        assert process.returncode == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def refused(*arguments: str | Path) -> str:
    """What a start that is refused says."""
    process = await start(*arguments)
    _, said = await process.communicate()
    assert process.returncode == 2, said
    return said.decode()


async def settled_at(url: str) -> str:
    client = HttpFacilitator(url)
    paid = pay(WANTED)
    assert await client.verify(paid, WANTED) == Accepted(BUYER.address.lower())
    settlement = await client.settle(paid, WANTED)
    assert settlement.outcome is SettleOutcome.SETTLED
    assert settlement.log_index is not None
    await client.close()
    return settlement.transaction


async def test_it_settles_on_the_chain_of_its_nodes(funded: Anvil, key_file: Path, tmp_path: Path) -> None:
    async with running("--rpc", funded.url, "--key-file", key_file, "--data-dir", tmp_path) as facts:
        assert facts["networks"] == "eip155:84532"
        assert "gas_short" not in facts
        transaction = await settled_at(facts["address"])
        async with aiohttp.ClientSession() as session:
            async with session.get(facts["address"] + "/supported") as response:
                supported = await response.json()
            async with session.get(facts["address"] + "/metrics") as response:
                metrics = await response.text()
    assert {(kind["x402Version"], kind["network"]) for kind in supported["kinds"]} == {
        (2, "eip155:84532"),
        (1, "base-sepolia"),
    }
    assert supported["signers"] == {"eip155:*": [facts["gas_paid_by"]]}
    assert 'obol_facilitator_settled_total{network="eip155:84532",outcome="settled"} 1.0' in metrics
    assert 'obol_facilitator_gas_account_wei{network="eip155:84532"} 9.9' in metrics
    (moved,) = await funded.transfers(SELLER)
    assert moved.transaction == transaction


async def test_a_settlement_survives_kill_9(funded: Anvil, key_file: Path, tmp_path: Path) -> None:
    paid = pay(WANTED)
    arguments = ("--rpc", funded.url, "--key-file", key_file, "--data-dir", tmp_path)
    await funded.automine(False)
    process = await start("--listen", "127.0.0.1:0", *arguments)
    assert process.stdout is not None
    client = HttpFacilitator(json.loads(await process.stdout.readline())["address"])
    asking = asyncio.get_running_loop().create_task(client.settle(paid, WANTED))
    await funded.pending(1)
    process.kill()
    await process.communicate()
    assert (await asking).outcome is SettleOutcome.UNKNOWN
    await client.close()
    await funded.automine(True)
    await funded.mine()
    async with running(*arguments) as facts:
        client = HttpFacilitator(facts["address"])
        assert (await client.settle(paid, WANTED)).outcome is SettleOutcome.SETTLED
        await client.close()
    assert len(await funded.transfers(SELLER)) == 1


async def test_it_works_for_the_sellers_that_are_named(funded: Anvil, key_file: Path, tmp_path: Path) -> None:
    given = ("--rpc", funded.url, "--key-file", key_file, "--data-dir", tmp_path, "--pay-to")
    async with running(*given, account(8).address, "--pay-to", SELLER) as facts:
        await settled_at(facts["address"])
    async with running(*given, account(8).address) as facts:
        client = HttpFacilitator(facts["address"])
        paid = pay(WANTED)
        verified, settled = await client.verify(paid, WANTED), await client.settle(paid, WANTED)
        await client.close()
    assert isinstance(verified, Refused)
    assert (settled.outcome, settled.reason) == (SettleOutcome.FAILED, Reason.INVALID_REQUIREMENTS)
    assert len(await funded.transfers(SELLER)) == 1


async def test_without_money_for_gas_nothing_is_accepted_and_the_log_says_what_to_fund(
    anvil: Anvil, key_file: Path, tmp_path: Path
) -> None:
    """A seller that was told "valid" would serve, and nobody could settle."""
    await anvil.mint(BUYER.address, PRICE_ATOMIC)
    process = await start("--listen", "127.0.0.1:0", "--rpc", anvil.url, "--key-file", key_file, "--data-dir", tmp_path)
    assert process.stdout is not None
    facts = json.loads(await process.stdout.readline())
    assert facts["gas_short"].startswith(f"{LocalSigner(GAS_KEY).address} has 0 wei on base-sepolia")
    client = HttpFacilitator(facts["address"])
    with pytest.raises(FacilitatorUnavailableError):
        await client.verify(pay(WANTED), WANTED)
    await client.close()
    process.send_signal(signal.SIGTERM)
    _, said = await process.communicate()
    assert f"{LocalSigner(GAS_KEY).address} has 0 wei on base-sepolia" in said.decode()


async def test_a_batcher_that_cannot_be_deployed_for_want_of_gas_money(
    anvil: Anvil, key_file: Path, tmp_path: Path
) -> None:
    said = await refused("--rpc", anvil.url, "--key-file", key_file, "--data-dir", tmp_path, "--batch-max", "5")
    assert f"{LocalSigner(GAS_KEY).address} has 0 wei" in " ".join(said.split())


async def test_the_devnet_does_not_mind_nodes_in_the_environment(tmp_path: Path) -> None:
    environment = {"OBOL_RPC": "https://rpc.example"}
    async with running("--devnet", "--data-dir", tmp_path, environment=environment) as facts:
        assert "devnet" in facts["ledger"]


async def test_a_keystore_and_its_password(funded: Anvil, tmp_path: Path) -> None:
    path = tmp_path / "store.json"
    path.write_text(json.dumps(Account.encrypt(GAS_KEY, "open", kdf="pbkdf2", iterations=10)))
    path.chmod(0o600)
    given = ("--keystore", path, "--keystore-password-env", "PASSWORD")
    environment = {"PASSWORD": "open"}
    async with running("--rpc", funded.url, "--data-dir", tmp_path, *given, environment=environment) as facts:
        assert facts["gas_paid_by"] == LocalSigner(GAS_KEY).address
        await settled_at(facts["address"])


async def test_a_signer_elsewhere(funded: Anvil, tmp_path: Path) -> None:
    """anvil signs for its own accounts."""
    address = (await funded.rpc("eth_accounts"))[0]
    given = ("--signer-url", funded.url, "--signer-address", address)
    async with running("--rpc", funded.url, "--data-dir", tmp_path, *given) as facts:
        assert facts["gas_paid_by"].lower() == address.lower()
        await settled_at(facts["address"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((), "--devnet and --rpc"),
        (("--devnet", "--rpc", "RPC"), "--devnet and --rpc"),
        (("--rpc", "RPC"), "--key-file: say who pays the gas"),
        (("--rpc", "RPC", "--key-file", "KEY", "--signer-url", "RPC"), "--key-file: say who pays the gas"),
        (("--rpc", "RPC", "--signer-url", "RPC"), "--signer-address: belongs to --signer-url"),
        (("--rpc", "RPC", "--key-file", "KEY", "--chain", "base"), "--chain: is for --devnet"),
        (("--rpc", "RPC", "--rpc", "RPC", "--key-file", "KEY"), "two are of base-sepolia"),
        (("--rpc", "http://rpc.example", "--key-file", "KEY"), "--rpc: must be https"),
        (("--rpc", "RPC", "--keystore-password-env", "X"), "--keystore-password-env: means nothing"),
        (("--rpc", "RPC", "--key-file", "KEY", "--pay-to", "me"), "--pay-to: 'me' is not an address"),
        (("--rpc", "RPC", "--keystore", "/nowhere"), "'/nowhere' does not exist"),
        (("--rpc", "RPC", "--keystore", "KEY", "--key-file", "KEY"), "--key-file: say who pays the gas"),
    ],
)
async def test_what_is_missing_or_contradicts_is_named(
    anvil: Anvil, key_file: Path, tmp_path: Path, given: tuple[str, ...], said: str
) -> None:
    place = {"RPC": anvil.url, "KEY": str(key_file)}
    assert said in await refused("--data-dir", tmp_path, *(place.get(one, one) for one in given))


async def test_a_chain_that_is_not_known_is_refused(key_file: Path, tmp_path: Path) -> None:
    async with Anvil("--chain-id", "31337") as other:
        said = await refused("--rpc", other.url, "--key-file", key_file, "--data-dir", tmp_path)
    assert "is of chain 31337, which is not one of base (8453)" in " ".join(said.split())


async def test_a_token_that_signs_as_another_is_refused_with_both(anvil: Anvil, key_file: Path, tmp_path: Path) -> None:
    name = b"USD Coin"
    stored = name.ljust(31, b"\0") + bytes((2 * len(name),))  # a short string, as Solidity stores it
    await anvil.rpc("anvil_setStorageAt", USDC.address, "0x" + "00" * 32, "0x" + stored.hex())
    said = await refused("--rpc", anvil.url, "--key-file", key_file, "--data-dir", tmp_path)
    assert "signs as 'USD Coin' version '2'" in said
    assert "advertised is 'USDC' version '2'" in said


async def test_no_node_is_a_connection_error(key_file: Path, tmp_path: Path) -> None:
    process = await start("--rpc", "http://127.0.0.1:1", "--key-file", key_file, "--data-dir", tmp_path)
    _, said = await process.communicate()
    assert (process.returncode, b"no RPC endpoint" in said) == (3, True), said
