"""A chain to settle on: anvil with our token at the address of Base Sepolia's USDC, and money for who needs it."""

import http.client
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.machine import OTHERS_CORE
from bench.offer import NETWORK, USDC
from bench.programs import HOST, Program, free_port, running
from obol.adapters.evm_abi import call_data
from tests.components import components_dir

CONTRACTS = Path(__file__).parents[1] / "contracts" / "compiled"
TIMEOUT_S = 30.0
_ANYBODY = "0x" + "ee" * 20
_RICH_WEI = 10**24


def anvil_path() -> str | None:
    """The program, where `scripts/components` puts it."""
    found = sorted(components_dir().glob("anvil/*/package/bin/anvil"))
    return str(found[-1]) if found else None


@contextmanager
def anvil(folder: Path) -> Iterator[Program]:
    """A node with the token; a block for every transaction until `mine_every` says otherwise."""
    port = free_port()
    command = [anvil_path() or "anvil", "--host", HOST, "--port", str(port), "--chain-id", str(NETWORK.chain_id)]
    command.append("--silent")
    with running(command, port=port, core=OTHERS_CORE, log=folder / "anvil.log") as node:
        runtime = json.loads((CONTRACTS / "TestUSDC.json").read_text())["runtime"]
        ask(node, "anvil_setCode", USDC.address, runtime)
        send(node, USDC.address, call_data("initialize(string,string)", USDC.eip712_name, USDC.eip712_version))
        yield node


def mine_every(node: Program, seconds: int) -> None:
    """From now on a block comes when it is time, as on a real chain."""
    ask(node, "evm_setIntervalMining", seconds)


def ask(node: Program, method: str, *params: Any) -> Any:
    """The result of one call. Raises `RuntimeError` for the node's own error."""
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
    connection = http.client.HTTPConnection(HOST, node.port, timeout=TIMEOUT_S)
    try:
        connection.request("POST", "/", body, {"Content-Type": "application/json"})
        answer = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    if "error" in answer:
        raise RuntimeError(f"{method}: {answer['error']}")
    return answer["result"]


def send(node: Program, to: str, data: bytes) -> None:
    """A transaction by anybody; there must be no fixed time between blocks yet."""
    give_gas(node, _ANYBODY)
    ask(node, "anvil_impersonateAccount", _ANYBODY)
    call = {"from": _ANYBODY, "to": to, "data": "0x" + data.hex(), "gas": hex(3_000_000)}
    gas_used(node, ask(node, "eth_sendTransaction", call))


def give_gas(node: Program, address: str) -> None:
    """Plenty of native money."""
    ask(node, "anvil_setBalance", address, hex(_RICH_WEI))


def mint(node: Program, address: str, amount_atomic: int) -> None:
    """Tokens from nowhere."""
    send(node, USDC.address, call_data("mint(address,uint256)", address, amount_atomic))


def gas_used(node: Program, transaction: str) -> int:
    """Gas of a transaction, once it is mined. Raises `RuntimeError` when it reverted, or takes too long."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline_s:
        receipt = ask(node, "eth_getTransactionReceipt", transaction)
        if receipt is None:
            time.sleep(0.01)
        elif receipt["status"] == "0x1":
            return int(receipt["gasUsed"], 16)
        else:
            break
    raise RuntimeError(f"the transaction {transaction} did not succeed")
