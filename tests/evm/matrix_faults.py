"""What counterparts of a seller can do wrong while it lives: facilitators and RPC endpoints that fail, stall and lie.

Each fault makes a `Rig`: where the seller finds its counterparts, and how the fault is switched on and off.
"""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
from aiohttp import web

from obol.adapters.clock import SystemClock
from obol.adapters.evm_signing import LocalTransactionSigner
from obol.adapters.logs import make_logger
from obol.core.offer import SettlementPolicy
from obol.facilitator.app import build_app
from obol.x402.facilitator import Facilitator
from obol.x402.models import SettleResponse
from tests.evm.anvil import Anvil
from tests.evm.facilitating import evm_facilitator
from tests.evm.matrix import Terms
from tests.fakes.facilitator import (
    BadGateway,
    Drop,
    FakeFacilitator,
    Garbage,
    Lie,
    Ok,
    Pending,
    RefuseSettle,
    SettleThenHang,
)
from tests.fakes.facilitator import Behaviour as Misbehaviour
from tests.fakes.rpc import Behaviour as RpcMisbehaviour
from tests.fakes.rpc import Drops, Errors, Fails, FakeRpc, Says, Stalls

FOREIGN = "0x" + "f0" * 32
_Switch = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Rig:
    """The counterparts of one seller. `arm` and `lift` switch the fault; `is_met` once the seller has run into it."""

    facilitator_url: str
    rpc_url: str
    arm: _Switch
    lift: _Switch
    is_met: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Scene:
    """What a rig is built in: a chain, an honest facilitator on it and its address, an empty folder."""

    anvil: Anvil
    facilitator: Facilitator
    facilitator_url: str
    folder: Path


Telling = Callable[[web.Request, SettleResponse], web.StreamResponse]
"""The money has moved, and this is what is said of it."""


class UnreliableFacilitator(FakeFacilitator):
    """Honest, but for the next settlements: `script`, taken from the front."""

    def __init__(self, inner: Facilitator) -> None:
        super().__init__(inner)
        self.script: list[Misbehaviour | Telling] = []
        self.leaves_after_verifying = False

    async def _verify(self, request: web.Request) -> web.StreamResponse:
        self.behaviour = Ok()
        response = await super()._verify(request)
        if self.leaves_after_verifying and self._runner is not None:
            response.force_close()
            for site in list(self._runner.sites):
                await site.stop()
        return response

    async def _settle(self, request: web.Request) -> web.StreamResponse:
        step = self.script.pop(0) if self.script else Ok()
        if not callable(step):
            self.behaviour = step
            return await super()._settle(request)
        asked = await self._read(request)
        self.settle_asked.append(asked)
        return step(request, await self._move(asked))


@dataclass(frozen=True, slots=True)
class FacilitatorFault:
    """The facilitator does `script`, one for each time that it is asked to settle; then it is honest."""

    name: str
    script: Sequence[Misbehaviour | Telling]
    is_refused: bool = False

    @asynccontextmanager
    async def rig(self, scene: Scene, terms: Terms) -> AsyncIterator[Rig]:
        async with UnreliableFacilitator(scene.facilitator) as unreliable:

            async def arm() -> None:
                unreliable.script = list(self.script)

            async def lift() -> None:
                unreliable.release.set()

            yield Rig(unreliable.url, scene.anvil.url, arm, lift, lambda: len(unreliable.script) < len(self.script))


@dataclass(frozen=True, slots=True)
class ConnectionRefused:
    """Nobody listens at the facilitator's address when it should settle."""

    name: str = "facilitator refuses connections"
    is_refused: bool = False

    @asynccontextmanager
    async def rig(self, scene: Scene, terms: Terms) -> AsyncIterator[Rig]:
        async with UnreliableFacilitator(scene.facilitator) as unreliable:

            async def arm() -> None:
                if terms.policy is SettlementPolicy.BEFORE:
                    await unreliable.stop()
                unreliable.leaves_after_verifying = True

            async def lift() -> None:
                unreliable.leaves_after_verifying = False
                await unreliable.stop()
                await unreliable.start()

            yield Rig(unreliable.url, scene.anvil.url, arm, lift, lambda: True)


@dataclass(frozen=True, slots=True)
class SellersRpcFault:
    """The seller's own RPC endpoint misbehaves; its facilitator is honest."""

    name: str
    behaviours: dict[str, RpcMisbehaviour]
    is_refused: bool = False

    @asynccontextmanager
    async def rig(self, scene: Scene, terms: Terms) -> AsyncIterator[Rig]:
        async with FakeRpc(scene.anvil.url) as rpc:
            yield _rig(scene.facilitator_url, rpc.url, rpc, self.behaviours)


@dataclass(frozen=True, slots=True)
class FacilitatorsRpcFault:
    """The RPC endpoint of an honest facilitator misbehaves."""

    name: str
    behaviours: dict[str, RpcMisbehaviour]
    is_refused: bool = False

    @asynccontextmanager
    async def rig(self, scene: Scene, terms: Terms) -> AsyncIterator[Rig]:
        key = secrets.token_bytes(32)
        await scene.anvil.fund_native(LocalTransactionSigner(key).address)
        async with (
            FakeRpc(scene.anvil.url) as rpc,
            evm_facilitator(rpc.url, scene.folder, SystemClock(), settle_wait_s=0.5, gas_key=key) as facilitator,
            serving(facilitator) as url,
        ):
            yield _rig(url, scene.anvil.url, rpc, self.behaviours)


