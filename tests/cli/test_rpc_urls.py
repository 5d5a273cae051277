import pytest

from obol.cli.rpc_urls import rpc_urls
from obol.errors import SettingsError


def test_nodes_are_separated_by_commas() -> None:
    assert rpc_urls("https://a, https://b,,") == ("https://a", "https://b")


@pytest.mark.parametrize("given", ["", " ", " , "])
def test_an_empty_value_is_refused(given: str) -> None:
    with pytest.raises(SettingsError, match=r"^--rpc: is empty"):
        rpc_urls(given)
