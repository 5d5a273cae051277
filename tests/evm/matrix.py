"""One purchase of the fault-injection matrix: a buyer, its seller's ledger, the chain, and what came of it for whom."""

import asyncio
import contextlib
import secrets
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, fields
from pathlib import Path

import aiohttp
import msgspec

from obol import LocalSigner
from obol.adapters.clock import SystemClock
from obol.adapters.ledger_sqlite import SqliteLedger
from obol.adapters.paths import ledger_file
from obol.core.integrity import Checker
from obol.core.ledger import EVERY_SALE
from obol.core.offer import SettlementPolicy
from obol.core.payment import FINAL, PAID, State
from obol.core.sale import Sale
from obol.gateway.settings import offer_of
from obol.x402.client import payment_headers, sign_exact
from obol.x402.exact import build_requirements
from tests.evm.anvil import USDC, Anvil, Moved
from tests.evm.forked import Forked
from tests.evm.matrix_seller import MODEL, SellerJob
from tests.evm.matrix_steps import Kill
from tests.gateway.answer import CHAT, PRICE_ATOMIC, chat
from tests.gateway.shop import read_ledger

PATIENCE_S = 25.0
"""Of a buyer with one answer."""
FINISHED_S = 20.0
"""An RPC endpoint that stalls is waited for for 10 s."""
FAULT_MET_S = 2.0
FUNDS_ATOMIC = 3 * PRICE_ATOMIC
"""Enough to be charged twice."""
_CLOCK = SystemClock()


@dataclass(frozen=True, slots=True)
class Terms:
    """What is sold how: a row of the matrix."""

    policy: SettlementPolicy
    stream: bool

    def __str__(self) -> str:
        return f"{self.policy.value}, {'stream' if self.stream else 'plain'}"

    @property
    def may_be_exposed(self) -> bool:
        """Whether output may be out while nothing has moved: within the stated bound that is one answer at a time."""
        return self.policy is SettlementPolicy.AFTER or (self.stream and self.policy is SettlementPolicy.ON_OUTPUT)


@dataclass(frozen=True, slots=True)
class Got:
    """What the buyer got for one presentation; `status` 0: not even a head."""

    status: int = 0
    body: bytes = b""
    is_whole: bool = False
    is_stream: bool = False

    @property
    def has_output(self) -> bool:
        """Anything worth money: of a stream the first token, of a plain answer all of it."""
        if self.status != 200:
            return False
        return b"Hello" in self.body if self.is_stream else self.is_whole

    @property
    def has_all(self) -> bool:
        return self.has_output and self.is_whole and (not self.is_stream or b"[DONE]" in self.body)


@dataclass(slots=True)
class Counts:
    """The sums of a row."""

    cases: int = 0
    killed: int = 0
    settled: int = 0
    owed_then_served: int = 0
    released: int = 0
    refused: int = 0
    exposed_at_fault: int = 0
    """Output was out and nothing had moved, when the seller died (or the fault was lifted)."""
    cut_short: int = 0
    """Paid, and the stream broke off after its first output."""
    served_again: int = 0
    """A second whole answer for one payment."""
    paid_for_nothing: int = 0
    served_for_nothing: int = 0
    unexplained: int = 0

    def add(self, other: "Counts") -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


