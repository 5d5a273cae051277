import pytest
from hypothesis import given
from hypothesis import strategies as st

from obol.core.networks import (
    BASE,
    BASE_SEPOLIA,
    DEFAULT_CATALOGUE,
    ETHEREUM,
    Asset,
    Network,
    TransferMethod,
    canonical_address,
)
from obol.errors import SettingsError


@pytest.mark.parametrize("text", ["base", "BASE", "base-mainnet", "eip155:8453", "EIP155:8453"])
def test_a_network_has_a_name_aliases_and_a_caip2_id_in_any_letter_case(text: str) -> None:
    assert DEFAULT_CATALOGUE.network(text) is BASE


@pytest.mark.parametrize("text", ["", "solana", "eip155:1337", "8453", "eip155:", " base"])
def test_an_unknown_network_is_refused_by_the_name_of_the_field(text: str) -> None:
    assert DEFAULT_CATALOGUE.find_network(text) is None
    with pytest.raises(SettingsError, match=r"^chain: .*base-sepolia"):
        DEFAULT_CATALOGUE.network(text, field="chain")


def test_names_aliases_and_ids_name_one_network_each() -> None:
    names = [name for n in DEFAULT_CATALOGUE.networks for name in (n.name, n.caip2, *n.aliases)]

    assert len(names) == len(set(names))


@pytest.mark.parametrize("text", ["usdc", "USDC", "0x036cbd53842c5426634e7929541ec2318f3dcf7e"])
def test_an_asset_has_a_symbol_and_an_address_in_any_letter_case(text: str) -> None:
    asset = DEFAULT_CATALOGUE.asset(BASE_SEPOLIA, text)

    assert (asset.symbol, asset.decimals, asset.eip712_name, asset.eip712_version) == ("USDC", 6, "USDC", "2")


def test_an_asset_is_that_of_the_network() -> None:
    assert DEFAULT_CATALOGUE.asset(BASE, "usdc").eip712_name == "USD Coin"
    assert DEFAULT_CATALOGUE.find_asset(ETHEREUM, DEFAULT_CATALOGUE.asset(BASE, "usdc").address) is None


def test_an_unknown_pair_is_refused_by_the_name_of_the_field() -> None:
    with pytest.raises(SettingsError, match=r"^--payment-asset: 'obol' .* base: known there: usdc$"):
        DEFAULT_CATALOGUE.asset(BASE, "obol")
    with pytest.raises(SettingsError, match=r"^asset: .*known there: none$"):
        DEFAULT_CATALOGUE.asset(Network("nowhere", 5), "usdc", field="asset")


def test_every_network_has_usdc_by_signature() -> None:
    for network in DEFAULT_CATALOGUE.networks:
        assert DEFAULT_CATALOGUE.asset(network, "usdc").transfer_method is TransferMethod.EIP3009


def test_obol_is_moved_by_permit2() -> None:
    asset = DEFAULT_CATALOGUE.asset(BASE_SEPOLIA, "obol")

    assert (asset.decimals, asset.transfer_method) == (18, TransferMethod.PERMIT2)


def test_every_asset_is_of_a_known_network_and_has_an_address() -> None:
    for asset in DEFAULT_CATALOGUE.assets:
        assert asset.network in DEFAULT_CATALOGUE.networks
        assert canonical_address(asset.address) == asset.address.lower()


def test_a_catalogue_is_extended_without_changing_the_old_one() -> None:
    local = Network("Localhost", 31337, ("Anvil",))
    token = Asset("TEST", local, "0x" + "11" * 20, 2, "Test", "1")

    extended = DEFAULT_CATALOGUE.with_assets([local], [token])

    assert extended.network("localhost") is extended.network("ANVIL") is local
    assert extended.asset(local, "test") is token
    assert extended.network("base") is BASE
    assert DEFAULT_CATALOGUE.find_network("localhost") is None


def test_a_later_entry_wins() -> None:
    token = Asset("USDC", BASE_SEPOLIA, "0x" + "11" * 20, 6, "Mine", "1")

    assert DEFAULT_CATALOGUE.with_assets([], [token]).asset(BASE_SEPOLIA, "usdc") is token


def test_a_network_that_is_named_anew_keeps_its_assets() -> None:
    renamed = Network("base", 8453, ("my-base",))

    extended = DEFAULT_CATALOGUE.with_assets([renamed], [])

    assert extended.asset(extended.network("my-base"), "usdc") is DEFAULT_CATALOGUE.asset(BASE, "usdc")


@given(st.binary(min_size=20, max_size=20), st.sampled_from(["0x", "0X"]), st.booleans())
def test_an_address_has_one_canonical_form(address: bytes, prefix: str, is_upper: bool) -> None:
    digits = address.hex().upper() if is_upper else address.hex()

    assert canonical_address(prefix + digits) == "0x" + address.hex()


@pytest.mark.parametrize(
    "text",
    ["", "0x", "0x" + "1" * 39, "0x" + "1" * 41, "1" * 40, "0x" + "g" * 40, "0x" + "1" * 40 + "\n", "0x" + "١" * 40],
)
def test_what_is_no_address_has_none(text: str) -> None:
    assert canonical_address(text) is None
