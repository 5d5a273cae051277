import asyncio
import contextlib
import csv
import io
import json
import sqlite3
from pathlib import Path

import pytest

from obol.adapters.paths import ledger_file
from obol.cli.exit_codes import ExitCode
from obol.cli.sale_filter import parse_when
from obol.errors import SettingsError
from obol.x402.eip712 import checksum_address
from tests.adapters.payments import USDC
from tests.cli.conftest import Run
from tests.cli.kept_books import keep_books


def on(folder: Path) -> tuple[str, ...]:
    return "--devnet", "--data-dir", str(folder)


def test_sales_are_listed_with_their_exact_amounts_and_without_the_signed_payload(run: Run, tmp_path: Path) -> None:
    ids = asyncio.run(keep_books(tmp_path))

    result = run("receipts", "list", *on(tmp_path))

    rows = json.loads(result.stdout)
    assert [row["id"] for row in rows] == ids
    assert (rows[0]["authorized"], rows[0]["authorized_atomic"]) == ("0.001", "1000")
    assert "x402Version" not in result.output


def test_only_the_newest_are_listed_and_that_is_said(run: Run, tmp_path: Path) -> None:
    ids = asyncio.run(keep_books(tmp_path, settled=3))

    result = run("receipts", "list", "--limit", "1", *on(tmp_path))

    assert [row["id"] for row in json.loads(result.stdout)] == ids[-1:]
    assert "newest 1 of 3" in result.stderr


@pytest.mark.parametrize(
    ("chosen", "count"),
    [
        (("--state", "settled"), 2),
        (("--state", "owed"), 0),
        (("--offer", "qwen"), 2),
        (("--offer", "other"), 0),
        (("--payer", "0x" + "AB" * 20), 2),
        (("--network", "base-sepolia", "--asset", "usdc"), 2),
        (("--network", "base"), 0),
        (("--since", "2027-01-01"), 2),
        (("--until", "2027-01-01"), 0),
    ],
)
def test_sales_are_chosen(run: Run, tmp_path: Path, chosen: tuple[str, ...], count: int) -> None:
    asyncio.run(keep_books(tmp_path))

    assert len(json.loads(run("receipts", "list", *chosen, *on(tmp_path)).stdout)) == count


@pytest.mark.parametrize(
    "chosen", [("--since", "soon"), ("--payer", "bob"), ("--network", "moon"), ("--asset", "usdc")]
)
def test_a_choice_that_cannot_be_understood_is_named(run: Run, tmp_path: Path, chosen: tuple[str, ...]) -> None:
    result = run("receipts", "list", *chosen, *on(tmp_path))

    assert result.exit_code == ExitCode.USAGE
    assert chosen[0] in result.stderr


def test_totals_are_exact(run: Run, tmp_path: Path) -> None:
    asyncio.run(keep_books(tmp_path, settled=3))

    (row,) = json.loads(run("receipts", "list", "--totals", "day", *on(tmp_path)).stdout)

    assert (row["day"], row["sales"], row["settled_atomic"], row["settled"]) == ("2027-01-15", 3, "3000", "0.003")


