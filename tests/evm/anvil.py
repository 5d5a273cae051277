"""A real chain for tests: anvil with our token at the address of Base Sepolia's USDC, so its signatures are the real
ones.
"""

import asyncio
import itertools
import json
import socket
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from obol.adapters.rpc_http import JsonRpc
from obol.core.networks import BASE_SEPOLIA, DEFAULT_CATALOGUE
from obol.x402.eip712 import keccak
from tests.components import components_dir, missing

USDC = DEFAULT_CATALOGUE.asset(BASE_SEPOLIA, "usdc")
ROOT = Path(__file__).parents[2]
COMPILED = ROOT / "contracts" / "compiled"
TRANSFER = "0x" + keccak(b"Transfer(address,address,uint256)").hex()
RICH_WEI = 10**20
_START_S = 10.0


@dataclass(frozen=True)
class Moved:
    """One Transfer log."""

    transaction: str
    log_index: int
    payer: str
    pay_to: str
    amount_atomic: int


class Anvil:
    """One process on a free port, ended by `async with`. `arguments` go to anvil as they are."""

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments
        self._process: asyncio.subprocess.Process | None = None
        self._session: aiohttp.ClientSession | None = None
        self._ids = itertools.count(1)
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self.port = _free_port()
        self._process = await asyncio.create_subprocess_exec(
            str(program()),
            *("--host", "127.0.0.1", "--port", str(self.port), "--silent"),
            *(() if "--chain-id" in self._arguments else ("--chain-id", "84532")),
            *self._arguments,
        )
        self._session = aiohttp.ClientSession()
        try:
            await self._wait_until_up()
            await self.place("TestUSDC", USDC.address)
            await self.send(USDC.address, _initialize("USDC", "2"))
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def rpc(self, method: str, *params: Any) -> Any:
        """The result of a call. Raises `RuntimeError` for an error."""
        assert self._session is not None
        asked = {"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": params}
        async with self._session.post(self.url, json=asked) as response:
            answer = await response.json()
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    async def place(self, contract: str, address: str) -> None:
        """Put a contract's runtime code at an address."""
        await self.rpc("anvil_setCode", address, compiled(contract)["runtime"])

    async def send(self, to: str, data: bytes, *, sender: str = "0x" + "ee" * 20) -> dict[str, Any]:
        """The receipt of a transaction by anybody; mines a block for it."""
        await self.fund_native(sender)
        await self.rpc("anvil_impersonateAccount", sender)
        call = {"from": sender, "to": to, "data": "0x" + data.hex(), "gas": hex(3_000_000)}
        return await self.mined(await self.rpc("eth_sendTransaction", call))

    async def mined(self, transaction: str) -> dict[str, Any]:
        """Its receipt, once there is one; mines where nothing is mined by itself."""
        if not await self.rpc("anvil_getAutomine"):
            await self.mine()
        while True:
            receipt: dict[str, Any] | None = await self.rpc("eth_getTransactionReceipt", transaction)
            if receipt is not None:
                return receipt
            await asyncio.sleep(0.001)

    async def pending(self, transactions: int) -> None:
        """Wait until so many wait for a block."""
        while True:
            if int((await self.rpc("txpool_status"))["pending"], 16) >= transactions:
                return
            await asyncio.sleep(0.01)

    async def mint(self, address: str, amount_atomic: int, token: str = USDC.address) -> None:
        await self.send(token, _call("mint(address,uint256)", address, amount_atomic))

    async def balance(self, address: str, token: str = USDC.address) -> int:
        data = "0x" + _call("balanceOf(address)", address).hex()
        return int(await self.rpc("eth_call", {"to": token, "data": data}, "latest"), 16)

    async def fund_native(self, address: str, wei: int = RICH_WEI) -> None:
        await self.rpc("anvil_setBalance", address, hex(wei))

    async def mine(self, blocks: int = 1) -> None:
        await self.rpc("anvil_mine", hex(blocks))

    async def automine(self, is_on: bool) -> None:
        await self.rpc("evm_setAutomine", is_on)

    async def snapshot(self) -> str:
        return str(await self.rpc("evm_snapshot"))

    async def revert(self, snapshot: str) -> None:
        await self.rpc("evm_revert", snapshot)

    async def pass_time(self, seconds: int) -> None:
        """Mine a block that is `seconds` later."""
        await self.rpc("evm_increaseTime", seconds)
        await self.mine()

    async def now_s(self) -> int:
        """The newest block's timestamp."""
        return int((await self.rpc("eth_getBlockByNumber", "latest", False))["timestamp"], 16)

    async def transfers(self, pay_to: str, token: str = USDC.address) -> list[Moved]:
        """Everything that was moved to an address, oldest first."""
        topics = [TRANSFER, None, "0x" + pay_to[2:].lower().rjust(64, "0")]
        logs = await self.rpc("eth_getLogs", {"fromBlock": "0x0", "address": token, "topics": topics})
        return [
            Moved(
                log["transactionHash"],
                int(log["logIndex"], 16),
                "0x" + log["topics"][1][-40:],
                pay_to.lower(),
                int(log["data"], 16),
            )
            for log in logs
        ]

    async def _wait_until_up(self) -> None:
        async with asyncio.timeout(_START_S):
            while True:
                try:
                    await self.rpc("eth_chainId")
                except aiohttp.ClientConnectionError:
                    await asyncio.sleep(0.005)
                else:
                    return

    async def _stop(self) -> None:
        if self._session is not None:
            await self._session.close()
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


def program() -> Path:
    """The installed anvil; skips the test where there is none."""
    found = sorted(components_dir().glob("anvil/*/package/bin/anvil"))
    if not found:
        missing("anvil", "make components")
    return found[-1]


def compiled(contract: str) -> dict[str, str]:
    """The committed JSON of a contract."""
    read: dict[str, str] = json.loads((COMPILED / f"{contract}.json").read_text())
    return read


def rpc_of(anvil: Anvil) -> JsonRpc:
    """Our own client of it."""
    return JsonRpc([anvil.url])


def _call(signature: str, *values: str | int) -> bytes:
    words = (int(v, 16) if isinstance(v, str) else v for v in values)
    return keccak(signature.encode())[:4] + b"".join(word.to_bytes(32, "big") for word in words)


def _initialize(name: str, version: str) -> bytes:
    strings = [text.encode() for text in (name, version)]
    head = (64).to_bytes(32, "big") + (128).to_bytes(32, "big")
    tail = b"".join(len(s).to_bytes(32, "big") + s.ljust(32, b"\0") for s in strings)
    return keccak(b"initialize(string,string)")[:4] + head + tail


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port
