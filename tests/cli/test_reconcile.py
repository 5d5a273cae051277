import asyncio
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from obol.cli.exit_codes import ExitCode
from obol.cli.reconcile_sources import CLOCK_SKEW_S, ChainSource, first_block_at
from obol.core.transfer import Transfer
from tests.cli.conftest import Run
from tests.cli.kept_books import fund, keep_books
from tests.cli.program import obol, started
from tests.cli.test_receipts import on
from tests.fakes.model_server import FakeModelServer

PAY_TO = "0x" + "5e" * 20


@dataclass(frozen=True, slots=True)
class FakeBlock:
    number: int
    timestamp_s: int


class FakeChain:
    """A block every ten seconds."""

    def __init__(self, newest: int) -> None:
        self.newest = newest
        self.ranges: list[tuple[int, int]] = []

    async def block(self, which: int | str = "latest") -> FakeBlock:
        number = which if isinstance(which, int) else self.newest
        return FakeBlock(number, 1000 + 10 * number)

    async def transfers(self, token: str, pay_to: str, from_block: int, to_block: int) -> list[Transfer]:
        self.ranges.append((from_block, to_block))
        return []


def test_a_sale_that_the_chain_does_not_show_ends_with_4(run: Run, tmp_path: Path) -> None:
    ids = asyncio.run(keep_books(tmp_path))

    result = run("reconcile", *on(tmp_path))

    (account,) = json.loads(result.stdout)
    assert result.exit_code == ExitCode.REFUSED
    assert [(one["what"], one["sale"]) for one in account["findings"]] == [("missing", one) for one in ids]
    assert (account["ledger_atomic"], account["chain_atomic"]) == ("2000", "0")


def test_money_that_no_sale_explains_is_summed(run: Run, tmp_path: Path) -> None:
    asyncio.run(keep_books(tmp_path, settled=1, pay_to=PAY_TO))
    asyncio.run(fund(tmp_path, PAY_TO, 77))

    # The sales of these tests are dated ahead: as if no time were asked for.
    result = run("reconcile", "--since", "2020-01-01", *on(tmp_path))

    assert json.loads(result.stdout)[0]["unexplained"] == {"count": 1, "ledger_atomic": "0", "chain_atomic": "77"}


def test_without_sales_there_is_nothing_to_explain(run: Run, tmp_path: Path) -> None:
    asyncio.run(keep_books(tmp_path, settled=0))

    result = run("reconcile", *on(tmp_path))

    assert (result.exit_code, json.loads(result.stdout)) == (0, [])


def test_it_must_be_said_where_the_money_moved(run: Run, tmp_path: Path) -> None:
    result = run("reconcile", "--data-dir", str(tmp_path))

    assert result.exit_code == ExitCode.USAGE
    assert "--rpc" in result.stderr


@pytest.mark.parametrize(("time_s", "first"), [(0, 0), (1000, 0), (1001, 1), (1500, 50), (1501, 51), (9999, 100)])
async def test_the_first_block_of_a_time_is_found(time_s: float, first: int) -> None:
    assert await first_block_at(FakeChain(100), time_s, 100) == first


async def test_only_confirmed_blocks_are_read_and_later_sales_are_not_due() -> None:
    chain = FakeChain(100)
    source = ChainSource(chain, "eip155:84532", confirmations=11)

    reading = await source.read("eip155:84532", "0x1", {PAY_TO}, 1500 + CLOCK_SKEW_S)

    assert chain.ranges == [(50, 90)]
    assert reading.until_s == 1900 - CLOCK_SKEW_S


async def test_a_sale_of_a_running_gateway_is_sound_and_explained(tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    payer = (await obol("wallet", "new", "--key-file", str(key_file))).json["address"]
    await obol("devnet", "fund", payer, "1", "--data-dir", str(tmp_path))
    sell = ("sell", "inference", "qwen", "--pay-to", PAY_TO, "--listen", "127.0.0.1:0", *on(tmp_path))
    body = json.dumps({"model": "tiny-random", "messages": [{"role": "user", "content": "hi"}]})

    async with FakeModelServer() as model, started(*sell, "--upstream", model.url) as gateway:
        await gateway.read_summary()
        url = f"{gateway.url}/v1/chat/completions"
        paid = await obol("pay", url, "--key-file", str(key_file), "--max-price", "1", "-d", body)
        checked = await obol("ledger", "check", *on(tmp_path))
        reconciled = await obol("reconcile", *on(tmp_path))

    assert (paid.code, checked.code, reconciled.code) == (0, 0, 0)
    assert reconciled.json[0]["matched"] == {"count": 1, "ledger_atomic": "1000", "chain_atomic": "1000"}
