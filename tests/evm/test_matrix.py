"""The fault-injection matrix: a seller that dies at every step of a sale, and counterparts that fail and lie.

Whatever happens: nobody pays for nothing, nothing is served for nothing beyond the policy's bound, and every unit that
reached the seller is named by one sale. The counts are printed at the end of the run.
"""

import asyncio
import contextlib
import itertools
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import aiohttp
import msgspec
import pytest

from obol.adapters.clock import SystemClock
from obol.adapters.evm_signing import LocalTransactionSigner
from obol.core.offer import SettlementPolicy
from obol.x402.facilitator import Facilitator
from tests.evm.anvil import Anvil
from tests.evm.facilitating import GAS_KEY, evm_facilitator
from tests.evm.forked import Forks, running
from tests.evm.matrix import PATIENCE_S, Case, Counts, Terms
from tests.evm.matrix_faults import OF_FACILITATORS, OF_RPC, Fault, Scene, serving
from tests.evm.matrix_seller import MODEL, SellerJob
from tests.evm.matrix_steps import Kill
from tests.evm.matrix_table import printed
from tests.fakes.model_server import Behaviour, FakeModelServer

pytestmark = pytest.mark.timeout(300)
AT_ONCE = 6
HELD_S = 0.04
"""Long enough for what does not wait for the held step to go on; not so long that the sale is over."""
DEATH_S = 3.0
MOST = 0.9
"""Of the planned deaths must happen: on a busy machine things can come in another order than when they were planned."""
SETTLE_TIMEOUT_S = 1.5
"""Of the seller's client; a facilitator takes 0.1 s, or 0.5 s when its chain does not answer."""
ROWS = [Terms(policy, stream) for policy in SettlementPolicy for stream in (False, True)]
EVERY_ROW = pytest.mark.parametrize("terms", ROWS, ids=str)


@dataclass
class Stand:
    """What all cases of one test share."""

    anvil: Anvil
    sellers: Forks
    upstream: FakeModelServer
    facilitator: Facilitator
    facilitator_url: str
    session: aiohttp.ClientSession
    folder: Path
    numbers: Iterator[int] = field(default_factory=itertools.count)
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    minting: asyncio.Lock = field(default_factory=asyncio.Lock)

    def case(self, terms: Terms, name: str) -> Case:
        folder = self.folder / str(next(self.numbers))
        folder.mkdir()
        job = SellerJob(
            str(folder),
            "0x" + secrets.token_hex(20),
            terms.policy,
            self.upstream.url,
            self.facilitator_url,
            self.anvil.url,
        )
        return Case(self.anvil, self.session, job, terms, name)


@pytest.fixture(scope="module")
def sellers_socket() -> Iterator[Path]:
    with running("tests.evm.matrix_seller") as socket:
        yield socket


@pytest.fixture
async def stand(anvil: Anvil, sellers_socket: Path, tmp_path: Path) -> AsyncIterator[Stand]:
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        await anvil.fund_native(LocalTransactionSigner(GAS_KEY).address)
        facilitator = await enter(evm_facilitator(anvil.url, tmp_path, SystemClock()))
        yield Stand(
            anvil,
            await enter(Forks(sellers_socket)),
            await enter(FakeModelServer((MODEL,), behaviour=Behaviour(tokens=4, token_interval_s=0.01))),
            facilitator,
            await enter(serving(facilitator)),
            await enter(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE_S))),
            tmp_path,
        )


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[dict[str, Counts]]:
    with printed(request, "fault injection", Counts) as rows:
        yield rows


async def die(stand: Stand, case: Case, kills: Sequence[Kill]) -> None:
    """One seller after the other dies, each while it does what a seller does with what the one before left."""
    await case.prepare(stand.minting)
    for kill in kills:
        seller = await stand.sellers.start(case.killed_at(kill))
        await case.until_finished(seller)
        if not seller.ended.is_set():
            await case.present(seller)
        with contextlib.suppress(TimeoutError):  # chunks came together, and it never got to the step
            async with asyncio.timeout(DEATH_S):
                await seller.ended.wait()
        case.counts.killed += seller.is_killed
        await seller.stop()
        await case.note_exposure()