@dataclass(slots=True)
class Case:
    """One buyer with one payment, presented as often as it takes, to sellers on one data folder."""

    anvil: Anvil
    session: aiohttp.ClientSession
    job: SellerJob
    terms: Terms
    name: str
    """What goes wrong in it."""
    buyer: LocalSigner = field(default_factory=LocalSigner.generate)
    got: list[Got] = field(default_factory=list)
    counts: Counts = field(default_factory=lambda: Counts(cases=1))
    problems: list[str] = field(default_factory=list)
    _headers: dict[str, str] = field(default_factory=dict)

    def story(self) -> str:
        """What to read when it broke an invariant."""
        rows = read_ledger(ledger_file(Path(self.job.folder)))
        seen = ("id", "state", "delivery", "reason", "transaction_id", "log_index")
        return "\n".join(
            [
                f"{self.terms}, {self.name}: {'; '.join(self.problems)}",
                *(f"  buyer got {got.status} {got.body[-200:]!r} whole={got.is_whole}" for got in self.got),
                *(f"  ledger { ({name: row[name] for name in seen}) }" for row in rows),
                f"  log: {Path(self.job.folder) / 'log'}",
            ]
        )

    async def prepare(self, minting: asyncio.Lock) -> None:
        """Give the buyer money, and sign the one payment of this case."""
        async with minting:  # anvil gives two transactions of one sender at once the same nonce
            await self.anvil.mint(self.buyer.address, FUNDS_ATOMIC)
        requirements = build_requirements(offer_of(self.job.config(), (MODEL,)))
        nonce = secrets.token_bytes(32)
        payload = sign_exact(self.buyer, requirements, USDC, now_s=_CLOCK.now_s(), nonce=nonce, version=2)
        self._headers = payment_headers(payload, 2)

    def killed_at(self, kill: Kill | None) -> SellerJob:
        return msgspec.structs.replace(self.job, kill=kill)

    async def present(self, seller: Forked) -> Got:
        """Present the payment, and read what comes until it ends or breaks."""
        status, body, is_whole = 0, bytearray(), False
        try:
            async with self.session.post(
                seller.url + CHAT, json=chat(stream=self.terms.stream), headers=self._headers
            ) as response:
                status = response.status
                async for chunk in response.content.iter_any():
                    body += chunk
                is_whole = True
        except (aiohttp.ClientError, TimeoutError):
            """As far as it got."""
        self.got.append(Got(status, bytes(body), is_whole, self.terms.stream))
        return self.got[-1]

    async def until_finished(self, seller: Forked) -> list[str]:
        """The states of all sales once each is final or owed, or the seller dead."""
        states = await self._until_rest(seller, FINAL | {State.OWED}, FINISHED_S)
        if not seller.ended.is_set() and set(states) - FINAL - {State.OWED}:
            self.problems.append(f"never finished: {states}")
        return states

    async def until_fault_met(self, seller: Forked) -> None:
        """Wait until the seller has been told something about its money, or has waited for it for a while."""
        await self._until_rest(seller, FINAL | {State.OWED, State.SETTLE_UNKNOWN}, FAULT_MET_S)

    async def _until_rest(self, seller: Forked, rest: AbstractSet[State], patience_s: float) -> list[str]:
        states: list[str] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while not seller.ended.is_set():
                    states = await self.states()
                    if not set(states) - rest:
                        break
                    await asyncio.sleep(0.01)
        return states

    async def states(self) -> list[str]:
        """As the ledger file has them now."""
        file = ledger_file(Path(self.job.folder))
        return [row["state"] for row in await asyncio.to_thread(read_ledger, file)] if file.exists() else []

    async def note_exposure(self) -> None:
        """At the fault: it is made good afterwards, or counted as served for nothing."""
        if await self._is_exposed():
            self.counts.exposed_at_fault = 1
            if not self.terms.may_be_exposed:
                self.problems.append("served before it was paid")

    async def _is_exposed(self) -> bool:
        """Whether output is out and no money has moved."""
        has_output = any(got.has_output for got in self.got)
        return has_output and not await self.anvil.transfers(self.job.pay_to)

    async def finish(self, seller: Forked) -> None:
        """What a buyer does about a sale that broke: present the payment again, and once more for good measure."""
        if State.OWED in await self.until_finished(seller):
            again = await self.present(seller)
            self.counts.owed_then_served = int(again.has_all)
            if not again.has_all:
                self.problems.append(f"an owed answer was not served: {again}")
        else:
            self.counts.served_for_nothing = int(await self._is_exposed())
            await self.present(seller)
        await self.until_finished(seller)
        late = await self.present(seller)
        if late.status != 409:
            self.problems.append(f"a payment that was used up got {late}")
        await seller.stop()

    async def judge(self, *, is_refused: bool = False) -> None:
        """Compare ledger, chain and what the buyer got. `is_refused`: the money was refused for good by the chain."""
        sales, flaws = await self._read_sales()
        moved = await self.anvil.transfers(self.job.pay_to)
        counts, expect = self.counts, self._expect
        states = [sale.state for sale in sales]
        counts.settled = states.count(State.SETTLED)
        counts.released = states.count(State.RELEASED)
        counts.refused = states.count(State.SETTLE_FAILED)
        expect(not flaws, f"the ledger has flaws: {flaws}")
        expect(not set(states) - {State.SETTLED, State.RELEASED, State.SETTLE_FAILED}, "a sale is not final")
        counts.unexplained = len({_of(sale) for sale in sales if sale.state in PAID} ^ {_on(log) for log in moved})
        expect(counts.unexplained == 0, "ledger and chain name different transfers")
        expect(len(moved) == counts.settled == (0 if is_refused else 1), "not settled as often as it should be")
        self._judge_delivery(moved, is_refused=is_refused)
        await self._judge_balances(len(moved))

    def _judge_delivery(self, moved: Sequence[Moved], *, is_refused: bool) -> None:
        counts, expect = self.counts, self._expect
        has_output, whole = any(got.has_output for got in self.got), sum(got.has_all for got in self.got)
        counts.paid_for_nothing = int(bool(moved) and not has_output)
        counts.cut_short = int(bool(moved) and has_output and not whole)
        if has_output and not moved:
            counts.served_for_nothing = 1
        counts.served_again = max(0, whole - 1)
        expect(not counts.paid_for_nothing, "paid for nothing")
        expect(counts.served_for_nothing <= self._bound(is_refused=is_refused), "served for nothing")
        expect(counts.served_again <= counts.killed, "served twice")
        expect(counts.killed or not counts.cut_short or is_refused, "cut short although nobody died")

    def _bound(self, *, is_refused: bool) -> int:
        """How many answers the policy may lose: to a refusal those that went ahead of it; to a crash, under `after`,
        one whose delivery was not recorded yet."""
        is_after = self.terms.policy is SettlementPolicy.AFTER
        return int(self.terms.may_be_exposed if is_refused else is_after and self.counts.killed > 0)

    async def _judge_balances(self, times: int) -> None:
        earned, left = [await self.anvil.balance(each) for each in (self.job.pay_to, self.buyer.address)]
        self._expect(earned == times * PRICE_ATOMIC, f"the seller has {earned}")
        self._expect(left == FUNDS_ATOMIC - times * PRICE_ATOMIC, f"the buyer has {left}")

    async def _read_sales(self) -> tuple[Sequence[Sale], list[str]]:
        ledger = await SqliteLedger.open(ledger_file(Path(self.job.folder)), _CLOCK)
        try:
            sales, checker = (await ledger.page(EVERY_SALE)).sales, Checker()
            return sales, [*await ledger.flaws(), *(str(flaw) for sale in sales for flaw in checker.check(sale))]
        finally:
            await ledger.close()

    def _expect(self, holds: object, otherwise: str) -> None:
        if not holds:
            self.problems.append(otherwise)


def _of(sale: Sale) -> tuple[str, int | None, str, int | None]:
    return sale.transaction, sale.log_index, sale.key.payer, sale.settled_atomic


def _on(moved: Moved) -> tuple[str, int | None, str, int | None]:
    return moved.transaction, moved.log_index, moved.payer, moved.amount_atomic
