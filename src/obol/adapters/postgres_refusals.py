"""Which errors of a first connection can never end well, and what the person at the settings is told of them."""

import psycopg

from obol.adapters.postgres_connections import unavailable
from obol.adapters.postgres_url import FIELD
from obol.errors import LedgerUnavailableError, SettingsError

_BY_CODE = {
    "28000": "the server refuses the role",
    "28P01": "the server refuses the role or its password",
    "3D000": "the server has no such database",
    "42501": "its role lacks a privilege on the database or on the schema obol",
}
_BY_TEXT = {
    "password authentication failed": _BY_CODE["28P01"],
    "authentication failed": _BY_CODE["28P01"],
    "no password supplied": "the server asks for a password",
    "no pg_hba.conf entry": "the server lets nobody in from here as that role",
    "is not permitted to log in": _BY_CODE["28000"],
    "permission denied for database": _BY_CODE["42501"],
    "does not support SSL": "the server has no TLS",
    "certificate verify failed": "the server's certificate is not one that we trust",
    "root certificate file": "sslmode asks to verify the server, and there is no sslrootcert to verify it with",
    "does not match host name": "the server's certificate is for another host",
}
"""libpq hands on the text alone of what went wrong before a session began; in another language it is *not now*."""


def refusal_of(error: psycopg.Error | TimeoutError) -> SettingsError | LedgerUnavailableError:
    """What to raise at open: a setting that can never work, or a server that does not work now."""
    known = _BY_CODE.get(getattr(error, "sqlstate", None) or "") or _by_text(str(error))
    return SettingsError(FIELD, known) if known else unavailable(error)


def _by_text(text: str) -> str | None:
    if "does not exist" in text and "FATAL" in text:
        return _BY_CODE["3D000"] if "FATAL:  database " in text else _BY_CODE["28000"]
    return next((told for part, told in _BY_TEXT.items() if part in text), None)
