"""Payments settled on a real chain: how many a second, their CPU, their round trips to the node, their gas."""

import json
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar
from urllib.request import urlopen

from bench import chain
from bench.facilitators import EXAMPLE, OBOL, OFFICIAL, counting_rpc, facilitator
from bench.paying import TIMEOUT_S, Asked, Payer, settle_all, verify_all
from bench.programs import Program
from bench.report import MISSING, Table, number, percentile, ratio
from obol.adapters.signer_local import LocalSigner

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Case:
    """Who settles, how many payments at once, and how far away the node is."""

    name: str
    at_once: int
    away_s: float = 0.0
    is_batched: bool = False

    def __str__(self) -> str:
        batched, away = (", batched" if self.is_batched else ""), f", {self.away_s * 1e3:.0f} ms away"
        return f"{self.name}, {self.at_once}{batched}{away if self.away_s else ''}"

    @property
    def options(self) -> tuple[str, ...]:
        """What our facilitator is started with."""
        return BATCHED if self.is_batched else ()

    def of_official(self) -> "Case":
        """What it is compared with."""
        return replace(self, name=OFFICIAL, is_batched=False)


BATCHED = ("--batch-max", "64")
BATCHES = (5, 20, 50)
AWAY_S = 0.03
CASES = (
    Case(OBOL, 1),
    Case(OFFICIAL, 1),
    Case(OBOL, 64),
    Case(OBOL, 64, is_batched=True),
    Case(OFFICIAL, 64),
    Case(EXAMPLE, 64),
    Case(OBOL, 1, AWAY_S),
    Case(OFFICIAL, 1, AWAY_S),
    Case(OBOL, 64, AWAY_S),
    Case(OBOL, 64, AWAY_S, is_batched=True),
    Case(OFFICIAL, 64, AWAY_S),
)
PAYMENTS = {1: 40, 64: 160}
COUNTED = (Case(OBOL, 1), Case(OBOL, 64), Case(OBOL, 64, is_batched=True), Case(OFFICIAL, 1), Case(OFFICIAL, 64))
BLOCK_TIME_S = 2
"""Base's."""
WARM_UP = 2
_RECEIPT = "eth_getTransactionReceipt"


def measure(folder: Path, say: Callable[[str], None]) -> list[Table]:
    """Each facilitator has a key of its own; all of a table settle on one chain, one after the other."""
    return [_rates(folder, say), _round_trips(folder, say), _gas(folder, say)]


def _rates(folder: Path, say: Callable[[str], None]) -> Table:
    columns = ("facilitator, at once", "verify CPU ms", "settle CPU ms", "CPU × official", "settle p50 ms", "settled/s")
    note = (
        "One key. A block for every transaction: nobody waits for the chain's clock. anvil and the buyers share the "
        "other core. Away: a proxy before the node answers that much later. × official: the same case of the official "
        "facilitator in threads; its own example settles one payment at a time. CPU × official: verify and settle."
    )
    table = Table("Payments settled on anvil", (*columns, "rate × official"), notes=(note,))
    with chain.anvil(folder) as node:
        payer = Payer(node)
        runs = {case: _rate(case, node, payer, folder, say) for case in CASES}
    for case, (verified, settled) in runs.items():
        official_verified, official = runs[case.of_official()]
        cpu_of_both_s, official_cpu_s = verified.cpu_s + settled.cpu_s, official_verified.cpu_s + official.cpu_s
        table.rows.append(
            (
                str(case),
                number(verified.cpu_s * 1e3, 2),
                number(settled.cpu_s * 1e3, 2),
                ratio(cpu_of_both_s, official_cpu_s),
                number(percentile(settled.durations_s, 0.5) * 1e3, 1),
                number(settled.per_s, 1),
                ratio(settled.per_s, official.per_s),
            )
        )
    return table


def _rate(case: Case, node: Program, payer: Payer, folder: Path, say: Callable[[str], None]) -> tuple[Asked, Asked]:
    say(f"settle on a chain: {case}")
    here = folder / f"rate-{case}"
    here.mkdir()
    with ExitStack() as stack:
        rpc = stack.enter_context(counting_rpc(node, here, delay_s=case.away_s)) if case.away_s else node
        subject = stack.enter_context(facilitator(case.name, node, here / "facilitator", rpc=rpc, options=case.options))
        settle_all(subject, payer.payments(WARM_UP), 1)
        payments = payer.payments(PAYMENTS[case.at_once])
        return verify_all(subject, payments, case.at_once), settle_all(subject, payments, case.at_once)


