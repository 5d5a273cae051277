"""A ledger of a gateway on the devnet, and the devnet that its sales were paid on, in one folder."""

from dataclasses import replace
from pathlib import Path

from obol.adapters.chain_devnet import DevnetChain
from obol.adapters.clock import SystemClock
from obol.adapters.ledger_sqlite import SqliteLedger
from obol.adapters.paths import devnet_file, ledger_file
from obol.core.ledger import Change
from obol.core.networks import BASE_SEPOLIA, DEFAULT_CATALOGUE
from obol.core.payment import Event
from obol.core.sale import Delivery
from tests.adapters.sales import a_new_sale

SETTLED = (Event.SERVE, Event.OUTPUT, Event.SETTLE, Event.SETTLED)


async def keep_books(folder: Path, *, settled: int = 2, reason: str = "", pay_to: str = "") -> list[str]:
    """Record sales that say settled, with a devnet on which nothing moved; their ids, oldest first."""
    ledger = await SqliteLedger.open(ledger_file(folder, devnet=True), SystemClock())
    ids = []
    for number in range(settled):
        sale = a_new_sale()
        sale = replace(sale, pay_to=pay_to or sale.pay_to)
        await ledger.claim(sale)
        paid = Change(Delivery.COMPLETE, sale.authorized_atomic, f"0x{number:064x}", reason)
        await ledger.record(sale.id, SETTLED, paid)
        ids.append(sale.id)
    await ledger.close()
    chain = await DevnetChain.open(devnet_file(folder), SystemClock())
    await chain.close()
    return ids


async def fund(folder: Path, account: str, amount_atomic: int) -> None:
    """Money that no sale explains."""
    chain = await DevnetChain.open(devnet_file(folder), SystemClock())
    await chain.fund(DEFAULT_CATALOGUE.asset(BASE_SEPOLIA, "usdc"), account, amount_atomic)
    await chain.close()
