"""A process of its own that uses a ledger: claims what it is told, says so on stdout, and stays alive.

    python -m tests.adapters.ledger_child <ledger file or URL> <ready file or -> <number of the key>…

With a ready file it waits until that exists, so that several children start at once.
"""

import asyncio
import secrets
import sys
import time
from pathlib import Path

from obol.adapters.clock import SystemClock
from obol.adapters.ledger_postgres import PostgresLedger
from obol.adapters.ledger_sqlite import SqliteLedger
from obol.core.ledger import Ledger
from obol.core.sale import NewSale
from tests.adapters.sales import a_key


def _say(*words: str) -> None:
    sys.stdout.write(" ".join(words) + "\n")
    sys.stdout.flush()


def _wait_for(gate: str) -> None:
    while gate != "-" and not Path(gate).exists():
        time.sleep(0.001)


async def _open(ledger: str) -> Ledger:
    if ledger.startswith("postgresql:"):
        return await PostgresLedger.open(ledger, SystemClock())
    return await SqliteLedger.open(Path(ledger), SystemClock())


async def _main(where: str, gate: str, numbers: list[int]) -> None:
    ledger = await _open(where)
    _say("open")
    await asyncio.to_thread(_wait_for, gate)
    for number in numbers:
        outcome = await ledger.claim(
            NewSale(
                id=f"{secrets.token_hex(8)}-{number}",
                key=a_key(number),
                offer="qwen",
                pay_to="0x209693Bc6afc0C5328bA36FaF03C514EF312287C",
                authorized_atomic=1000,
                valid_before_s=1_800_000_300,
                api="chat",
                model="qwen36-fast",
                payload=b"{}",
                requirements=b"{}",
                created_s=float(number),
            )
        )
        _say(type(outcome).__name__, outcome.sale.id)
    _say("done")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], sys.argv[2], [int(number) for number in sys.argv[3:]]))