def _round_trips(folder: Path, say: Callable[[str], None]) -> Table:
    columns = ("facilitator, at once", "verify", "settle", "of it receipts", "both", "without receipts", "settle p50 s")
    note = (
        "HTTP requests to the node per payment, counted by a proxy before it, after a warm-up. Receipts: questions "
        f"whether the transaction is mined. Blocks every {BLOCK_TIME_S} s are Base's."
    )
    table = Table("Round trips to the node", columns, notes=(note,))
    for block_time_s in (None, BLOCK_TIME_S):
        for case in COUNTED:
            label = f"{case}, {'a block each' if block_time_s is None else f'{block_time_s} s blocks'}"
            say(f"round trips: {label}")
            here = folder / f"count {label}"
            here.mkdir()
            table.rows.append((label, *_counted(case, block_time_s, here)))
    return table


def _counted(case: Case, block_time_s: int | None, folder: Path) -> tuple[str, ...]:
    count = case.at_once if case.at_once > 1 else 10 if block_time_s is None else 3
    with ExitStack() as stack:
        node = stack.enter_context(chain.anvil(folder))
        payer = Payer(node)
        proxy = stack.enter_context(counting_rpc(node, folder))
        subject = stack.enter_context(
            facilitator(case.name, node, folder / "facilitator", rpc=proxy, options=case.options)
        )
        settle_all(subject, payer.payments(WARM_UP), 1)
        if block_time_s is not None:
            chain.mine_every(node, block_time_s)
        payments = payer.payments(count)
        _, verifying = _counting(proxy, lambda: verify_all(subject, payments, case.at_once))
        settled, settling = _counting(proxy, lambda: settle_all(subject, payments, case.at_once))
    verify, settle, receipts = verifying.total() / count, settling.total() / count, settling[_RECEIPT] / count
    figures = (verify, settle, receipts, verify + settle, verify + settle - receipts)
    return (*(number(figure, 1) for figure in figures), number(percentile(settled.durations_s, 0.5), 2))


def _counting(proxy: Program, ask: Callable[[], T]) -> tuple[T, Counter[str]]:
    before = _counts(proxy)
    result = ask()
    return result, _counts(proxy) - before


def _counts(proxy: Program) -> Counter[str]:
    with urlopen(proxy.url, timeout=TIMEOUT_S) as answer:
        return Counter(json.loads(answer.read()))


def _gas(folder: Path, say: Callable[[str], None]) -> Table:
    """From the receipts of settlements, ours and the official ones'."""
    note = (
        "Of the whole transaction, shared by its payments. The token is a minimal one, without FiatToken's proxy and "
        "blacklist: compare only here."
    )
    table = Table("Gas per payment", ("payment", "obol", "× single", "official"), notes=(note,))
    say("gas per payment")
    with chain.anvil(folder) as node:
        first, single = _gas_alone(OBOL, node, folder)
        official_first, official = _gas_alone(OFFICIAL, node, folder)
        table.rows.append(("single, the first to its payee", number(first), "", number(official_first)))
        table.rows.append(("single", number(single), ratio(single, single), number(official)))
        for wanted in BATCHES:
            payments, gas = _gas_together(wanted, node, folder)
            table.rows.append((f"in a batch of {payments}", number(gas), ratio(gas, single), MISSING))
    return table


def _gas_alone(name: str, node: Program, folder: Path) -> tuple[int, int]:
    """Of the first payment to somebody, and of the second."""
    payer = Payer(node, pay_to=LocalSigner.generate().address)
    with facilitator(name, node, folder / f"gas-{name}") as subject:
        settle_all(subject, Payer(node).payments(WARM_UP), 1)  # the key's own first transactions
        first, second = (chain.gas_used(node, *settle_all(subject, payer.payments(1), 1).transactions) for _ in "12")
    return first, second


def _gas_together(wanted: int, node: Program, folder: Path) -> tuple[int, float]:
    """How many of so many payments came into one transaction at most, and the gas of each of these."""
    options = ("--batch-max", str(wanted), "--batch-wait", "2")
    payer = Payer(node)
    with facilitator(OBOL, node, folder / f"gas-{wanted}", options=options) as subject:
        settle_all(subject, payer.payments(1), 1)
        settled = settle_all(subject, payer.payments(wanted), wanted)
    transaction, payments = Counter(settled.transactions).most_common(1)[0]
    return payments, chain.gas_used(node, transaction) / payments
