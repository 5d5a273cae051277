"""The journal of one key: what it was told is there later, and a nonce or a payment is never given out twice."""

import asyncio
import contextlib
import itertools
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from obol.adapters.evm_journal import _STANDING, Attempt, CallState, EvmJournal, JournalCall

TOKEN = "0x036cbd53842c5426634e7929541ec2318f3dcf7e"
NEVER = 2**40
"""A nonce that nothing reaches."""
_numbers = itertools.count(1)


def an_attempt(max_fee_wei: int = 10**9) -> Attempt:
    """One with a hash of its own."""
    number = next(_numbers)
    return Attempt(f"0x{number:064x}", number.to_bytes(8, "big"), max_fee_wei, 3, 1_800_000_000.25 + number)


async def add(journal: EvmJournal, *keys: str, nonce: int, attempt: Attempt | None = None) -> JournalCall:
    return await journal.add(keys, nonce, TOKEN, b"\xa9\x05\x9c\xbb", 100_000, attempt or an_attempt())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "sender.sqlite3"


@contextlib.asynccontextmanager
async def opened(path: Path) -> AsyncIterator[EvmJournal]:
    journal = await EvmJournal.open(path)
    try:
        yield journal
    finally:
        await journal.close()


@pytest.fixture
async def journal(path: Path) -> AsyncIterator[EvmJournal]:
    async with opened(path) as journal:
        yield journal


# -------------------------------------------------------------------------------------------------------------- calls


async def test_a_call_is_found_by_each_of_its_keys_as_it_was_written_down(path: Path) -> None:
    attempt = an_attempt(max_fee_wei=2**200)
    async with opened(path) as journal:
        call = await journal.add(("a", "b"), 7, TOKEN, b"\0\xff", 100_000, attempt)
        assert (call.nonce, call.state, call.mined, call.attempts) == (7, CallState.OPEN, "", (attempt,))
    async with opened(path) as again:
        assert await again.by_key("a") == await again.by_key("b") == call
        assert await again.by_key("c") is None
        assert await again.standing(NEVER) == [call]


async def test_open_calls_come_by_nonce(journal: EvmJournal) -> None:
    for nonce in (12, 9, 100, 11):
        await add(journal, f"key {nonce}", nonce=nonce)
    assert [call.nonce for call in await journal.standing(NEVER)] == [9, 11, 12, 100]


async def test_what_was_mined_at_a_late_nonce_stands_too(journal: EvmJournal) -> None:
    """A reorganisation can take it back."""
    for nonce in range(6):
        call = await add(journal, f"key {nonce}", nonce=nonce)
        await journal.mark(call, (CallState.MINED, CallState.VOID, CallState.OPEN)[nonce % 3], "0xab")
    assert [call.nonce for call in await journal.standing(0)] == [0, 2, 3, 5]
    assert [call.nonce for call in await journal.standing(3)] == [2, 3, 5]
    assert [call.nonce for call in await journal.standing(4)] == [2, 5]


async def test_a_key_that_is_in_use_is_refused_and_nothing_is_written_down(journal: EvmJournal) -> None:
    first = await add(journal, "a", nonce=1)
    with pytest.raises(ValueError, match="sent before"):
        await add(journal, "b", "a", nonce=2)
    await journal.mark(first, CallState.MINED, first.attempts[0].transaction)
    with pytest.raises(ValueError, match="sent before"):  # mined or not: it is paid once
        await add(journal, "a", nonce=3)
    assert await journal.by_key("b") is None
    assert (await add(journal, "b", nonce=2)).nonce == 2


async def test_a_nonce_that_is_in_use_is_refused_and_nothing_is_written_down(journal: EvmJournal) -> None:
    first = await add(journal, "a", nonce=1)
    for state in (CallState.OPEN, CallState.MINED):
        await journal.mark(first, state)
        with pytest.raises(ValueError, match="nonce is in use"):
            await add(journal, "b", nonce=1)
    assert await journal.by_key("b") is None


async def test_of_two_that_send_one_payment_at_once_exactly_one_writes_it_down(journal: EvmJournal) -> None:
    results = await asyncio.gather(*(add(journal, "a", nonce=n) for n in range(8)), return_exceptions=True)
    assert [type(one) for one in results].count(ValueError) == 7
    assert len(await journal.standing(NEVER)) == 1


async def test_the_nonce_and_the_keys_of_a_void_call_are_free(journal: EvmJournal) -> None:
    first = await add(journal, "a", "b", nonce=1)
    await journal.mark(first, CallState.VOID)
    assert await journal.standing(NEVER) == []
    assert await journal.by_key("a") is None
    second = await add(journal, "a", nonce=1)
    assert second.id != first.id
    assert await journal.by_key("a") == second
    assert await journal.by_key("b") is None


async def test_what_is_sent_again_unchanged_is_the_new_calls_transaction(path: Path) -> None:
    """Signatures repeat: the same nonce, data and fees are the same transaction."""
    attempt = an_attempt()
    async with opened(path) as journal:
        await journal.mark(await add(journal, "a", nonce=1, attempt=attempt), CallState.VOID)
        second = await add(journal, "a", nonce=1, attempt=replace(attempt, at_s=attempt.at_s + 1))
    async with opened(path) as again:
        assert await again.standing(NEVER) == [second]
        assert len(second.attempts) == 1


async def test_a_call_for_nothing_takes_a_nonce_and_no_key(journal: EvmJournal) -> None:
    fillers = [await add(journal, nonce=nonce) for nonce in (1, 2)]
    assert await journal.standing(NEVER) == fillers


