"""Where data is kept, by the XDG rules."""

from pathlib import Path

import pytest

from obol.adapters.paths import default_data_dir, devnet_file, ledger_file
from obol.errors import SettingsError


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"XDG_DATA_HOME": "/data", "HOME": "/home/me"}, "/data/obol"),
        ({"HOME": "/home/me"}, "/home/me/.local/share/obol"),
        ({"XDG_DATA_HOME": "", "HOME": "/home/me"}, "/home/me/.local/share/obol"),
        ({"XDG_DATA_HOME": "relative", "HOME": "/home/me"}, "/home/me/.local/share/obol"),
    ],
)
def test_the_folder_is_where_xdg_says(environ: dict[str, str], expected: str) -> None:
    assert default_data_dir(environ) == Path(expected)


@pytest.mark.parametrize("environ", [{}, {"HOME": ""}, {"XDG_DATA_HOME": "relative"}])
def test_without_a_home_the_flag_is_asked_for(environ: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=r"^--data-dir: "):
        default_data_dir(environ)


def test_the_devnet_is_one_file_in_it() -> None:
    assert devnet_file(Path("/data")) == Path("/data/devnet.sqlite3")


def test_all_gateways_of_a_user_share_one_ledger_so_that_claims_are_shared() -> None:
    assert ledger_file(Path("/data")) == Path("/data/ledger.sqlite3")


def test_play_money_has_a_ledger_of_its_own() -> None:
    assert ledger_file(Path("/data"), devnet=True) == Path("/data/ledger-devnet.sqlite3")
