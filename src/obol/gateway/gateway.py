"""Gateway: the seller's whole program, from a config to a listening server and back."""

import asyncio
import threading
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from types import TracebackType
from typing import Any, Self

import structlog
from aiohttp import web

from obol.adapters.clock import SystemClock
from obol.adapters.entropy import Entropy
from obol.adapters.event_loop import run
from obol.adapters.facilitator_witnessed import WitnessedFacilitator
from obol.adapters.listening import why_not
from obol.adapters.logs import make_logger
from obol.adapters.metrics import Metrics
from obol.adapters.server_probe import ProbedServer, ServerProbe
from obol.adapters.upstream_http import HttpUpstream
from obol.core.clock import Clock
from obol.core.offer import Offer
from obol.errors import SettingsError
from obol.gateway.app import App
from obol.gateway.facilitators import challenge_extensions, open_facilitator
from obol.gateway.http_server import Handler, HttpServer
from obol.gateway.ledgers import open_ledger
from obol.gateway.live_offer import LiveOffer
from obol.gateway.ports import Ports
from obol.gateway.settings import GatewayConfig, checked, ledger_name, offer_of, split_address
from obol.gateway.settling import Settler
from obol.gateway.till import Patience, Till
from obol.gateway.watch import adopt_from_the_dead, watch_upstream


