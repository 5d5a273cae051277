"""A gateway in a process of its own, started as a seller starts it, so that it can be killed."""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process

from obol import GatewayConfig
from obol.core.offer import Offer
from obol.gateway.settings import offer_of

START_S = 20.0


class SellProcess:
    """`obol sell inference` with the settings of a config that crash tests use; `kill` is `kill -9`."""

    def __init__(self, config: GatewayConfig, *, models: tuple[str, ...]) -> None:
        self.offer: Offer = offer_of(config, models)
        self.url = ""
        self._config = config
        self._process: Process | None = None

    async def start_async(self) -> None:
        self._process = await asyncio.create_subprocess_exec(*self._command(), stdout=PIPE, stderr=None)
        assert self._process.stdout is not None
        printed = b""
        async with asyncio.timeout(START_S):
            while True:
                line = await self._process.stdout.readline()
                assert line, f"the gateway ended before it listened: {printed!r}"
                printed += line
                try:
                    self.url = str(json.loads(printed)["address"])
                except ValueError:
                    continue
                return

    async def stop_async(self) -> None:
        """SIGTERM, and wait for the drain."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            assert await self._process.wait() == 0

    async def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        await self._process.wait()

    def _command(self) -> list[str]:
        config = self._config
        where = ["--devnet"] if config.devnet else ["--facilitator", config.facilitator_url]
        options = {
            "--upstream": config.upstream_url,
            "--pay-to": config.pay_to,
            "--price": config.price,
            "--listen": config.listen,
            "--data-dir": str(config.data_dir),
            "--settlement": config.settlement.value,
            "--drain-timeout": str(config.drain_timeout_s),
        }
        if config.max_unsettled is not None:
            options["--max-unsettled"] = config.max_unsettled
        flags = [word for pair in options.items() for word in pair]
        return [sys.executable, "-m", "obol", "sell", "inference", config.name, *flags, *where, "--json"]
