"""The facilitator's settings: defaults pinned, wrong ones refused by name."""

from pathlib import Path

import pytest

from obol.core.networks import AVALANCHE_FUJI, BASE_SEPOLIA
from obol.errors import SettingsError
from obol.facilitator.settings import DEFAULT_LISTEN, FacilitatorSettings, load, parse_listen

FOLDER = Path("/data")


def test_the_defaults() -> None:
    assert load(DEFAULT_LISTEN, FOLDER, ()) == FacilitatorSettings(FOLDER, "127.0.0.1", 8404, (BASE_SEPOLIA,))
    assert FacilitatorSettings(FOLDER).drain_timeout_s == 30


def test_chains_are_networks_by_any_name_each_once() -> None:
    settings = load("[::1]:0", FOLDER, ["avalanche-fuji", "eip155:84532", "base-sepolia"])
    assert settings.networks == (AVALANCHE_FUJI, BASE_SEPOLIA)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:8404", ("127.0.0.1", 8404)),
        ("[::1]:0", ("::1", 0)),
        ("localhost:65535", ("localhost", 65535)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),
    ],
)
def test_an_address_to_listen_on_is_host_and_port(text: str, expected: tuple[str, int]) -> None:
    assert parse_listen(text) == expected


@pytest.mark.parametrize(
    "text", ["", ":80", "8404", "host", "host:", "host:x", "host:65536", "::1:80", "a b:1", "h:-1"]
)
def test_anything_else_is_refused_by_the_flags_name(text: str) -> None:
    with pytest.raises(SettingsError, match=r"^--listen: "):
        parse_listen(text)
