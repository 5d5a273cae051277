"""What a PostgreSQL URL must say before anything is sent anywhere: where to, and in a way that nobody can listen in."""

import ipaddress
from urllib.parse import urlsplit

from psycopg import Error
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from obol.errors import SettingsError

FIELD = "--ledger-env"
"""The setting that names the variable that holds the URL: the URL itself is a secret and is never shown."""
CONNECT_TIMEOUT_S = 5

_SCHEMES = frozenset({"postgresql", "postgres"})
_ENCRYPTED = frozenset({"require", "verify-ca", "verify-full"})
_OURS: dict[str, str] = {
    "application_name": "obol",
    "client_encoding": "utf8",
    "connect_timeout": str(CONNECT_TIMEOUT_S),
    "keepalives": "1",
    "keepalives_count": "3",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "target_session_attrs": "read-write",
    "tcp_user_timeout": "10000",
}
"""In place of what the URL or libpq's environment says: a standby cannot be written, and a dead peer is noticed."""


def conninfo_of(url: str) -> str:
    """libpq's connection string for `url`, with bounded waits and TLS to every server that is not this machine.

    Raises `SettingsError` without any part of the URL: another scheme, unreadable, no host, no encryption.
    """
    try:
        if urlsplit(url).scheme not in _SCHEMES:
            raise SettingsError(FIELD, "must hold a URL that begins with postgresql://")
        options = {name: str(value) for name, value in conninfo_to_dict(url).items()}
    except (Error, ValueError):  # the message would quote the URL
        raise SettingsError(FIELD, "holds no readable PostgreSQL URL") from None
    if "service" in options:
        raise SettingsError(FIELD, "must say everything itself: service= is not allowed")
    hosts = options.get("hostaddr") or options.get("host")
    if not hosts:
        raise SettingsError(FIELD, "must name the server's host, or its socket's folder as ?host=/run/postgresql")
    default = "prefer" if _is_here(hosts) else "require"
    sslmode = options.setdefault("sslmode", default)
    if default == "require" and sslmode not in _ENCRYPTED:
        raise SettingsError(FIELD, "a server elsewhere needs TLS: sslmode require, verify-ca or verify-full")
    return make_conninfo("", **{**options, **_OURS})


def _is_here(hosts: str) -> bool:
    """Whether all of a comma-separated list are on this machine."""
    return all(_is_local(host) for host in hosts.split(","))


def _is_local(host: str) -> bool:
    if host.startswith(("/", "@")) or host == "localhost":  # a Unix socket
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