class Gateway:
    """An x402-paid reverse proxy in front of one inference server.

    In an event loop: `await start_async()`, which returns when the gateway listens, and `await stop_async()`, or
    `async with`. Elsewhere: `start()`, which blocks until `stop()` is called from another thread or Ctrl-C.

    Raises at start: `SettingsError` naming the flag, `UpstreamUnavailableError`, `LedgerUnavailableError`.
    """

    def __init__(
        self,
        config: GatewayConfig,
        *,
        log: structlog.typing.FilteringBoundLogger | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.config = checked(config)
        self._log = log or make_logger(as_json=True)
        self._clock = clock or SystemClock()
        self._stack = AsyncExitStack()
        self._live: LiveOffer | None = None
        self._runners: list[web.ServerRunner] = []
        self._stopping: Callable[[], None] | None = None
        self._lock = threading.Lock()
        self.warnings: list[str] = []
        """What the seller should know although the gateway started."""

    async def start_async(self) -> None:
        """Check the upstream, open the ledger, go on with unfinished sales, listen."""
        try:
            await self._start()
        except BaseException:
            await self.stop_async()
            raise

    async def stop_async(self) -> None:
        """Refuse new sales, wait for those in flight and their settlements, then let go. Idempotent."""
        await self._stack.aclose()
        self._live = None
        self._runners.clear()

    def start(self) -> None:
        """Serve until `stop()` or Ctrl-C. Blocks."""
        run(self._serve_until_stopped())

    def stop(self) -> None:
        """Make a blocking `start()` in another thread drain and return. Does nothing when it is not running."""
        with self._lock:
            if self._stopping is not None:
                self._stopping()

    async def __aenter__(self) -> Self:
        await self.start_async()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop_async()

    @property
    def offer(self) -> Offer:
        """What is sold. Raises `RuntimeError` while it is not started."""
        return self._started().offer

    @property
    def url(self) -> str:
        """Where this machine reaches the gateway. Raises `RuntimeError` while it is not started."""
        self._started()
        return _url(self._runners[0])

    @property
    def admin_url(self) -> str | None:
        """Where `/status` and `/metrics` are, when they have an address of their own."""
        return _url(self._runners[1]) if len(self._runners) > 1 else None

    def _started(self) -> LiveOffer:
        if self._live is None or not self._runners:
            raise RuntimeError("the gateway is not started")
        return self._live

    async def _serve_until_stopped(self) -> None:
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()

        def stopping() -> None:
            loop.call_soon_threadsafe(stopped.set)

        with self._lock:
            self._stopping = stopping
        try:
            async with self:
                await stopped.wait()
        finally:
            with self._lock:
                self._stopping = None

    async def _start(self) -> None:
        config, stack = self.config, self._stack
        probe = ServerProbe(config.upstream_url, auth=config.upstream_authorization, timeout_s=5.0)
        stack.push_async_callback(probe.close)
        server = await probe.probe()
        offer = offer_of(config, tuple(model.id for model in server.models))
        if not offer.models:
            raise SettingsError("--upstream", "lists no models: load one first")
        ports = await self._open_ports(offer)
        live = await self._open_offer(offer, probe, server, await challenge_extensions(ports.facilitator, offer))
        admission = live.gate.admission
        ports.metrics.watch(offer, lambda: admission.in_flight, lambda: admission.queued)
        settler = Settler(ports)
        stack.push_async_callback(settler.drain, config.drain_timeout_s)
        recovered = await settler.recover(offer.asset.network.caip2)
        if recovered:
            self.warnings.append(f"{recovered} unfinished sales of an earlier run are being finished")
        till = Till(live, ports, settler, Patience(config.body_timeout_s, config.reader_timeout_s))
        has_admin = config.admin_listen is not None
        app = App(till, public_url=config.public_url, has_admin=has_admin, ledger=ledger_name(config))
        await self._listen(app)
        self._live = live
        loop = asyncio.get_running_loop()
        adopting = adopt_from_the_dead(settler, offer.asset.network.caip2, ports.log)
        for watch in (watch_upstream(live, probe.probe), adopting):
            watching = loop.create_task(watch)
            watching.add_done_callback(self._report)
            stack.callback(watching.cancel)
        stack.push_async_callback(app.drain, config.drain_timeout_s)

    def _report(self, watching: asyncio.Task[None]) -> None:
        """A background loop's edge: it never ends by itself, and a bug that ends it must not vanish."""
        if not watching.cancelled() and (error := watching.exception()) is not None:
            self._log.error("watch_failed", error=type(error).__name__, exc_info=error)

    async def _open_ports(self, offer: Offer) -> Ports:
        config = self.config
        ledger = await open_ledger(config, self._clock)
        self._stack.push_async_callback(ledger.close)
        facilitator = await open_facilitator(config, offer, clock=self._clock, log=self._log, warnings=self.warnings)
        self._stack.push_async_callback(facilitator.close)
        metrics = Metrics()
        if isinstance(facilitator, WitnessedFacilitator):
            chain = facilitator
            metrics.watch_chain(offer.asset.network.caip2, lambda: chain.is_chain_up, lambda: chain.unseen)
        return Ports(ledger, facilitator, self._clock, Entropy(), metrics, self._log, config.catalogue)

    async def _open_offer(
        self, offer: Offer, probe: ServerProbe, server: ProbedServer, extensions: Mapping[str, Any]
    ) -> LiveOffer:
        config = self.config
        upstream = HttpUpstream(
            config.upstream_url,
            connect_timeout_s=config.upstream_connect_timeout_s,
            first_byte_timeout_s=config.upstream_first_byte_timeout_s,
            idle_timeout_s=config.upstream_idle_timeout_s,
            authorization=config.upstream_authorization,
        )
        self._stack.push_async_callback(upstream.close)
        live = LiveOffer(
            offer,
            upstream=upstream,
            clock=self._clock,
            count_input_tokens=partial(probe.count_input_tokens, server.server_type),
            extensions=extensions,
        )
        live.is_upstream_up = True
        return live

    async def _listen(self, app: App) -> None:
        await self._bind(app.handle, self.config.listen, "--listen")
        if self.config.admin_listen is not None:
            await self._bind(app.handle_admin, self.config.admin_listen, "--admin-listen")

    async def _bind(self, handler: Handler, address: str, field: str) -> None:
        host, port = split_address(address, field)
        server = HttpServer(handler, log=self._log, entropy=Entropy())
        runner = web.ServerRunner(server, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        try:
            await web.TCPSite(runner, host, port, backlog=1024).start()
        except OSError as error:
            raise SettingsError(field, f"cannot listen on {address!r}: {why_not(error)}") from error
        self._runners.append(runner)


def _url(runner: web.ServerRunner) -> str:
    host, port = runner.addresses[0][:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}.get(host, host)  # noqa: S104 - all interfaces: this one too
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
