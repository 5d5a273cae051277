"""Which ledger a gateway keeps: a file of its own, or a PostgreSQL database that several gateways share."""

from importlib.util import find_spec

from obol.adapters.ledger_sqlite import SqliteLedger
from obol.adapters.paths import ledger_file, user_data_dir
from obol.core.clock import Clock
from obol.core.ledger import Ledger
from obol.errors import SettingsError
from obol.gateway.settings import GatewayConfig


async def open_ledger(config: GatewayConfig, clock: Clock) -> Ledger:
    """Open it, or make it. Raises `SettingsError` where it can never work, `LedgerUnavailableError` where not now."""
    if config.ledger_url is not None:
        return await open_shared_ledger(config.ledger_url, clock)
    return await SqliteLedger.open(ledger_file(config.data_dir or user_data_dir(), devnet=config.devnet), clock)


async def open_shared_ledger(url: str, clock: Clock, *, may_create: bool = True) -> Ledger:
    """The one in a PostgreSQL database, made if there is none and `may_create`. Raises like `open_ledger`."""
    if find_spec("psycopg") is None:
        raise SettingsError("--ledger-env", "a shared ledger needs psycopg: install obol with its extra `postgres`")
    from obol.adapters.ledger_postgres import PostgresLedger  # noqa: PLC0415 - what it needs is an extra

    return await PostgresLedger.open(url, clock, may_create=may_create)