@pytest.mark.parametrize("reason", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_text_from_outside_becomes_a_formula(run: Run, tmp_path: Path, reason: str) -> None:
    asyncio.run(keep_books(tmp_path, settled=1, reason=reason))

    (row,) = csv.DictReader(io.StringIO(run("receipts", "export", *on(tmp_path)).stdout, newline=""))

    assert row["reason"].startswith("'")


@pytest.mark.parametrize(
    ("reason", "cell"), [("see;=1+1", "see;'=1+1"), ("a; @SUM(A1)", "a;' @SUM(A1)"), ("a;b", "a;b")]
)
def test_nor_does_one_where_a_spreadsheet_splits_at_semicolons(
    run: Run, tmp_path: Path, reason: str, cell: str
) -> None:
    asyncio.run(keep_books(tmp_path, settled=1, reason=reason))

    (row,) = csv.DictReader(io.StringIO(run("receipts", "export", *on(tmp_path)).stdout, newline=""))

    assert row["reason"] == cell


@pytest.mark.parametrize("count", [0, 1, 501])
def test_an_export_holds_every_sale_of_every_page(run: Run, tmp_path: Path, count: int) -> None:
    ids = asyncio.run(keep_books(tmp_path, settled=count))

    whole = json.loads(run("receipts", "export", "--format", "json", *on(tmp_path)).stdout)
    lines = run("receipts", "export", "--format", "jsonl", *on(tmp_path)).stdout.splitlines()

    assert [row["id"] for row in whole] == ids
    assert [json.loads(line) for line in lines] == whole


def test_an_exported_file_replaces_an_older_one_only_on_demand_and_never_a_ledger(run: Run, tmp_path: Path) -> None:
    asyncio.run(keep_books(tmp_path))
    older, copy = tmp_path / "sales.csv", tmp_path / "copy.sqlite3"
    older.write_text("old")
    run("ledger", "backup", str(copy), *on(tmp_path))
    held = copy.read_bytes()

    for file, force in ((older, ()), (copy, ()), (copy, ("--force",))):
        result = run("receipts", "export", "--output", str(file), *force, *on(tmp_path))
        assert result.exit_code == ExitCode.USAGE
        assert "--output" in result.stderr
    assert (older.read_text(), copy.read_bytes()) == ("old", held)


def test_an_exported_file_is_private(run: Run, tmp_path: Path) -> None:
    asyncio.run(keep_books(tmp_path))
    file = tmp_path / "sales.csv"
    file.write_text("old")

    result = run("receipts", "export", "--output", str(file), "--force", *on(tmp_path))

    assert (result.exit_code, result.stdout) == (0, "")
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text().startswith("id,created,")


def test_an_export_that_fails_leaves_the_older_file(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "sales.csv"
    file.write_text("old")

    result = run("receipts", "export", "--output", str(file), "--force", *on(tmp_path / "none"))

    assert (result.exit_code, file.read_text(), list(tmp_path.iterdir())) == (ExitCode.USAGE, "old", [file])


def test_addresses_are_spelled_in_one_way(run: Run, tmp_path: Path) -> None:
    asyncio.run(keep_books(tmp_path, settled=1))
    payer, usdc = checksum_address("0x" + "ab" * 20), USDC.address

    (row,) = json.loads(run("receipts", "list", *on(tmp_path)).stdout)
    (cells,) = csv.DictReader(io.StringIO(run("receipts", "export", *on(tmp_path)).stdout, newline=""))
    (total,) = json.loads(run("receipts", "list", "--totals", "payer", *on(tmp_path)).stdout)

    assert (row["payer"], row["asset"], row["pay_to"]) == (payer, usdc, checksum_address(row["pay_to"]))
    assert (cells["payer"], cells["asset"], cells["pay_to"]) == (payer, usdc, row["pay_to"])
    assert (total["payer"], total["asset"]) == (payer, usdc)


def test_a_row_that_is_no_sale_is_named_as_such(run: Run, tmp_path: Path) -> None:
    asyncio.run(keep_books(tmp_path, settled=1))
    with contextlib.closing(sqlite3.connect(ledger_file(tmp_path, devnet=True))) as file, file:
        file.execute("UPDATE sale SET state = 'bogus'")

    result = run("receipts", "list", *on(tmp_path))

    assert result.exit_code == ExitCode.UNSOUND
    assert "obol ledger check" in result.stderr


def test_a_sale_is_shown_by_its_id(run: Run, tmp_path: Path) -> None:
    (sale_id,) = asyncio.run(keep_books(tmp_path, settled=1))

    assert json.loads(run("receipts", "show", sale_id, *on(tmp_path)).stdout)["id"] == sale_id
    assert run("receipts", "show", "none", *on(tmp_path)).exit_code == ExitCode.NOT_FOUND


def test_a_tool_never_makes_a_ledger(run: Run, tmp_path: Path) -> None:
    result = run("receipts", "list", *on(tmp_path))

    assert result.exit_code == ExitCode.USAGE
    assert "--data-dir" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "time_s"),
    [
        ("7d", 1000000.0 - 7 * 86400),
        ("90m", 1000000.0 - 5400),
        ("1970-01-02", 86400.0),
        ("1970-01-01T02:00+01:00", 3600.0),
    ],
)
def test_times_are_utc_dates_or_ages(text: str, time_s: float) -> None:
    assert parse_when(text, 1000000.0, field="--since") == time_s


def test_what_is_no_time_is_refused() -> None:
    with pytest.raises(SettingsError, match="--since"):
        parse_when("-1d", 0.0, field="--since")
