"""A whole shop for tests: a model server, a seller's gateway before it, a devnet to settle on, and a buyer with money.

    async with Shop(tmp_path, max_inflight=1) as shop:
        shop.upstream.behaviour = Behaviour(tokens=3)
        answer = await shop.pay(chat())
        assert answer.status == 200
        assert (await shop.receipt(answer))["state"] == "settled"
        again = await shop.post(answer.payment, chat())
        assert (again.status, again.reason) == (409, "payment_used")

Everything is real and on real ports. `facilitator=True` puts a `FakeFacilitator` (over the same devnet) between gateway
and money, so that it can be slow or lie; `wrap_ledger` and `retry_schedule_s` assemble the gateway from its pieces;
`process=True` runs it as `obol sell inference`, which `kill` kills.
"""

import asyncio
import secrets
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec
import structlog
from multidict import CIMultiDict

from obol import Gateway, GatewayConfig, LocalSigner
from obol.adapters.chain_devnet import DevnetChain, Transfer
from obol.adapters.clock import SystemClock
from obol.adapters.facilitator_devnet import DevnetFacilitator
from obol.adapters.paths import devnet_file, ledger_file
from obol.core.clock import Clock
from obol.core.ledger import Ledger
from obol.core.offer import SettlementPolicy
from obol.core.payment import FINAL, State
from obol.x402.authorization import parse_authorization, parse_signature
from obol.x402.client import payment_headers, sign_exact
from obol.x402.exact import build_requirements
from obol.x402.facilitator import SettleOutcome
from obol.x402.models import PaymentPayload, PaymentRequirements
from tests.fakes.facilitator import FakeFacilitator
from tests.fakes.model_server import FakeModelServer
from tests.gateway.answer import (
    CHAT,
    FUNDS_ATOMIC,
    MODEL,
    PATIENCE_S,
    PRICE,
    PRICE_ATOMIC,
    PROMPT,
    SELLER,
    USDC,
    Answer,
    Json,
    chat,
    eventually,
)
from tests.gateway.assembled import AssembledGateway
from tests.gateway.process import SellProcess

__all__ = [
    "CHAT",
    "FUNDS_ATOMIC",
    "MODEL",
    "PATIENCE_S",
    "PRICE",
    "PRICE_ATOMIC",
    "PROMPT",
    "SELLER",
    "USDC",
    "Answer",
    "Json",
    "Shop",
    "chat",
    "eventually",
    "read_ledger",
]

AnyGateway = Gateway | AssembledGateway | SellProcess


