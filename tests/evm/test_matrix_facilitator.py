"""The fault-injection matrix of our facilitator: it dies at every step of a settlement, and the next one goes on.

Whatever happens: each payment is one transfer of its amount, no authorization is tried twice, the answer names that
transfer, and no nonce of the gas key is left out. The counts are printed at the end of the run.
"""

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from obol.adapters.contracts.batcher import load_batcher
from obol.adapters.facilitator_http import HttpFacilitator
from tests.adapters.payments import PRICE_ATOMIC, account
from tests.evm.anvil import Anvil
from tests.evm.contracts import deploy_batcher
from tests.evm.forked import Forked, Forks, reserved_port, running
from tests.evm.matrix_facilitator import FacilitatorJob
from tests.evm.matrix_facilitator_plan import FIRST, SECOND, TROUBLED, kills_at
from tests.evm.matrix_settling import STUCK, Case, Counts, Trouble, read_book
from tests.evm.matrix_steps import Kill
from tests.evm.matrix_table import printed

pytestmark = pytest.mark.timeout(150)
AT_ONCE = 8
MOST = 0.9
"""Of the planned deaths must happen: on a busy machine things can come in another order than when they were planned."""
BUYERS = [account(number) for number in (21, 22, 23)]
FUNDS_ATOMIC = 10_000 * PRICE_ATOMIC
ANSWER_S = 10.0
REBROADCAST_S = 0.1
NEVER_S = 3600.0
STUCK_S = 0.3
LOOKS = 500
REPLACED, SENT = "journal.add_attempt after", "chain.send_raw after"
BLOCK_S = 0.1
ALONE, TOGETHER = 1, 4
"""Payments of a case: a transaction each, or in one batch."""
EVERY_ROW = pytest.mark.parametrize("batch_max", [ALONE, TOGETHER], ids=["alone", "together"])
RECOVERIES = ("journal.add after", "chain.send_raw after", "journal.mark mined after")
"""What a facilitator can leave behind: what was not sent; what was sent; what was mined, and nobody was told."""


@dataclass
class Stand:
    """What all cases of one test share."""

    anvil: Anvil
    facilitators: Forks
    folder: Path
    leaving: AsyncExitStack
    batch_max: int
    cases: list[Case] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=itertools.count)
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))

    async def case(self, kills: Sequence[Kill] = (), trouble: Trouble = Trouble.NONE) -> Case:
        """On an empty folder."""
        folder = self.folder / str(next(self.numbers))
        folder.mkdir()
        port = self.leaving.enter_context(reserved_port())
        client = HttpFacilitator(f"http://127.0.0.1:{port}", settle_timeout_s=ANSWER_S)
        self.leaving.push_async_callback(client.close)
        job = FacilitatorJob(
            folder=str(folder),
            port=port,
            rpc_url=self.anvil.url,
            gas_key=secrets.token_hex(32),
            batch_max=self.batch_max,
            rebroadcast_s=REBROADCAST_S,
            replace_after_s=STUCK_S if trouble in STUCK else NEVER_S,
        )
        name = ", then at ".join(["killed", *map(str, kills)]).replace(", then", "", 1)
        case = Case(self.anvil, self.facilitators, client, job, BUYERS, f"{name} ({trouble})", trouble)
        await case.prepare()
        self.cases.append(case)
        return case


@pytest.fixture(scope="module")
def facilitators_socket() -> Iterator[Path]:
    with running("tests.evm.matrix_facilitator") as socket:
        yield socket


@pytest.fixture
async def stand(anvil: Anvil, facilitators_socket: Path, tmp_path: Path, batch_max: int) -> AsyncIterator[Stand]:
    await deploy_batcher(anvil)
    for buyer in BUYERS:
        await anvil.mint(buyer.address, FUNDS_ATOMIC)
    async with Forks(facilitators_socket) as facilitators, AsyncExitStack() as leaving:
        yield Stand(anvil, facilitators, tmp_path, leaving, batch_max)


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[dict[str, Counts]]:
    with printed(request, "a facilitator dies", Counts) as rows:
        yield rows


async def steps_of(case: Case, kills: Sequence[Kill] = ()) -> list[str]:
    """The labels that a facilitator goes through after these deaths, in order."""
    await case.die(kills)
    steps = await case.live()
    await case.finish()
    return steps


async def steps_of_trouble(case: Case, *until: str) -> list[str]:
    """The labels up to the last of these, which come in this order."""
    facilitator = await case.start()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(case.ask_for_all(facilitator))
        steps = await through(facilitator, until)
        await case.end_trouble()
    await facilitator.stop()
    await case.finish()
    return steps


async def through(facilitator: Forked, labels: Sequence[str]) -> list[str]:
    """The labels up to the last of these, once it got there."""
    for _ in range(LOOKS):
        steps, end = list(facilitator.steps), 0
        for label in labels:
            end = steps.index(label, end) + 1 if label in steps[end:] else len(steps) + 1
        if end <= len(steps):
            return steps[:end]
        await asyncio.sleep(0.01)
    raise TimeoutError(f"only {steps}")


@asynccontextmanager
async def blocks(anvil: Anvil) -> AsyncIterator[None]:
    """One after the other, for as long as this lasts."""

    async def mine() -> None:
        while True:
            await anvil.mine()
            await asyncio.sleep(BLOCK_S)

    async with asyncio.TaskGroup() as tasks:
        mining = tasks.create_task(mine())
        yield
        mining.cancel()