@asynccontextmanager
async def serving(facilitator: Facilitator) -> AsyncIterator[str]:
    """Our facilitator program, in this process."""
    app = build_app(facilitator, new_request_id=lambda: "", log=make_logger(as_json=True, level="critical"))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def _rig(facilitator_url: str, rpc_url: str, rpc: FakeRpc, behaviours: dict[str, RpcMisbehaviour]) -> Rig:
    """Of a fault that `rpc` makes."""

    async def arm() -> None:
        rpc.asked.clear()
        rpc.behaviours = dict(behaviours)

    async def lift() -> None:
        rpc.behaviours = {}

    def is_met() -> bool:
        return any(rpc.asked[method] or method == "*" for method in behaviours) and bool(rpc.asked)

    return Rig(facilitator_url, rpc_url, arm, lift, is_met)


def _says(**changes: object) -> Telling:
    """The truth, but for these fields."""

    def tell(_: web.Request, true: SettleResponse) -> web.StreamResponse:
        return _json(msgspec.structs.replace(true, **changes))

    return tell


def _reverted(_: web.Request, true: SettleResponse) -> web.StreamResponse:
    return _json(msgspec.structs.replace(true, success=False, error_reason="transaction_failed"))


def _twice(*, truth_first: bool) -> Telling:
    """Two answers on one connection: the truth, and "no, and nothing moved"."""

    def tell(request: web.Request, true: SettleResponse) -> web.StreamResponse:
        refusal = msgspec.structs.replace(true, success=False, transaction="", error_reason="insufficient_funds")
        first, second = (true, refusal) if truth_first else (refusal, true)
        body = msgspec.json.encode(first)
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        assert request.transport is not None
        request.transport.write(head.encode() + body)
        return _json(second)

    return tell


def _json(answer: SettleResponse) -> web.Response:
    return web.Response(body=msgspec.json.encode(answer), content_type="application/json")


NO = "insufficient_funds"
Fault = FacilitatorFault | ConnectionRefused | SellersRpcFault | FacilitatorsRpcFault
"""`is_refused`: the payment is refused for good, and no money moves."""
OF_FACILITATORS: Sequence[Fault] = (
    FacilitatorFault("settles, then times out", [SettleThenHang()]),
    FacilitatorFault("502 after settling, twice", [BadGateway(after_settling=True)] * 2),
    FacilitatorFault("502 without settling, twice", [BadGateway(after_settling=False)] * 2),
    FacilitatorFault("hangs up after settling", [Drop(after_settling=True)]),
    FacilitatorFault("hangs up without settling", [Drop(after_settling=False)]),
    FacilitatorFault("settlement_pending, and later settles", [Pending(times=9)] * 2),
    FacilitatorFault("settlement_pending, and has settled", [_says(success=False, error_reason="settlement_pending")]),
    FacilitatorFault("says settled, and has not", [Lie()]),
    FacilitatorFault("settles, and names another transaction", [_says(transaction=FOREIGN)]),
    FacilitatorFault("settles, and names another payer", [_says(payer="0x" + "99" * 20)]),
    FacilitatorFault("settles, and says no", [_says(success=False, transaction="", error_reason=NO)]),
    FacilitatorFault("settles, and says reverted", [_reverted]),
    FacilitatorFault(
        "settles, and says the nonce is used",
        [_says(success=False, transaction="", error_reason="invalid_exact_evm_nonce_already_used")],
    ),
    FacilitatorFault("answers twice, yes and no", [_twice(truth_first=True)]),
    FacilitatorFault("answers twice, no and yes", [_twice(truth_first=False)]),
    FacilitatorFault("answers nonsense", [Garbage()]),
    FacilitatorFault("refuses for good", [RefuseSettle(NO)], is_refused=True),
    ConnectionRefused(),
)
_NOTHING: RpcMisbehaviour = Says(lambda _: [])
_ZERO: RpcMisbehaviour = Says(lambda _: "0x" + "0" * 64)
_NO_RECEIPT: dict[str, RpcMisbehaviour] = {"eth_getTransactionReceipt": Says(lambda _: None)}
OF_RPC: Sequence[Fault] = (
    SellersRpcFault("seller's RPC stalls", {"eth_getLogs": Stalls()}),
    SellersRpcFault("seller's RPC drops", {"*": Drops()}),
    SellersRpcFault("seller's RPC answers 500", {"*": Fails()}),
    SellersRpcFault("seller's RPC answers errors", {"*": Errors(-32005, "limit exceeded")}),
    SellersRpcFault("seller's RPC answers nonsense", {"*": Says(lambda _: "nonsense")}),
    SellersRpcFault("seller's RPC hides logs", {"eth_getLogs": _NOTHING}),
    SellersRpcFault("seller's RPC hides the settlement", {"eth_getLogs": _NOTHING, "eth_call": _ZERO}),
    SellersRpcFault("seller's RPC hides receipts", _NO_RECEIPT),
    SellersRpcFault("seller's RPC is an hour behind", {"eth_blockNumber": Says(lambda _: "0x0")}),
    FacilitatorsRpcFault("facilitator's RPC stalls", {"*": Stalls()}),
    FacilitatorsRpcFault("facilitator's RPC drops", {"*": Drops()}),
    FacilitatorsRpcFault("facilitator's RPC sends and drops", {"eth_sendRawTransaction": Drops(after=True)}),
    FacilitatorsRpcFault("facilitator's RPC does not send", {"eth_sendRawTransaction": Drops()}),
    FacilitatorsRpcFault(
        "facilitator's RPC says sent, and has not", {"eth_sendRawTransaction": Errors(-32000, "already known")}
    ),
    FacilitatorsRpcFault("facilitator's RPC refuses to send", {"eth_sendRawTransaction": Errors(-32000, "busy")}),
    FacilitatorsRpcFault("facilitator's RPC hides receipts", _NO_RECEIPT),
    FacilitatorsRpcFault("facilitator's RPC hides receipts and logs", {**_NO_RECEIPT, "eth_getLogs": _NOTHING}),
)
