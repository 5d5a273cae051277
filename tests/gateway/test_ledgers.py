"""Which ledger a gateway opens, and what is told where the shared one cannot be: its library is an extra."""

import os
import subprocess
import sys
from pathlib import Path

from obol.adapters.ledger_postgres import PostgresLedger
from obol.adapters.ledger_sqlite import SqliteLedger
from obol.gateway.ledgers import open_ledger
from obol.gateway.settings import GatewayConfig
from tests.fakes.clock import FakeClock

_WITHOUT_PSYCOPG = """
import asyncio, sys
sys.modules["psycopg"] = None  # as if it was not installed
from obol.adapters.clock import SystemClock
from obol.errors import SettingsError
from obol.gateway.ledgers import open_shared_ledger
try:
    asyncio.run(open_shared_ledger("postgresql://localhost/x", SystemClock()))
except SettingsError as error:
    print(error)
"""


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def test_a_gateway_with_a_url_keeps_the_shared_ledger(database_url: str, tmp_path: Path) -> None:
    ledger = await open_ledger(
        GatewayConfig("http://127.0.0.1:1", data_dir=tmp_path, ledger_url=database_url), FakeClock()
    )
    await ledger.close()

    assert isinstance(ledger, PostgresLedger)
    assert names_in(tmp_path) == set()


async def test_a_gateway_without_one_keeps_a_file(tmp_path: Path) -> None:
    ledger = await open_ledger(GatewayConfig("http://127.0.0.1:1", data_dir=tmp_path), FakeClock())
    await ledger.close()

    assert isinstance(ledger, SqliteLedger)
    assert "ledger.sqlite3" in names_in(tmp_path)


def test_without_the_extra_a_shared_ledger_is_refused_by_the_name_of_the_extra() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", _WITHOUT_PSYCOPG]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == "--ledger-env: a shared ledger needs psycopg: install obol with its extra `postgres`\n"
