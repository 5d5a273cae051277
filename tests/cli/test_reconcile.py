import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest

from obol.adapters.chain_evm import Log
from obol.cli.exit_codes import ExitCode
from obol.cli.known_transfers import read_known
from obol.cli.reconcile_sources import ChainSource, first_block_at
from obol.core.reconciliation import CLOCK_SKEW_S
from obol.core.reconciliation_report import KnownTransfers
from obol.core.transfer import Transfer
from obol.errors import SettingsError
from obol.x402.eip712 import checksum_address
from tests.cli.conftest import Run
from tests.cli.kept_books import fund, keep_a_refused_sale_that_was_paid, keep_books
from tests.cli.program import obol, started
from tests.cli.test_receipts import on
from tests.fakes.model_server import FakeModelServer

PAY_TO = "0x" + "5e" * 20
IN_USDC = ("--network", "base-sepolia", "--asset", "usdc")
ALL = ("--since", "2020-01-01")
"""The sales of these tests are dated ahead: as if no time were asked for."""


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

    async def logs(
        self, address: str, topics: Sequence[str | Sequence[str] | None], from_block: int, to_block: int
    ) -> list[Log]:
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

    result = run("reconcile", *ALL, *on(tmp_path))

    assert json.loads(result.stdout)[0]["unexplained"] == {"count": 1, "ledger_atomic": "0", "chain_atomic": "77"}


@pytest.mark.parametrize("chosen", [("--since", "1d"), ("--pay-to", PAY_TO)])
def test_without_sales_there_is_nothing_to_explain_unless_it_is_asked_for(
    run: Run, tmp_path: Path, chosen: tuple[str, str]
) -> None:
    asyncio.run(keep_books(tmp_path, settled=0))

    result = run("reconcile", *chosen, *on(tmp_path))

    if chosen[0] == "--since":
        assert (result.exit_code, json.loads(result.stdout)) == (0, [])
        assert "--pay-to" in result.stderr
    else:
        assert (result.exit_code, result.stdout) == (ExitCode.USAGE, "")


def test_money_at_an_address_that_no_sale_names_is_listed(run: Run, tmp_path: Path) -> None:
    """As after the loss of a ledger."""
    asyncio.run(keep_books(tmp_path, settled=0))
    asyncio.run(fund(tmp_path, PAY_TO, 77))

    result = run("reconcile", "--pay-to", PAY_TO, *IN_USDC, *on(tmp_path))

    assert result.exit_code == ExitCode.REFUSED
    assert json.loads(result.stdout)[0]["unexplained"]["chain_atomic"] == "77"


def test_an_address_beside_those_of_the_sales_is_read_in_their_token(run: Run, tmp_path: Path) -> None:
    asyncio.run(keep_books(tmp_path))
    asyncio.run(fund(tmp_path, PAY_TO, 77))

    result = run("reconcile", "--pay-to", PAY_TO, *ALL, *on(tmp_path))

    (account,) = json.loads(result.stdout)
    assert (result.exit_code, len(account["findings"])) == (ExitCode.REFUSED, 1)
    assert account["pay_to"] == [checksum_address(PAY_TO)]


def test_an_address_that_is_none_is_refused(run: Run, tmp_path: Path) -> None:
    asyncio.run(keep_books(tmp_path, settled=1, pay_to=PAY_TO))

    result = run("reconcile", "--pay-to", "0xTYPO", *on(tmp_path))

    assert (result.exit_code, result.stdout) == (ExitCode.USAGE, "")
    assert "--pay-to: '0xTYPO' is not an address" in result.stderr


def test_since_is_about_the_chain_and_not_about_which_addresses_are_looked_at(run: Run, tmp_path: Path) -> None:
    asyncio.run(keep_books(tmp_path, settled=1, pay_to=PAY_TO, created_s=1000.0))
    asyncio.run(fund(tmp_path, PAY_TO, 77))

    result = run("reconcile", "--since", "1d", *on(tmp_path))

    (account,) = json.loads(result.stdout)
    assert (result.exit_code, account["unexplained"]["count"], account["missing"]["count"]) == (ExitCode.REFUSED, 1, 0)


def test_a_finding_says_where_and_when_and_numbers_are_digits_or_null(run: Run, tmp_path: Path) -> None:
    asyncio.run(keep_books(tmp_path, settled=0))
    asyncio.run(fund(tmp_path, PAY_TO, 77))

    (account,) = json.loads(run("reconcile", "--pay-to", PAY_TO, *IN_USDC, *on(tmp_path)).stdout)
    (finding,) = account["findings"]

    assert (finding["ledger_atomic"], finding["chain_atomic"]) == (None, "77")
    assert (finding["log_index"], finding["block"], finding["alarm"]) == (0, None, True)
    assert datetime.fromisoformat(finding["time"]).tzinfo is not None


