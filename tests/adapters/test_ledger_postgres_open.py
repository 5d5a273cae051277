"""Opening a shared ledger: which URLs and servers are refused for good, which for now, and that no secret is shown."""

from typing import LiteralString

import pytest
from psycopg import OperationalError
from psycopg.conninfo import conninfo_to_dict

from obol.adapters.ledger_postgres import PostgresLedger
from obol.adapters.ledger_postgres_schema import MIGRATIONS
from obol.adapters.postgres_refusals import refusal_of
from obol.adapters.postgres_url import conninfo_of
from obol.errors import LedgerUnavailableError, SettingsError
from tests.fakes.clock import FakeClock
from tests.postgres import Postgres


async def refused(url: str) -> str:
    """What is said of a setting that can never work."""
    with pytest.raises(SettingsError) as told:
        await PostgresLedger.open(url, FakeClock())
    assert told.value.field == "--ledger-env"
    assert told.value.__cause__ is None
    for secret in ("hunter2", "obol_test", "db.invalid", "nobody", "powerless"):
        assert secret not in str(told.value)
    return str(told.value)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("", "begins with postgresql://"),
        ("mysql://obol:hunter2@localhost/obol", "begins with postgresql://"),
        ("postgresql+psycopg://obol:hunter2@localhost/obol", "begins with postgresql://"),
        ("host=localhost password=hunter2", "begins with postgresql://"),
        ("postgresql://obol:hunter2@localhost/obol?hunter2=1", "no readable PostgreSQL URL"),
        ("postgresql://obol:hunter2@[::1/obol", "no readable PostgreSQL URL"),
        ("postgresql://obol:hunter2@/obol", "must name the server's host"),
        ("postgresql:///?service=hunter2", "service= is not allowed"),
        ("postgresql://obol:hunter2@db.invalid/obol?sslmode=disable", "needs TLS"),
        ("postgresql://obol:hunter2@db.invalid/obol?sslmode=prefer", "needs TLS"),
        ("postgresql://obol:hunter2@localhost,db.invalid/obol?sslmode=allow", "needs TLS"),
        ("postgresql://obol:hunter2@localhost/obol?hostaddr=192.0.2.1&sslmode=disable", "needs TLS"),
    ],
)
async def test_a_url_that_can_never_work_is_refused_before_anything_is_sent(url: str, told: str) -> None:
    assert told in await refused(url)


@pytest.mark.parametrize(
    ("url", "sslmode"),
    [
        ("postgresql://obol@localhost/obol", "prefer"),
        ("postgres://obol@127.0.0.1/obol?sslmode=disable", "disable"),
        ("postgresql://obol@[::1]/obol", "prefer"),
        ("postgresql:///obol?host=/run/postgresql", "prefer"),
        ("postgresql://obol@db.invalid/obol", "require"),
        ("postgresql://obol@db.invalid/obol?sslmode=verify-full", "verify-full"),
    ],
)
def test_what_leaves_this_machine_is_encrypted(url: str, sslmode: str) -> None:
    assert conninfo_to_dict(conninfo_of(url))["sslmode"] == sslmode


def test_waits_cannot_be_set_to_for_ever_by_the_url() -> None:
    options = conninfo_to_dict(conninfo_of("postgresql://localhost/x?connect_timeout=0&target_session_attrs=any"))

    assert (options["connect_timeout"], options["target_session_attrs"]) == ("5", "read-write")


async def test_a_database_that_does_not_exist_is_refused(postgres: Postgres) -> None:
    assert "no such database" in await refused(postgres.url("nobody_made_this"))


async def test_a_role_that_does_not_exist_is_refused(database_url: str) -> None:
    assert "refuses the role" in await refused(database_url.replace("postgres:@", "nobody:hunter2@"))


async def test_a_role_that_may_not_make_the_tables_is_refused(database_url: str, postgres: Postgres) -> None:
    postgres.run("DROP ROLE IF EXISTS powerless; CREATE ROLE powerless LOGIN")

    assert "may not make the schema obol" in await refused(database_url.replace("postgres:@", "powerless:hunter2@"))


async def test_a_role_that_may_not_use_the_tables_is_refused(database_url: str, postgres: Postgres) -> None:
    postgres.run("DROP ROLE IF EXISTS powerless; CREATE ROLE powerless LOGIN")
    await (await PostgresLedger.open(database_url, FakeClock())).close()

    assert "lacks a privilege" in await refused(database_url.replace("postgres:@", "powerless:hunter2@"))


async def test_a_tool_makes_no_ledger(database_url: str, postgres: Postgres) -> None:
    with pytest.raises(SettingsError, match="there is no ledger in the database"):
        await PostgresLedger.open(database_url, FakeClock(), may_create=False)
    assert postgres.run("SELECT to_regnamespace('obol') IS NULL", url=database_url) == [(True,)]

    await (await PostgresLedger.open(database_url, FakeClock())).close()
    await (await PostgresLedger.open(database_url, FakeClock(), may_create=False)).close()


_NEWER: LiteralString = "UPDATE obol.ledger SET version = version + 1"


async def test_a_ledger_of_a_newer_version_is_refused_untouched(database_url: str, postgres: Postgres) -> None:
    await (await PostgresLedger.open(database_url, FakeClock())).close()
    postgres.run(_NEWER, url=database_url)

    assert "written by a newer version" in await refused(database_url)
    assert postgres.run("SELECT version FROM obol.ledger", url=database_url) == [(len(MIGRATIONS) + 1,)]


@pytest.mark.parametrize(
    "foreign",
    [
        "CREATE SCHEMA obol; CREATE TABLE obol.sale (x int)",
        "CREATE SCHEMA obol; CREATE TABLE obol.ledger (x int)",
        "CREATE SCHEMA obol; CREATE TABLE obol.ledger (version int)",
    ],
)
async def test_a_schema_of_another_program_is_refused_untouched(
    database_url: str, postgres: Postgres, foreign: LiteralString
) -> None:
    postgres.run(foreign, url=database_url)
    tables = "SELECT relname FROM pg_class WHERE relnamespace = 'obol'::regnamespace"
    before = postgres.run(tables, url=database_url)

    assert "belongs to another program" in await refused(database_url)
    assert postgres.run(tables, url=database_url) == before


async def test_a_server_that_is_not_there_is_unavailable(tmp_path: object) -> None:
    with pytest.raises(LedgerUnavailableError, match="cannot be reached") as told:
        await PostgresLedger.open(f"postgresql://obol:hunter2@/obol?host={tmp_path}", FakeClock())

    assert str(tmp_path) not in str(told.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('FATAL:  password authentication failed for user "nobody"', "refuses the role or its password"),
        ("fe_sendauth: no password supplied", "asks for a password"),
        ('FATAL:  no pg_hba.conf entry for host "192.0.2.1", user "nobody", no encryption', "lets nobody in"),
        ("server does not support SSL, but SSL was required", "has no TLS"),
        ("SSL error: certificate verify failed", "certificate is not one that we trust"),
    ],
)
def test_what_the_server_says_of_who_may_come_in_is_told_in_our_words(text: str, told: str) -> None:
    refusal = refusal_of(OperationalError(f"connection failed: {text}"))

    assert isinstance(refusal, SettingsError)
    assert told in str(refusal)
    assert 'nobody"' not in str(refusal)
