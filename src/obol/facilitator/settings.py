"""What a facilitator process is told at start."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from obol.core.networks import BASE_SEPOLIA, DEFAULT_CATALOGUE, Catalogue, Network
from obol.errors import SettingsError

DEFAULT_LISTEN = "127.0.0.1:8404"
_LISTEN = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]\s/]+)):([0-9]{1,5})", re.ASCII)


@dataclass(frozen=True, slots=True)
class FacilitatorSettings:
    """One facilitator on the devnet."""

    data_dir: Path
    """Folder of the devnet's file, shared with `obol devnet`. No default: the command line decides."""
    host: str = "127.0.0.1"
    """Address to listen on. Default: this machine only."""
    port: int = 8404
    """TCP port; 0 lets the system choose."""
    networks: tuple[Network, ...] = (BASE_SEPOLIA,)
    """Networks whose tokens the devnet has. Default: base-sepolia."""
    catalogue: Catalogue = DEFAULT_CATALOGUE
    """Networks and assets by name."""
    drain_timeout_s: float = 30.0
    """At SIGTERM: how long requests that are being answered may take. Default 30 seconds."""


def load(listen: str, data_dir: Path, chains: Sequence[str]) -> FacilitatorSettings:
    """Settings from flags as written; no chain is base-sepolia. Raises `SettingsError` naming the flag."""
    host, port = parse_listen(listen)
    networks = tuple(dict.fromkeys(DEFAULT_CATALOGUE.network(chain) for chain in chains))
    return FacilitatorSettings(data_dir, host, port, networks or (BASE_SEPOLIA,))


def parse_listen(text: str, *, field: str = "--listen") -> tuple[str, int]:
    """Host and port of `host:port` or `[v6 address]:port`. Raises `SettingsError` naming `field`."""
    match = _LISTEN.fullmatch(text)
    if match is None or int(match[3]) > 65535:
        raise SettingsError(
            field, f"{text!r} is not an address to listen on: write host:port, such as {DEFAULT_LISTEN}"
        )
    return match[1] or match[2], int(match[3])
