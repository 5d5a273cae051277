"""Paying on a chain: a wallet with money there, and its payments verified and settled by a facilitator, timed."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from bench import chain
from bench.facilitators import Settling
from bench.machine import OTHERS_CORE, cpu_s, on_core
from bench.offer import MODEL, PAY_TO, PRICE, USDC
from bench.programs import Program
from obol.adapters.event_loop import run
from obol.adapters.facilitator_http import HttpFacilitator
from obol.adapters.signer_local import LocalSigner
from obol.core.money import parse_amount
from obol.core.offer import Model, Offer
from obol.x402.client import sign_exact
from obol.x402.exact import build_requirements
from obol.x402.facilitator import Accepted, Settlement, SettleOutcome
from obol.x402.models import PaymentPayload

TIMEOUT_S = 300.0
_RICH_ATOMIC = 10**15


class Payer:
    """A wallet with plenty of money on a chain, and what it pays for."""

    def __init__(self, node: Program, *, pay_to: str = PAY_TO) -> None:
        self._signer = LocalSigner.generate()
        amount = parse_amount(PRICE, USDC.decimals, field="--price")
        self._requirements = build_requirements(Offer("bench", "", (Model(MODEL, MODEL),), USDC, pay_to, amount))
        chain.mint(node, self._signer.address, _RICH_ATOMIC)

    def payments(self, count: int) -> list[PaymentPayload]:
        """Signed, each with a nonce of its own."""
        return [
            sign_exact(self._signer, self._requirements, USDC, now_s=time.time(), nonce=secrets.token_bytes(32))
            for _ in range(count)
        ]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a number of questions to a facilitator took: seconds for each, for all, and of its CPU for one."""

    durations_s: Sequence[float]
    wall_s: float
    cpu_s: float
    transactions: Sequence[str] = ()

    @property
    def per_s(self) -> float:
        """Questions a second."""
        return len(self.durations_s) / self.wall_s


def verify_all(subject: Settling, payments: Sequence[PaymentPayload], concurrent: int) -> Asked:
    """Ask `/verify` for each. Raises `RuntimeError` for a refusal."""

    async def verify(peer: HttpFacilitator, payment: PaymentPayload) -> str:
        answer = await peer.verify(payment, payment.accepted)
        if not isinstance(answer, Accepted):
            raise RuntimeError(f"{subject.name} refuses a good payment: {answer}")
        return ""

    return _ask_all(subject, payments, concurrent, verify)


def settle_all(subject: Settling, payments: Sequence[PaymentPayload], concurrent: int) -> Asked:
    """Ask `/settle` for each. Raises `RuntimeError` for one that is not settled at once."""

    async def settle(peer: HttpFacilitator, payment: PaymentPayload) -> str:
        answer: Settlement = await peer.settle(payment, payment.accepted)
        if answer.outcome is not SettleOutcome.SETTLED:
            raise RuntimeError(f"{subject.name} does not settle a good payment: {answer}")
        return answer.transaction

    return _ask_all(subject, payments, concurrent, settle)


def _ask_all(
    subject: Settling,
    payments: Sequence[PaymentPayload],
    concurrent: int,
    ask: Callable[[HttpFacilitator, PaymentPayload], Awaitable[str]],
) -> Asked:
    async def asking() -> tuple[list[float], list[str]]:
        peer = HttpFacilitator(subject.program.url, verify_timeout_s=TIMEOUT_S, settle_timeout_s=TIMEOUT_S)
        durations_s: list[float] = []
        transactions: list[str] = []
        waiting = iter(payments)

        async def ask_on() -> None:
            for payment in waiting:
                started_s = time.perf_counter()
                transactions.append(await ask(peer, payment))
                durations_s.append(time.perf_counter() - started_s)

        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(concurrent):
                    tasks.create_task(ask_on())
        finally:
            await peer.close()
        return durations_s, transactions

    with on_core(OTHERS_CORE):
        used_s, started_s = cpu_s(subject.program.pid), time.perf_counter()
        durations_s, transactions = run(asking())
        wall_s = time.perf_counter() - started_s
    used_s = cpu_s(subject.program.pid) - used_s
    return Asked(durations_s, wall_s, used_s / len(payments), transactions)
