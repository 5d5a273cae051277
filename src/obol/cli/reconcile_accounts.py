"""What `obol reconcile` looks at: the addresses that were paid in each token, from when on, and the report of each."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from obol.cli.ledger_file import sales_of
from obol.cli.reconcile_record import record_paid
from obol.core.ledger import SaleFilter
from obol.core.payment import State
from obol.core.reconciliation import Reconciler
from obol.core.reconciliation_report import NOTHING_KNOWN, KnownTransfers, Report
from obol.core.transfer import Transfer
from obol.errors import SettingsError

if TYPE_CHECKING:
    from obol.cli.reconcile_sources import Reading, Source
    from obol.core.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the person asks for. None and empty: whatever the sales say."""

    pay_tos: frozenset[str] = frozenset()
    """Lower case."""
    network: str | None = None
    """CAIP-2."""
    asset: str | None = None
    """Lower-case contract address."""
    since_s: float | None = None
    """From when on the chain is read, in Unix seconds."""
    known: KnownTransfers = NOTHING_KNOWN
    is_recording: bool = False
    """Whether what the chain proves of refused sales is written into the ledger."""


@dataclass(slots=True)
class Account:
    """The addresses that are paid in one token, and since when; None: no sale says it."""

    network: str
    asset: str
    since_s: float | None = None
    pay_tos: set[str] = field(default_factory=set)


async def find_accounts(ledger: "Ledger", wanted: Wanted) -> list[Account]:
    """An account for every token of the sales, and for the one that is asked for by name.

    Addresses that are asked for by name are in it whether or not a sale was paid to them: what came in is to be
    explained. Raises `SettingsError` where nothing says in which token they are paid.
    """
    accounts: dict[tuple[str, str], Account] = {}
    async for sale in sales_of(ledger, SaleFilter(network=wanted.network, asset=wanted.asset)):
        account = accounts.setdefault((sale.key.network, sale.key.asset), Account(sale.key.network, sale.key.asset))
        account.since_s = sale.created_s if account.since_s is None else min(account.since_s, sale.created_s)
        account.pay_tos.add(sale.pay_to.lower())
    if wanted.pay_tos and not accounts:
        named = _account_by_name(wanted)
        accounts[named.network, named.asset] = named
    for account in accounts.values():
        account.since_s = account.since_s if wanted.since_s is None else wanted.since_s
        account.pay_tos = set(wanted.pay_tos) or account.pay_tos
    return sorted(accounts.values(), key=lambda account: (account.network, account.asset))


def _account_by_name(wanted: Wanted) -> Account:
    if wanted.network is None or wanted.asset is None:
        field = "--network" if wanted.network is None else "--asset"
        raise SettingsError(field, "no sale says in which token --pay-to is paid: name --network and --asset")
    return Account(wanted.network, wanted.asset)


async def reconcile_account(account: Account, source: "Source", ledger: "Ledger", wanted: Wanted) -> Report:
    """The chain first: whatever it shows by then has its sale in the ledger.

    With `wanted.is_recording` what is proven of refused sales is recorded, and the report is of the ledger after that.
    """
    reading = await source.read(account.network, account.asset, account.pay_tos, account.since_s)
    reconciler = await _reconciler(account, reading, ledger, wanted)
    dated = await source.dated(reconciler.left())
    report = reconciler.report(dated)
    if not wanted.is_recording:
        return report
    refused = SaleFilter(network=account.network, asset=account.asset, states=frozenset({State.SETTLE_FAILED}))
    recorded = await record_paid(ledger, source, report, refused, due_before_s=reading.until_s)
    if recorded:
        reading = replace(reading, transfers=[*_others(reading.transfers, dated), *dated])
        report = (await _reconciler(account, reading, ledger, wanted)).report()
        report.newly_recorded = recorded
    return report


async def _reconciler(account: Account, reading: "Reading", ledger: "Ledger", wanted: Wanted) -> Reconciler:
    """With every sale of the account."""
    reconciler = Reconciler(
        reading.transfers,
        due_before_s=reading.until_s,
        since_s=wanted.since_s,
        known=wanted.known,
    )
    async for sale in sales_of(ledger, SaleFilter(network=account.network, asset=account.asset)):
        if sale.pay_to.lower() in account.pay_tos:
            reconciler.add(sale)
    return reconciler


def _others(transfers: Sequence[Transfer], dated: Sequence[Transfer]) -> list[Transfer]:
    known = {(one.transaction, one.log_index) for one in dated}
    return [one for one in transfers if (one.transaction, one.log_index) not in known]


AccountReports = Sequence[tuple[Account, Report]]