async def test_attempts_are_kept_oldest_first_and_each_once(path: Path) -> None:
    async with opened(path) as journal:
        call = await add(journal, "a", nonce=1)
        await add(journal, "b", nonce=2)
        later = [an_attempt(max_fee_wei=fee) for fee in (30, 20)]
        for attempt in (*later, later[0]):
            await journal.add_attempt(call, attempt)
    async with opened(path) as again:
        assert await again.by_key("a") == replace(call, attempts=(*call.attempts, *later))


async def test_what_stands_is_found_without_reading_all_that_was_mined(path: Path) -> None:
    async with opened(path) as journal:
        await add(journal, "a", nonce=1)
    with contextlib.closing(sqlite3.connect(path)) as database:
        plan = [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {_STANDING}", (1,))]
    assert [step for step in plan if "call_" in step]
    assert not [step for step in plan if step.startswith("SCAN") and "INDEX" not in step]


async def test_a_filler_is_told_from_the_call_itself(path: Path) -> None:
    filler = replace(an_attempt(), is_filler=True)
    async with opened(path) as journal:
        call = await add(journal, "a", nonce=1)
        await journal.add_attempt(call, filler)
        await journal.mark(call, CallState.VOID)
        again = await journal.add((), 1, TOKEN, b"", 21_000, replace(filler, is_filler=False))
    async with opened(path) as journal:
        assert await journal.standing(NEVER) == [again]  # the very same transaction is now what the call asks for


async def test_the_last_nonces_are_of_what_is_not_void(journal: EvmJournal) -> None:
    assert await journal.last_nonces() == (-1, -1)
    for nonce, state in ((5, CallState.MINED), (7, CallState.OPEN), (3, CallState.MINED), (9, CallState.VOID)):
        await journal.mark(await add(journal, f"key {nonce}", nonce=nonce), state)
    assert await journal.last_nonces() == (5, 7)


async def test_nonces_that_were_given_back_are_known(journal: EvmJournal) -> None:
    for number, nonce in enumerate((1, 2, 2, 4)):
        await journal.mark(await add(journal, f"key {number}", nonce=nonce), CallState.VOID)
    await add(journal, "open", nonce=2)
    await add(journal, "another", nonce=3)
    assert await journal.given_back(0) == {1, 2, 4}
    assert await journal.given_back(2) == {2, 4}
    assert await journal.given_back(5) == set()


async def test_a_mined_call_is_not_open_until_its_block_is_taken_back(path: Path) -> None:
    async with opened(path) as journal:
        call = await add(journal, "a", nonce=1)
        await journal.mark(call, CallState.MINED, "0xab")
        assert await journal.standing(NEVER) == []
    async with opened(path) as again:
        mined = await again.by_key("a")
        assert mined == replace(call, state=CallState.MINED, mined="0xab")
        await again.mark(mined, CallState.OPEN)
        assert await again.standing(NEVER) == [call]


class JournalMachine(RuleBasedStateMachine):
    """Anything a sender may write down, with restarts in between, against a dict of calls."""

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.model: dict[int, tuple[JournalCall, Sequence[str]]] = {}
        self.open()

    def open(self) -> None:
        self.journal = self.runner.run(EvmJournal.open(Path(self.folder.name) / "journal"))

    def teardown(self) -> None:
        self.runner.run(self.journal.close())
        self.runner.close()
        self.folder.cleanup()

    def in_use(self) -> list[tuple[JournalCall, Sequence[str]]]:
        return [one for one in self.model.values() if one[0].state is not CallState.VOID]

    @rule(keys=st.lists(st.sampled_from("abcd"), max_size=3, unique=True), nonce=st.integers(0, 3))
    def add(self, keys: Sequence[str], nonce: int) -> None:
        if any(nonce == call.nonce or set(keys) & set(used) for call, used in self.in_use()):
            with pytest.raises(ValueError, match=r"sent before|in use"):
                self.runner.run(add(self.journal, *keys, nonce=nonce))
            return
        what = f"0x{nonce} {keys}"
        attempt = replace(an_attempt(), transaction=what, raw=what.encode())  # the same when it is sent again
        call = self.runner.run(add(self.journal, *keys, nonce=nonce, attempt=attempt))
        self.model[call.id] = (call, keys)

    @precondition(lambda self: self.in_use())
    @rule(data=st.data(), event=st.sampled_from(["attempt", "mined", "void", "taken back"]))
    def go_on(self, data: st.DataObject, event: str) -> None:
        call, keys = data.draw(st.sampled_from(self.in_use()))
        if event == "attempt":
            attempt = an_attempt()
            self.runner.run(self.journal.add_attempt(call, attempt))
            call = replace(call, attempts=(*call.attempts, attempt))
        else:
            state = {"mined": CallState.MINED, "void": CallState.VOID}.get(event, CallState.OPEN)
            mined = call.attempts[-1].transaction if state is CallState.MINED else ""
            self.runner.run(self.journal.mark(call, state, mined))
            call = replace(call, state=state, mined=mined)
        self.model[call.id] = (call, keys)

    @rule()
    def restart(self) -> None:
        self.runner.run(self.journal.close())
        self.open()

    @invariant()
    def holds_what_it_was_told(self) -> None:
        for first in (0, 2, NEVER):
            standing = [call for call, _ in self.in_use() if call.state is CallState.OPEN or call.nonce >= first]
            assert self.runner.run(self.journal.standing(first)) == sorted(standing, key=lambda call: call.nonce)
        for key in "abcd":
            found = next((call for call, keys in self.in_use() if key in keys), None)
            assert self.runner.run(self.journal.by_key(key)) == found


TestJournalMachine = JournalMachine.TestCase
TestJournalMachine.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)
