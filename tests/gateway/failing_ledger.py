"""A ledger that fails when a test says so, in both ways: without having recorded, and although it has."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from obol.core.ledger import NO_CHANGE, Change, ClaimOutcome, Ledger, Page, SaleFilter
from obol.core.offer import Standing
from obol.core.payment import Event
from obol.core.sale import ClaimKey, NewSale, Sale
from obol.errors import LedgerUnavailableError

T = TypeVar("T")


@dataclass(slots=True)
class Fault:
    """The next `times` calls of `method` fail; of `record`, those with `event` among the events."""

    method: str
    event: Event | None = None
    recorded: bool = False
    """True: it was recorded, and the ledger could not say so."""
    times: int = 1
    is_bug: bool = False
    """True: it fails in a way that nobody foresaw."""


class FailingLedger:
    """`wrap` a ledger with it; `is_down` fails everything."""

    def __init__(self) -> None:
        self.is_down = False
        self.faults: list[Fault] = []
        self._ledger: Ledger | None = None

    def wrap(self, ledger: Ledger) -> Ledger:
        self._ledger = ledger
        return self

    async def claim(self, sale: NewSale) -> ClaimOutcome:
        return await self._do("claim", lambda ledger: ledger.claim(sale))

    async def disown(self, sale: NewSale, reason: str) -> Sale | None:
        return await self._do("disown", lambda ledger: ledger.disown(sale, reason))

    async def record(
        self, sale_id: str, events: Sequence[Event], change: Change = NO_CHANGE, *, attempt: str | None = None
    ) -> Sale:
        return await self._do("record", lambda ledger: ledger.record(sale_id, events, change, attempt=attempt), events)

    async def trust(self, sale_id: str, events: Sequence[Event], change: Change, standing: Standing) -> Sale | None:
        return await self._do("record", lambda ledger: ledger.trust(sale_id, events, change, standing), events)

    async def is_trusted(self, key: ClaimKey, amount_atomic: int, standing: Standing) -> bool:
        return await self._do("is_trusted", lambda ledger: ledger.is_trusted(key, amount_atomic, standing))

    async def held_by(self, attempt: str) -> Sale | None:
        return await self._do("sale", lambda ledger: ledger.held_by(attempt))

    async def page(self, which: SaleFilter, *, after: int | None = None, limit: int = 500) -> Page:
        return await self._do("page", lambda ledger: ledger.page(which, after=after, limit=limit))

    async def flaws(self) -> list[str]:
        return await self._do("flaws", lambda ledger: ledger.flaws())

    async def sale(self, sale_id: str) -> Sale | None:
        return await self._do("sale", lambda ledger: ledger.sale(sale_id))

    async def find(self, key: ClaimKey) -> Sale | None:
        return await self._do("find", lambda ledger: ledger.find(key))

    async def adopt(self, network: str | None = None) -> list[Sale]:
        return await self._do("adopt", lambda ledger: ledger.adopt(network))

    async def check(self) -> None:
        await self._do("check", lambda ledger: ledger.check())

    async def close(self) -> None:
        await self._do("close", lambda ledger: ledger.close())

    async def _do(self, method: str, work: Callable[[Ledger], Awaitable[T]], events: Sequence[Event] = ()) -> T:
        assert self._ledger is not None
        fault = self._take(method, events)
        if fault is not None and fault.is_bug and not fault.recorded:
            raise RuntimeError("a bug")
        if self.is_down or (fault is not None and not fault.recorded):
            raise LedgerUnavailableError("the ledger cannot be read or written: disk I/O error")
        result = await work(self._ledger)
        if fault is not None and fault.is_bug:
            raise RuntimeError("a bug")
        if fault is not None:
            raise LedgerUnavailableError("the ledger cannot be read or written: it was, but nobody could say so")
        return result

    def _take(self, method: str, events: Sequence[Event]) -> Fault | None:
        for fault in self.faults:
            if fault.times and fault.method == method and (fault.event is None or fault.event in events):
                fault.times -= 1
                return fault
        return None
