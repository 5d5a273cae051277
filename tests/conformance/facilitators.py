"""The facilitators that settle on anvil, each listening on a port of its own."""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from eth_account import Account

from obol.adapters.clock import SystemClock
from obol.adapters.signer_local import LocalSigner
from tests.cli.program import started
from tests.conformance import official_facilitator as official_program
from tests.evm.anvil import Anvil
from tests.evm.facilitating import GAS_KEY, evm_facilitator
from tests.facilitator.running import running

OFFICIAL_GAS_KEY = bytes([6] * 32)
PROGRAM_GAS_KEY = bytes([7] * 32)
START_S = 30.0


def address_of(key: bytes) -> str:
    """Of the account that a key signs for."""
    return str(Account.from_key(key).address)


@asynccontextmanager
async def our_facilitator(anvil: Anvil, folder: Path) -> AsyncIterator[str]:
    """The address of ours, in this process."""
    await anvil.fund_native(address_of(GAS_KEY))
    async with evm_facilitator(anvil.url, folder, SystemClock()) as facilitator, running(facilitator) as url:
        yield url


@asynccontextmanager
async def our_facilitator_program(anvil: Anvil, folder: Path) -> AsyncIterator[str]:
    """The address of `obol facilitator run`, the process that people start; it ends well when it is told to end."""
    await anvil.fund_native(address_of(PROGRAM_GAS_KEY))
    key_file = folder / "key"
    LocalSigner(PROGRAM_GAS_KEY).write_key_file(key_file)
    options = {"--rpc": anvil.url, "--key-file": key_file, "--listen": "127.0.0.1:0", "--data-dir": folder}
    words = [str(word) for option in options.items() for word in option]
    async with started("facilitator", "run", *words, "--json") as program:
        await program.read_summary()
        yield program.url
        program.terminate()
        ended = await program.ended()
        assert ended.code == 0, ended


@asynccontextmanager
async def official_facilitator(anvil: Anvil) -> AsyncIterator[str]:
    """The address of the official Python one, in a process of its own."""
    await anvil.fund_native(address_of(OFFICIAL_GAS_KEY))
    arguments = (str(Path(official_program.__file__)), anvil.url, "0x" + OFFICIAL_GAS_KEY.hex())
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=PIPE)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(START_S):
            line = await process.stdout.readline()
        yield json.loads(line)["address"]
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
