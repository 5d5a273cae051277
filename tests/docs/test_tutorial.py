"""The tutorial, as a reader does it: each terminal a shell, each block typed into it."""

import asyncio
import os
import re
import signal
import socket
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from pathlib import Path

import pytest

from tests.docs.pages import Block, blocks, read
from tests.fakes.model_server import FakeModelServer

PAGE = "tutorial/sell-and-buy.md"
STAYS = re.compile(r"(\w+), runs until Ctrl-C: (\d+)")
PORTS = ("8000", "8402", "8404")
_ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith(("OBOL_", "X402_"))}


class Terminal:
    """A shell of its own; Ctrl-C reaches what runs in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = ""
        self._process: Process | None = None
        self._typed = 0

    async def run(self, text: str) -> str:
        """Type commands and wait for their end; what they printed. Fails when one of them does."""
        self._typed += 1
        end = f"<end of block {self._typed}>"
        await self._type(f"set -e\n{text}\nset +e\necho; echo '{end}'\n")
        return await self._read_until(end)

    async def start(self, text: str, port: int) -> None:
        """Type a command that stays, and wait until it listens."""
        await self._type(text + "\n")
        async with asyncio.timeout(30):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.05)
                else:
                    writer.close()
                    return

    async def ctrl_c(self, port: int) -> None:
        """End what stays, and wait until it is gone."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGINT)
        async with asyncio.timeout(30):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    return
                writer.close()
                await asyncio.sleep(0.05)

    async def close(self) -> None:
        if self._process is not None and self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.communicate()

    async def _type(self, text: str) -> None:
        if self._process is None:
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            self._process = await asyncio.create_subprocess_exec(
                *("bash", "-c", "trap : INT; while IFS= read -r -d $'\\x01' block; do eval \"$block\"; done"),
                cwd=self._folder,
                env=_ENVIRON | {"PATH": path},
                stdin=PIPE,
                stdout=PIPE,
                stderr=STDOUT,
                start_new_session=True,
            )
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode() + b"\x01")
        await self._process.stdin.drain()

    async def _read_until(self, end: str) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        before = len(self._log)
        while end not in self._log[before:]:
            line = await self._process.stdout.readline()
            assert line, f"a command failed:\n{self._log[before:]}"
            self._log += line.decode()
        return self._log[before:]


class Reader:
    """Does what the page says."""

    def __init__(self, folder: Path, ports: dict[str, int]) -> None:
        self._folder = folder
        self._ports = ports
        self._terminals: dict[str, Terminal] = {}
        self._entered = ""
        self._running: dict[str, str] = {}
        self.seen: list[str] = []

    async def do(self, found: Block) -> None:
        text = found.text
        for port, free in self._ports.items():
            text = text.replace(port, str(free))
        stays = STAYS.fullmatch(found.marker)
        if found.marker == "both terminals":
            self._entered = text
        elif found.marker.startswith("file: "):
            (self._folder / "obol-tutorial" / found.marker.removeprefix("file: ")).write_text(text)
        elif stays:
            await self._stay(stays[1], text, stays[2])
        else:
            self.seen.append(await (await self._terminal(found.marker)).run(text))

    async def close(self) -> None:
        for terminal in self._terminals.values():
            await terminal.close()

    async def _terminal(self, name: str) -> Terminal:
        if name not in self._terminals:
            self._terminals[name] = Terminal(self._folder)
            await self._terminals[name].run(self._entered)
        return self._terminals[name]

    async def _stay(self, name: str, text: str, port: str) -> None:
        terminal = await self._terminal(name)
        if self._running.pop(name, ""):
            await terminal.ctrl_c(self._ports[port])
        await terminal.start(text, self._ports[port])
        self._running[name] = port


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.timeout(180)
async def test_the_tutorial_works_as_written(tmp_path: Path) -> None:
    async with FakeModelServer() as upstream:
        ports = {"8000": upstream.port, "8402": free_port(), "8404": free_port()}
        reader = Reader(tmp_path, ports)
        try:
            for found in blocks(read(PAGE)):
                await reader.do(found)
        finally:
            await reader.close()
        assert len(upstream.calls) == 3
    told = "".join(reader.seen)
    assert '"amount": "0.001"' in told
    assert "paid 0.001 USDC on base-sepolia" in told
    assert told.count("spent 0.001 of it, left 0.099") == 2
    assert told.count("settled 1000 atomic units, transaction 0x") == 2
    assert '"balance": "0.998"' in told
    assert '"served": 2' in told


def test_every_block_of_the_tutorial_is_run() -> None:
    terminals = {"both terminals", "seller", "buyer"}
    for found in blocks(read(PAGE)):
        assert found.marker in terminals or found.marker.startswith("file: ") or STAYS.fullmatch(found.marker), found
    assert all(port in read(PAGE) for port in PORTS)
