"""Where a person's data lives on this machine: one folder, by the XDG base directory rules."""

import os
from collections.abc import Mapping
from pathlib import Path

from obol.errors import SettingsError


def default_data_dir(environ: Mapping[str, str]) -> Path:
    """`$XDG_DATA_HOME/obol`, or `$HOME/.local/share/obol`; nothing is created.

    A relative `XDG_DATA_HOME` is ignored, as the XDG specification says. Raises `SettingsError` naming `--data-dir`
    when neither variable says where.
    """
    base = environ.get("XDG_DATA_HOME", "")
    if base and Path(base).is_absolute():
        return Path(base) / "obol"
    home = environ.get("HOME", "")
    if not home:
        raise SettingsError("--data-dir", "neither XDG_DATA_HOME nor HOME is set: say where to keep data")
    return Path(home) / ".local" / "share" / "obol"


def user_data_dir() -> Path:
    """`default_data_dir` of this process's user, for a program that was not told where."""
    return default_data_dir(os.environ)  # noqa: TID251 - the outside of the process; a setting comes first


def devnet_file(data_dir: Path) -> Path:
    """The devnet's file in a data folder: facilitator, gateway and `obol devnet` meet there."""
    return data_dir / "devnet.sqlite3"


def ledger_file(data_dir: Path, *, devnet: bool = False) -> Path:
    """The sellers' ledger in a data folder: every gateway of this user shares it, so that claims are shared too.

    Gateways on the embedded devnet share another: its payments carry a real network's identifiers, and what was bought
    with play money must never be owed by a seller of the real one.
    """
    return data_dir / ("ledger-devnet.sqlite3" if devnet else "ledger.sqlite3")
