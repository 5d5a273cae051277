"""One case of a facilitator that dies: payments that it is asked to settle, and what became of them on the chain."""

import asyncio
import contextlib
import secrets
import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
from eth_account.signers.local import LocalAccount

from obol.adapters.evm_signing import LocalTransactionSigner
from obol.adapters.facilitator_http import HttpFacilitator
from obol.x402.facilitator import Settlement, SettleOutcome
from obol.x402.models import ExactAuthorization, PaymentPayload, PaymentRequirements
from tests.adapters.payments import PRICE_ATOMIC, pay, requirements
from tests.evm.anvil import Anvil, Moved
from tests.evm.forked import Forked, Forks
from tests.evm.matrix_facilitator import HELD, JOURNAL, SEND, FacilitatorJob
from tests.evm.matrix_steps import Kill

ASK_AGAIN_S = 0.02
FINAL_S = 20.0
DEATH_S = 1.0
AT_REST_LOOKS = 300
_LOG_END = 2_000
_FINAL = (SettleOutcome.SETTLED, SettleOutcome.FAILED)


class Trouble(StrEnum):
    """What else goes wrong, until a facilitator has died."""

    NONE = "no trouble"
    POOR = "no money for gas"
    STUCK = "stuck"
    """A node takes transactions, and no block does; afterwards they are lost, unless they are sent again."""
    STUCK_OLDEST = "stuck, then the oldest is mined"
    STUCK_NEWEST = "stuck, then the newest is mined"


STUCK = (Trouble.STUCK, Trouble.STUCK_OLDEST, Trouble.STUCK_NEWEST)


@dataclass(slots=True)
class Counts:
    """The sums of a row."""

    cases: int = 0
    killed: int = 0
    settled: int = 0
    """Payments."""
    transactions: int = 0
    """Mined, of the keys that pay the gas."""
    reverted: int = 0
    unexplained: int = 0
    """Transactions that the journal does not name as mined, transfers that no answer names, and the other way round."""

    def add(self, other: "Counts") -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


@dataclass(frozen=True, slots=True)
class Transaction:
    """One that is in a block."""

    hash: str
    nonce: int
    is_success: bool
    input: str


Book = dict[str, list[Transaction]]
"""Every mined transaction by its sender, in lower case; oldest first."""


async def read_book(anvil: Anvil) -> Book:
    """From the blocks themselves."""
    book: Book = defaultdict(list)
    for number in range(int(await anvil.rpc("eth_blockNumber"), 16) + 1):
        block = await anvil.rpc("eth_getBlockByNumber", hex(number), True)
        if block["transactions"]:
            receipts = await anvil.rpc("eth_getBlockReceipts", hex(number))
            for sent, receipt in zip(block["transactions"], receipts, strict=True):
                book[sent["from"].lower()].append(_transaction(sent, receipt))
    return book


def _transaction(sent: dict[str, Any], receipt: dict[str, Any]) -> Transaction:
    assert sent["hash"] == receipt["transactionHash"]
    return Transaction(sent["hash"], int(sent["nonce"], 16), receipt["status"] == "0x1", sent["input"].lower())


@dataclass(slots=True)
class Payment:
    """What is to be settled, and each final answer that was given."""

    payload: PaymentPayload
    wanted: PaymentRequirements
    heard: list[Settlement] = field(default_factory=list)

    @property
    def nonce(self) -> str:
        signed = self.payload.payload.signed
        assert isinstance(signed, ExactAuthorization)
        return signed.nonce[2:].lower()