class Shop:
    """Async context manager; every keyword that is not named here is a field of `GatewayConfig`.

    upstream     the `FakeModelServer` that sells the model "tiny"
    facilitator  the `FakeFacilitator`, or None when the gateway embeds the devnet
    chain        the `DevnetChain` where the money is
    signer       the buyer's key; its account holds `FUNDS_ATOMIC`
    gateway      the running gateway; `url` is where it listens
    logged       the gateway's log, one dict per line
    """

    def __init__(
        self,
        folder: Path,
        *,
        facilitator: bool = False,
        process: bool = False,
        clock: Clock | None = None,
        wrap_ledger: Callable[[Ledger], Ledger] | None = None,
        retry_schedule_s: tuple[float, ...] | None = None,
        upstream: FakeModelServer | None = None,
        signer: LocalSigner | None = None,
        **config: Any,
    ) -> None:
        self.folder = folder
        self.clock: Clock = clock or SystemClock()
        self.upstream = upstream or FakeModelServer(models=(MODEL,))
        self.signer = signer or LocalSigner.generate()
        self.logged: list[Json] = []
        self._owns_upstream = upstream is None
        self._has_facilitator = facilitator
        self._facilitator: FakeFacilitator | None = None
        self._is_process = process
        self._wrap_ledger = wrap_ledger
        self._retry_schedule_s = retry_schedule_s
        self._changes = config
        self._stack = AsyncExitStack()
        self._gateway: AnyGateway | None = None
        self._session: aiohttp.ClientSession | None = None
        self._chain: DevnetChain | None = None

    async def __aenter__(self) -> Self:
        try:
            if self._owns_upstream:
                await self._stack.enter_async_context(self.upstream)
            self._chain = await DevnetChain.open(devnet_file(self.folder), self.clock)
            self._stack.push_async_callback(self._chain.close)
            if self._has_facilitator:
                fake = FakeFacilitator(DevnetFacilitator(self._chain))
                self._facilitator = await self._stack.enter_async_context(fake)
            await self.fund(self.signer)
            self._stack.push_async_callback(self.stop)
            await self.start()
            connector = aiohttp.TCPConnector(limit=0)
            session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=2 * PATIENCE_S))
            self._session = await self._stack.enter_async_context(session)
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._facilitator is not None:
            self._facilitator.release.set()
        await self._stack.aclose()

    # ------------------------------------------------------------------------------------------------- the seller

    @property
    def chain(self) -> DevnetChain:
        assert self._chain is not None
        return self._chain

    @property
    def facilitator(self) -> FakeFacilitator:
        assert self._facilitator is not None, "Shop(facilitator=True)"
        return self._facilitator

    @property
    def gateway(self) -> AnyGateway:
        assert self._gateway is not None
        return self._gateway

    @property
    def url(self) -> str:
        return self.gateway.url

    @property
    def config(self) -> GatewayConfig:
        """What the gateway is started with."""
        defaults = GatewayConfig(
            upstream_url=self.upstream.url,
            pay_to=SELLER,
            price=PRICE,
            listen="127.0.0.1:0",
            data_dir=self.folder,
            drain_timeout_s=5.0,
        )
        if self._facilitator is not None:
            defaults = replace(defaults, facilitator_url=self._facilitator.url, verify_timeout_s=2.0)
        else:
            defaults = replace(defaults, devnet=True)
        config = replace(defaults, **self._changes)
        if config.settlement is SettlementPolicy.AFTER and config.max_unsettled is None:
            return replace(config, max_unsettled="10")
        return config

    async def start(self, **changes: Any) -> None:
        """Start the gateway; `changes` of the config stay."""
        self._changes |= changes
        self._gateway = self._make()
        await self._gateway.start_async()

    async def stop(self) -> None:
        """Drain and stop the gateway. Idempotent."""
        if self._gateway is not None:
            await self._gateway.stop_async()

    async def kill(self) -> None:
        """`kill -9`, of a gateway that is a process of its own."""
        assert isinstance(self._gateway, SellProcess), "Shop(process=True)"
        await self._gateway.kill()

    @property
    def ledger_file(self) -> Path:
        """Where the gateway's ledger is."""
        return ledger_file(self.folder, devnet=self.config.devnet)

    async def restart(self, **changes: Any) -> None:
        """Stop the gateway, and start another one on the same files."""
        await self.stop()
        await self.start(**changes)

    def _make(self) -> AnyGateway:
        if self._is_process:
            return SellProcess(self.config, models=self.upstream.models)
        if self._wrap_ledger is None and self._retry_schedule_s is None:
            return Gateway(self.config, log=self.log, clock=self.clock)
        return AssembledGateway(
            self.config,
            models=self.upstream.models,
            log=self.log,
            clock=self.clock,
            wrap_ledger=self._wrap_ledger or (lambda ledger: ledger),
            retry_schedule_s=self._retry_schedule_s or (0.01,),
        )

    @property
    def log(self) -> structlog.typing.FilteringBoundLogger:
        """A logger that writes to `logged`, tracebacks as text."""
        logger: structlog.typing.FilteringBoundLogger = structlog.wrap_logger(
            None,
            processors=[structlog.processors.add_log_level, structlog.processors.format_exc_info, self._note],
            wrapper_class=structlog.make_filtering_bound_logger("debug"),
        )
        return logger

    def _note(self, _logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        self.logged.append(dict(event))
        raise structlog.DropEvent

    # -------------------------------------------------------------------------------------------------- the buyer

    @property
    def requirements(self) -> PaymentRequirements:
        """What the running gateway asks for."""
        return build_requirements(self.gateway.offer)

    async def fund(self, signer: LocalSigner, amount_atomic: int = FUNDS_ATOMIC) -> None:
        """Give an account play money."""
        await self.chain.fund(USDC, signer.address, amount_atomic)

    async def move_funds_away(self) -> None:
        """The buyer sends all its money to somebody else."""
        amount_atomic = await self.chain.balance(USDC, self.signer.address)
        elsewhere = msgspec.structs.replace(self.requirements, amount=str(amount_atomic), pay_to="0x" + "99" * 20)
        payload = self.sign(requirements=elsewhere).payload
        moved = await self.chain.settle(parse_authorization(payload), parse_signature(payload), USDC)
        assert moved.outcome is SettleOutcome.SETTLED, moved

    def sign(
        self,
        *,
        signer: LocalSigner | None = None,
        requirements: PaymentRequirements | None = None,
        now_s: float | None = None,
        version: int = 2,
    ) -> PaymentPayload:
        """A payment with a nonce of its own, signed by the buyer (or another signer) at `now_s`."""
        return sign_exact(
            signer or self.signer,
            requirements or self.requirements,
            USDC,
            now_s=self.clock.now_s() if now_s is None else now_s,
            nonce=secrets.token_bytes(32),
            version=version,
        )

    def payment(self, *, version: int = 2, **how: Any) -> dict[str, str]:
        """The headers that carry a new payment; `how` as in `sign`."""
        return payment_headers(self.sign(version=version, **how), version)

    async def pay(self, body: Json | None = None, *, path: str = CHAT, version: int = 2, **how: Any) -> Answer:
        """Buy one answer; `how` as in `sign`. `answer.payment` are the headers, to be presented again."""
        return await self.post(self.payment(version=version, **how), body, path=path)

    async def post(
        self, headers: Mapping[str, str] | None = None, body: Json | bytes | None = None, *, path: str = CHAT
    ) -> Answer:
        """Send a request and read the whole answer. Raises what aiohttp raises for one that breaks off."""
        async with self.open(headers, body, path=path) as response:
            return Answer(response.status, response.headers, await response.read(), dict(headers or {}))

    async def again(self, headers: Mapping[str, str], body: Json | bytes | None = None, *, path: str = CHAT) -> Answer:
        """Present a payment again, once what it did before is recorded: that may be a moment after its answer."""
        await self.until_finished()
        return await self.post(headers, body, path=path)

    @asynccontextmanager
    async def open(
        self, headers: Mapping[str, str] | None = None, body: Json | bytes | None = None, *, path: str = CHAT
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request; the answer's body is the caller's to read. Leaving early hangs up."""
        sent = body if isinstance(body, bytes) else msgspec.json.encode(chat() if body is None else body)
        fields = CIMultiDict({"Content-Type": "application/json"})
        fields.update(headers or {})
        async with self.session.post(self.url + path, data=sent, headers=fields) as response:
            try:
                yield response
            finally:
                if not response.content.is_eof():
                    response.close()

    async def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        """A GET, such as of "/status"."""
        async with self.session.get(self.url + path, headers=headers) as response:
            return Answer(response.status, response.headers, await response.read())

    @property
    def session(self) -> aiohttp.ClientSession:
        assert self._session is not None
        return self._session

    # ------------------------------------------------------------------------------------------- what came of it

    async def receipt(self, sale: Answer | str) -> Json:
        """The receipt of an answer or of a sale id, as the gateway shows it."""
        answer = await self.get("/receipts/" + (sale if isinstance(sale, str) else sale.sale_id))
        assert answer.status == 200, answer
        receipt: Json = answer.json
        return receipt

    async def receipt_in(self, state: str, sale: Answer | str, *, delivery: str | None = None) -> Json:
        """The receipt once it says `state` (and `delivery`): what follows an answer is recorded in the background."""
        receipt: Json = {}
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    receipt = await self.receipt(sale)
                    if receipt["state"] == state and delivery in (None, receipt["delivery"]):
                        return receipt
                    await asyncio.sleep(0.005)
        except TimeoutError:
            raise AssertionError(f"never {state} {delivery or ''}: {receipt}") from None

    async def ledger_rows(self) -> list[Json]:
        """Every row of the ledger file, oldest first."""
        return await asyncio.to_thread(partial(read_ledger, self.ledger_file))

    async def states(self) -> list[str]:
        """The states of all sales, oldest first."""
        return [row["state"] for row in await self.ledger_rows()]

    async def until_states(self, *states: str) -> None:
        """Wait until the sales in the ledger are in these states, oldest first."""
        found: list[str] = []
        try:
            async with asyncio.timeout(PATIENCE_S):
                while found != list(states):
                    found = await self.states()
                    await asyncio.sleep(0.005)
        except TimeoutError:
            raise AssertionError(f"the sales are {found}, not {list(states)}") from None

    async def until_finished(self) -> None:
        """Wait until every sale is in a final state, or owed."""
        unfinished = {"?"}
        try:
            async with asyncio.timeout(2 * PATIENCE_S):
                while unfinished:
                    unfinished = set(await self.states()) - FINAL - {State.OWED}
                    await asyncio.sleep(0.005)
        except TimeoutError:
            raise AssertionError(f"some sales are still {sorted(unfinished)}") from None

    async def until_status(self, **fields: int) -> None:
        """Wait until `/status` says these, such as `queued=1` or `inFlight=0`."""
        status: Json = {}
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not status or any(status[name] != value for name, value in fields.items()):
                    status = (await self.get("/status")).json
        except TimeoutError:
            raise AssertionError(f"the status is not {fields}: {status}") from None

    async def transfers(self) -> list[Transfer]:
        """All money that moved to the seller."""
        return await self.chain.transfers(USDC, payee=SELLER)

    async def earned_atomic(self) -> int:
        """What the seller has."""
        return await self.chain.balance(USDC, SELLER)


def read_ledger(file: Path) -> list[Json]:
    """The rows of a ledger, oldest first. Blocks."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as db:
        db.row_factory = sqlite3.Row
        return [dict(row) for row in db.execute("SELECT * FROM sale ORDER BY created_s, rowid")]