async def killed_at(stand: Stand, terms: Terms, kills: Sequence[Kill]) -> Case:
    """The last seller does not die."""
    case = stand.case(terms, "killed at " + ", then at ".join(map(str, kills)))
    await die(stand, case, kills)
    await case.finish(await stand.sellers.start(case.job))
    await case.judge()
    return case


async def steps_of(stand: Stand, terms: Terms, kills: Sequence[Kill] = ()) -> list[str]:
    """The labels that a seller goes through after these deaths, in order."""
    case = stand.case(terms, "nothing")
    await die(stand, case, kills)
    last = await stand.sellers.start(case.job)
    await case.until_finished(last)
    await case.present(last)
    await case.until_finished(last)
    await last.stop()
    return last.steps


async def living(stand: Stand, terms: Terms, fault: Fault) -> Case:
    """The seller lives through a fault of its counterparts, which is over when its buyer comes again."""
    case = stand.case(terms, fault.name)
    scene = Scene(stand.anvil, stand.facilitator, stand.facilitator_url, Path(case.job.folder))
    async with fault.rig(scene, terms) as rig:
        case.job = msgspec.structs.replace(
            case.job, facilitator_url=rig.facilitator_url, rpc_url=rig.rpc_url, settle_timeout_s=SETTLE_TIMEOUT_S
        )
        await case.prepare(stand.minting)
        seller = await stand.sellers.start(case.job)
        await rig.arm()
        await case.present(seller)
        await case.until_fault_met(seller)
        await case.note_exposure()
        if not rig.is_met():
            case.problems.append("the fault was never met")
        await rig.lift()
        await case.finish(seller)
        await case.judge(is_refused=fault.is_refused)
    return case


def kills_at(terms: Terms, steps: Sequence[str], holds: Sequence[float] = (0.0, HELD_S)) -> Iterator[Kill]:
    """Each step, at once and held up before the death."""
    reached: dict[str, int] = {}
    for label in steps:
        nth = reached[label] = reached.get(label, 0) + 1
        if label.endswith(" during"):
            if label == "facilitator.settle during":
                yield from (Kill(label, nth, held_s) for held_s in (0.002, 0.01, 0.03))
        elif label != "upstream chunk" or nth <= (3 if terms.stream else 1):  # later ones may arrive together
            yield from (Kill(label, nth, held_s) for held_s in holds)


async def run_all(
    stand: Stand, table: dict[str, Counts], row: str, work: Sequence[Callable[[], Awaitable[Case]]]
) -> None:
    """A few at a time."""

    async def run_one(each: Callable[[], Awaitable[Case]]) -> Case:
        async with stand.slots:
            return await each()

    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(run_one(each)) for each in work]
    cases = [task.result() for task in running]
    table[row] = Counts()
    for case in cases:
        table[row].add(case.counts)
    assert not any(case.problems for case in cases), "\n" + "\n".join(case.story() for case in cases if case.problems)


@EVERY_ROW
async def test_a_seller_killed_at_any_step_of_a_sale(stand: Stand, table: dict[str, Counts], terms: Terms) -> None:
    steps = await steps_of(stand, terms)
    work = [partial(killed_at, stand, terms, [kill]) for kill in kills_at(terms, steps)]
    await run_all(stand, table, f"{terms}: killed", work)
    assert table[f"{terms}: killed"].killed >= MOST * len(work)


@EVERY_ROW
async def test_a_seller_killed_again_while_it_recovers(stand: Stand, table: dict[str, Counts], terms: Terms) -> None:
    """The money has moved, and the ledger does not know; the next one dies at any step of finding out and serving."""
    first = Kill("facilitator.settle after")
    steps = await steps_of(stand, terms, [first])
    work = [partial(killed_at, stand, terms, [first, kill]) for kill in kills_at(terms, steps, holds=[0.0])]
    await run_all(stand, table, f"{terms}: killed twice", work)
    assert table[f"{terms}: killed twice"].killed >= MOST * 2 * len(work)


@EVERY_ROW
async def test_facilitators_and_rpc_endpoints_that_fail_and_lie(
    stand: Stand, table: dict[str, Counts], terms: Terms
) -> None:
    async with asyncio.TaskGroup() as tasks:
        for name, faults in (("RPC", OF_RPC), ("facilitator", OF_FACILITATORS)):
            work = [partial(living, stand, terms, fault) for fault in faults]
            tasks.create_task(run_all(stand, table, f"{terms}: {name}", work))