@dataclass(slots=True)
class Case:
    """Payments to a payee of their own, settled by a gas key of its own."""

    anvil: Anvil
    facilitators: Forks
    client: HttpFacilitator
    """The sellers' client."""
    job: FacilitatorJob
    buyers: Sequence[LocalAccount]
    name: str
    """Where facilitators die in it."""
    trouble: Trouble = Trouble.NONE
    """While the first facilitator lives."""
    pay_to: str = field(default_factory=lambda: "0x" + secrets.token_hex(20))
    payments: list[Payment] = field(default_factory=list)
    counts: Counts = field(default_factory=lambda: Counts(cases=1))
    problems: list[str] = field(default_factory=list)
    deaths: int = 0
    """That were planned."""

    def __post_init__(self) -> None:
        for _ in range(self.job.batch_max):
            self._sell()

    def story(self) -> str:
        """What to read when it broke an invariant."""
        heard = "\n".join(f"  heard {payment.heard}" for payment in self.payments)
        log = (Path(self.job.folder) / "log").read_text()[-_LOG_END:]
        return f"{self.name}: {'; '.join(self.problems)}\n{heard}\n  journal {self._calls()}\n  log …{log}"

    @property
    def gas_account(self) -> str:
        return LocalTransactionSigner(bytes.fromhex(self.job.gas_key)).address

    async def prepare(self) -> None:
        """Gas."""
        if self.trouble is not Trouble.POOR:
            await self.anvil.fund_native(self.gas_account)

    async def die(self, kills: Sequence[Kill]) -> None:
        """One facilitator after the other dies, each on what the one before has left."""
        for kill in kills:
            facilitator = await self.start(kill)
            await self.ask_for_all(facilitator)
            with contextlib.suppress(TimeoutError):  # things came in another order, and it never got to the step
                async with asyncio.timeout(DEATH_S):
                    await facilitator.ended.wait()
            self.deaths += 1
            self.counts.killed += facilitator.is_killed
            await facilitator.stop()
            await self.end_trouble()

    async def start(self, kill: Kill | None = None) -> Forked:
        """A facilitator in the trouble there is now."""
        job = msgspec.structs.replace(self.job, kill=kill, is_held=self.trouble in STUCK)
        return await self.facilitators.start(job)

    async def end_trouble(self) -> None:
        """All is well from now on."""
        trouble, self.trouble = self.trouble, Trouble.NONE
        if trouble is Trouble.POOR:
            await self.anvil.fund_native(self.gas_account)
        elif trouble in (Trouble.STUCK_OLDEST, Trouble.STUCK_NEWEST):
            held = (Path(self.job.folder) / HELD).read_text().splitlines()
            await self.anvil.rpc(SEND, held[0 if trouble is Trouble.STUCK_OLDEST else -1])

    async def live(self) -> list[str]:
        """One that does not die: the labels that it goes through, in order."""
        facilitator = await self.start()
        await self.ask_for_all(facilitator)
        await facilitator.stop()
        return facilitator.steps

    async def finish(self) -> None:
        """The last facilitator lives: all is settled, told again as it was, and the next payment is not held up."""
        last = await self.start()
        await self.ask_for_all(last)
        await self.ask_for_all(last)
        further = self._sell()
        await self._ask(further, last, times=1)
        self._expect(further.heard, "a further payment was held up")
        await self._until_at_rest()
        await last.stop()
        self._expect(not last.is_killed and last.url, "the last facilitator did not live")

    async def ask_for_all(self, facilitator: Forked) -> None:
        """As sellers do: each payment on its own, all at once, again and again until the answer is final."""
        try:
            async with asyncio.timeout(FINAL_S), asyncio.TaskGroup() as tasks:
                for payment in self.payments:
                    tasks.create_task(self._ask(payment, facilitator))
        except TimeoutError:
            self.problems.append("no final answer")

    async def _ask(self, payment: Payment, facilitator: Forked, *, times: int = 10_000) -> None:
        for _ in range(times):
            if facilitator.ended.is_set():
                return
            settlement = await self.client.settle(payment.payload, payment.wanted)
            if settlement.outcome in _FINAL:
                payment.heard.append(settlement)
                return
            await asyncio.sleep(ASK_AGAIN_S)

    async def _until_at_rest(self) -> None:
        """Until the journal has nothing open."""
        for _ in range(AT_REST_LOOKS):
            if all(state != "open" for _, state, _ in await asyncio.to_thread(self._calls)):
                return
            await asyncio.sleep(0.01)

    def _sell(self) -> Payment:
        """Each costs something else, so that no transfer can be taken for another one."""
        place = len(self.payments)
        wanted = requirements(PRICE_ATOMIC + place, pay_to=self.pay_to)
        self.payments.append(Payment(pay(wanted, self.buyers[place % len(self.buyers)]), wanted))
        return self.payments[-1]

    def _calls(self) -> list[tuple[int, str, str]]:
        """Nonce, state and transaction of every call in the journal."""
        file = f"file:{Path(self.job.folder) / JOURNAL}?mode=ro"
        with contextlib.closing(sqlite3.connect(file, uri=True)) as db:
            return db.execute("SELECT nonce, state, mined FROM call ORDER BY id").fetchall()

    # --------------------------------------------------------------------------------------------------- judging

    async def judge(self, book: Book) -> None:
        """Compare answers, chain and journal."""
        mined = book[self.gas_account.lower()]
        moved = await self.anvil.transfers(self.pay_to)
        self._judge_transactions(mined)
        self._judge_answers(moved)
        self._judge_journal(mined)
        earned = await self.anvil.balance(self.pay_to)
        self._expect(earned == sum(int(one.wanted.amount) for one in self.payments), f"the payee has {earned}")

    def _judge_transactions(self, mined: Sequence[Transaction]) -> None:
        self.counts.transactions = len(mined)
        self.counts.reverted = sum(not one.is_success for one in mined)
        self._expect(not self.counts.reverted, "a transaction reverted")
        self._expect([one.nonce for one in mined] == list(range(len(mined))), "the nonces have a gap")
        for payment in self.payments:
            tries = sum(payment.nonce in one.input for one in mined)
            self._expect(tries == 1, f"{tries} transactions try to move one authorization")

    def _judge_answers(self, moved: Sequence[Moved]) -> None:
        """One transfer for each payment, and every answer names it."""
        named = set()
        for payment in self.payments:
            answers = {(one.outcome, one.transaction, one.log_index) for one in payment.heard}
            self._expect({one[0] for one in answers} == {SettleOutcome.SETTLED}, "a payment is not settled")
            self._expect(len(answers) <= 1, "answers contradict each other")
            named |= {(*one[1:], payment.payload.payer.lower(), int(payment.wanted.amount)) for one in answers}
        there = [(one.transaction, one.log_index, one.payer, one.amount_atomic) for one in moved]
        self.counts.settled = len(there)
        self.counts.unexplained += len(named ^ set(there))
        self._expect(named == set(there), "the answers name other transfers than the chain")
        self._expect(len(there) == len(self.payments), f"{len(there)} transfers for {len(self.payments)} payments")

    def _judge_journal(self, mined: Sequence[Transaction]) -> None:
        calls = self._calls()
        written = {(nonce, transaction) for nonce, state, transaction in calls if state == "mined"}
        unexplained = written ^ {(one.nonce, one.hash) for one in mined}
        self.counts.unexplained += len(unexplained)
        self._expect(not unexplained, "journal and chain name different transactions")
        self._expect(all(state != "open" for _, state, _ in calls), "the journal has an open call")

    def _expect(self, holds: object, otherwise: str) -> None:
        if not holds:
            self.problems.append(otherwise)