# ----------------------------------------------------------------------------------------------------------- --record


def test_a_refused_sale_that_was_paid_is_recorded_once_it_is_asked_for(run: Run, tmp_path: Path) -> None:
    sale = asyncio.run(keep_a_refused_sale_that_was_paid(tmp_path))

    for _ in range(2):
        named = run("reconcile", *on(tmp_path))
        assert named.exit_code == ExitCode.REFUSED
        assert "--record" in named.stderr
        assert [one["what"] for one in json.loads(named.stdout)[0]["findings"]] == ["unrecorded"]
    result = run("reconcile", "--record", *on(tmp_path))

    (account,) = json.loads(result.stdout)
    assert (result.exit_code, account["explained"], account["findings"]) == (ExitCode.OK, True, [])
    assert [(one["sale"], one["state"]) for one in account["recorded"]] == [(sale, "owed")]
    shown = json.loads(run("receipts", "show", sale, *on(tmp_path)).stdout)
    assert (shown["state"], shown["reason"]) == ("owed", "")
    assert run("ledger", "check", *on(tmp_path)).exit_code == ExitCode.OK
    again = json.loads(run("reconcile", "--record", *on(tmp_path)).stdout)
    assert (again[0]["recorded"], again[0]["matched"]["count"]) == ([], 1)


# ------------------------------------------------------------------------------------------------------------ --known


def test_what_the_seller_has_looked_into_is_no_alarm_any_more(run: Run, tmp_path: Path) -> None:
    asyncio.run(keep_books(tmp_path, settled=1, pay_to=PAY_TO))
    asyncio.run(fund(tmp_path, PAY_TO, 77))
    findings = json.loads(run("reconcile", *ALL, *on(tmp_path)).stdout)[0]["findings"]
    file = tmp_path / "known.txt"
    lines = [f"{one['transaction']}:{one['log_index']}" for one in findings if one["log_index"] is not None]
    lines += [one["transaction"] for one in findings if one["log_index"] is None]
    file.write_text("# looked into\n" + "\n".join(lines))

    result = run("reconcile", "--known", str(file), *ALL, *on(tmp_path))

    (account,) = json.loads(result.stdout)
    assert (len(lines), result.exit_code, account["explained"]) == (2, 0, True)
    assert account["known"] == {"count": 2, "ledger_atomic": "1000", "chain_atomic": "77"}


def test_the_file_of_known_transfers_holds_one_a_line(tmp_path: Path) -> None:
    one, other = "0x" + "ab" * 32, "0x" + "cd" * 32
    (tmp_path / "known").write_text(
        f"\n# dust\n  {one.upper().replace('X', 'x')}  # since March\n{other}:12\n{other}:0\n"
    )

    assert read_known(tmp_path / "known") == KnownTransfers({one}, {(other, 12), (other, 0)})


@pytest.mark.parametrize("line", ["0x12", "0x" + "ab" * 32 + ":x", "0x" + "ab" * 32 + " 3", "ab" * 32])
def test_a_line_that_cannot_be_understood_is_named(run: Run, tmp_path: Path, line: str) -> None:
    (tmp_path / "known").write_text(f"# first\n{line}\n")

    result = run("reconcile", "--known", str(tmp_path / "known"), *on(tmp_path))

    assert result.exit_code == ExitCode.USAGE
    assert "--known: line 2 " in result.stderr


def test_a_file_of_known_transfers_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--known"):
        read_known(tmp_path / "none")


# -------------------------------------------------------------------------------------------------------- the sources


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


async def test_a_chain_is_not_read_from_its_beginning_unasked() -> None:
    with pytest.raises(SettingsError, match="--since"):
        await ChainSource(FakeChain(100), "eip155:84532", confirmations=1).read("eip155:84532", "0x1", {PAY_TO}, None)


async def test_transfers_get_the_times_of_their_blocks() -> None:
    source = ChainSource(FakeChain(100), "eip155:84532", confirmations=1)
    transfers = [Transfer(f"0x{n}", 0, n % 10, "0x1", PAY_TO, 1) for n in range(12)]

    assert [one.time_s for one in await source.dated(transfers)] == [1000 + 10 * (n % 10) for n in range(12)]


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
