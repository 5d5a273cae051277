"""A gateway put together from its pieces, where a test must reach in: a failing ledger, an impatient settler."""

import secrets
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

import structlog
from aiohttp import web

from obol import GatewayConfig
from obol.adapters.ledger_sqlite import SqliteLedger
from obol.adapters.metrics import Metrics
from obol.adapters.paths import ledger_file
from obol.adapters.upstream_http import HttpUpstream
from obol.core.clock import Clock
from obol.core.ledger import Ledger
from obol.core.offer import Offer
from obol.gateway.app import App
from obol.gateway.facilitators import open_facilitator
from obol.gateway.http_server import HttpServer
from obol.gateway.live_offer import LiveOffer
from obol.gateway.ports import Ports
from obol.gateway.settings import checked, offer_of
from obol.gateway.settling import Settler
from obol.gateway.till import Till
from obol.inference.upstream import Upstream


class AssembledGateway:
    """What `Gateway` does, without the probing and watching of the upstream."""

    def __init__(
        self,
        config: GatewayConfig,
        *,
        models: tuple[str, ...],
        log: structlog.typing.FilteringBoundLogger,
        clock: Clock,
        wrap_ledger: Callable[[Ledger], Ledger],
        retry_schedule_s: Sequence[float],
    ) -> None:
        self.config = checked(config)
        self.offer: Offer = offer_of(self.config, models)
        self.url = ""
        self._log = log
        self._clock = clock
        self._wrap_ledger = wrap_ledger
        self._retry_schedule_s = retry_schedule_s
        self._stack = AsyncExitStack()

    async def start_async(self) -> None:
        assert self.config.data_dir is not None
        ledger = await SqliteLedger.open(ledger_file(self.config.data_dir, devnet=self.config.devnet), self._clock)
        self._stack.push_async_callback(ledger.close)
        facilitator = await open_facilitator(self.config, self.offer, clock=self._clock, log=self._log, warnings=[])
        self._stack.push_async_callback(facilitator.close)
        ports = Ports(
            self._wrap_ledger(ledger),
            facilitator,
            self._clock,
            secrets.token_bytes,
            Metrics(),
            self._log,
            self.config.catalogue,
        )
        await self._serve(ports)

    async def stop_async(self) -> None:
        await self._stack.aclose()

    def _open_upstream(self) -> Upstream:
        return HttpUpstream(self.config.upstream_url)

    async def _serve(self, ports: Ports) -> None:
        settler = Settler(ports, self._retry_schedule_s)
        self._stack.push_async_callback(settler.drain, self.config.drain_timeout_s)
        await settler.recover(self.offer.asset.network.caip2)
        upstream = self._open_upstream()
        self._stack.push_async_callback(upstream.close)
        live = LiveOffer(self.offer, upstream=upstream, clock=self._clock)
        live.is_upstream_up = True
        app = App(Till(live, ports, settler))
        runner = web.ServerRunner(
            HttpServer(app.handle, log=self._log, entropy=secrets.token_bytes),
            handle_signals=False,
            shutdown_timeout=1.0,
        )
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = "http://{}:{}".format(*runner.addresses[0][:2])
        self._stack.push_async_callback(app.drain, self.config.drain_timeout_s)