async def run_all(stand: Stand, work: Sequence[Callable[[], Awaitable[object]]]) -> None:
    """A few at a time."""

    async def run_one(each: Callable[[], Awaitable[object]]) -> None:
        async with stand.slots:
            await each()

    async with asyncio.TaskGroup() as tasks:
        for each in work:
            tasks.create_task(run_one(each))


async def judge_all(stand: Stand, table: dict[str, Counts], row: str) -> None:
    """Every case that there was, the unkilled ones too."""
    book = await read_book(stand.anvil)
    for case in stand.cases:
        await case.judge(book)
    name = f"{'one' if stand.batch_max == ALONE else stand.batch_max} at once: {row}"
    table[name] = Counts()
    for case in stand.cases:
        table[name].add(case.counts)
    broken = [case.story() for case in stand.cases if case.problems]
    assert not broken, "\n" + "\n".join(broken)
    waiting = await stand.anvil.rpc("txpool_status")
    assert {int(each, 16) for each in waiting.values()} == {0}
    assert table[name].killed >= MOST * sum(case.deaths for case in stand.cases)


async def killed_at(case: Case, kills: Sequence[Kill]) -> None:
    """The last facilitator does not die."""
    await case.die(kills)
    await case.finish()


async def undeploy_batcher(anvil: Anvil) -> None:
    """As if it had never been there."""
    await anvil.rpc("anvil_setCode", load_batcher().address, "0x")
    await anvil.rpc("anvil_setNonce", load_batcher().address, "0x0")


@EVERY_ROW
async def test_a_facilitator_killed_at_any_step_of_a_settlement(stand: Stand, table: dict[str, Counts]) -> None:
    steps = await steps_of(await stand.case())
    kills = [[kill] for kill in kills_at(steps, FIRST)]
    await run_all(stand, [partial(killed_at, await stand.case(each), each) for each in kills])
    await judge_all(stand, table, "killed")


@EVERY_ROW
async def test_a_facilitator_killed_again_while_it_recovers(stand: Stand, table: dict[str, Counts]) -> None:
    kills: list[list[Kill]] = []
    for first in map(Kill, RECOVERIES):
        steps = await steps_of(await stand.case([first]), [first])
        kills.extend([first, second] for second in kills_at(steps, SECOND))
    await run_all(stand, [partial(killed_at, await stand.case(each), each) for each in kills])
    await judge_all(stand, table, "killed twice")


@EVERY_ROW
async def test_a_facilitator_killed_while_it_replaces_what_is_stuck(stand: Stand, table: dict[str, Counts]) -> None:
    """Afterwards any of the transactions of a nonce is mined."""
    async with blocks(stand.anvil):
        steps = await steps_of_trouble(await stand.case(trouble=Trouble.STUCK_OLDEST), REPLACED, SENT)
        kills = [[kill] for kill in kills_at(steps, TROUBLED, since=steps.index(SENT) + 1)]
        cases = [(await stand.case(each, trouble), each) for each in kills for trouble in STUCK]
        await run_all(stand, [partial(killed_at, *each) for each in cases])
    await judge_all(stand, table, "replacing")


@EVERY_ROW
async def test_a_facilitator_killed_again_after_it_replaced(stand: Stand, table: dict[str, Counts]) -> None:
    """The replacement was written down, or sent too; the next one dies while one of the two is mined."""
    async with blocks(stand.anvil):
        steps = await steps_of_trouble(await stand.case(trouble=Trouble.STUCK_OLDEST), REPLACED, SENT)
        cases: list[tuple[Case, list[Kill]]] = []
        firsts = [Kill(REPLACED), *[Kill(SENT, steps.count(SENT))] * 2]
        for first, trouble in zip(firsts, STUCK, strict=True):
            again = await steps_of(await stand.case([first], trouble), [first])
            kills = [[first, second] for second in kills_at(again, SECOND)]
            cases.extend([(await stand.case(each, trouble), each) for each in kills])
        await run_all(stand, [partial(killed_at, *each) for each in cases])
    await judge_all(stand, table, "replacing, and again")


@EVERY_ROW
async def test_a_facilitator_killed_while_it_takes_back_what_is_refused(stand: Stand, table: dict[str, Counts]) -> None:
    """Its account has no money for gas; when it is dead there is some."""
    steps = await steps_of_trouble(await stand.case(trouble=Trouble.POOR), "journal.mark void after", "answer after")
    kills = [[kill] for kill in kills_at(steps, TROUBLED, since=steps.index("chain.send_raw before"))]
    cases = [(await stand.case(each, Trouble.POOR), each) for each in kills]
    await run_all(stand, [partial(killed_at, *each) for each in cases])
    await judge_all(stand, table, "taking back")


@pytest.mark.parametrize("batch_max", [TOGETHER])
async def test_a_facilitator_killed_while_it_deploys_the_batcher(stand: Stand, table: dict[str, Counts]) -> None:
    """One after the other: there is one batcher on a chain."""
    await undeploy_batcher(stand.anvil)
    steps = await steps_of(await stand.case())
    for kill in kills_at(steps[: steps.index("journal.mark mined after") + 1], TROUBLED):
        await undeploy_batcher(stand.anvil)
        await killed_at(await stand.case([kill]), [kill])
    assert len(await stand.anvil.rpc("eth_getCode", load_batcher().address, "latest")) > len("0x")
    await judge_all(stand, table, "deploying")
