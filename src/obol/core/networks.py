"""Networks and their assets as data: names, CAIP-2 ids, token contracts, decimals, EIP-712 domains.

Sources: the x402 specification's default assets (v1 names, USDC by network) and the Obol token's contracts. Addresses
are in EIP-55 spelling, the one spelling that is emitted; comparisons use `canonical_address`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from obol.errors import SettingsError

_ADDRESS = re.compile(r"0[xX][0-9a-fA-F]{40}", re.ASCII)


class TransferMethod(StrEnum):
    """How the asset lets a third party move it for a signature (x402 `extra.assetTransferMethod`)."""

    EIP3009 = "eip3009"
    PERMIT2 = "permit2"


@dataclass(frozen=True, slots=True)
class Network:
    """An EVM chain. `name` is the x402 v1 name, `caip2` the v2 identifier, `block_time_s` about what a block takes."""

    name: str
    chain_id: int
    aliases: tuple[str, ...] = ()
    block_time_s: float = 2.0

    @property
    def caip2(self) -> str:
        return f"eip155:{self.chain_id}"


@dataclass(frozen=True, slots=True)
class Asset:
    """A token on one network, with the EIP-712 domain that its signatures use."""

    symbol: str
    network: Network
    address: str
    decimals: int
    eip712_name: str
    eip712_version: str
    transfer_method: TransferMethod = TransferMethod.EIP3009


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The networks and assets that a process knows. Immutable; `with_assets` gives an extended copy."""

    networks: tuple[Network, ...]
    assets: tuple[Asset, ...]

    def network(self, text: str, *, field: str = "--chain") -> Network:
        """The network of a name, alias or CAIP-2 id, in any letter case. Raises `SettingsError`."""
        network = self.find_network(text)
        if network is None:
            known = ", ".join(n.name for n in self.networks)
            raise SettingsError(field, f"{text!r} is not a known network: use one of {known}, or its CAIP-2 id")
        return network

    def find_network(self, text: str) -> Network | None:
        """The network of a name, alias or CAIP-2 id, or None."""
        wanted = text.lower()
        return next((n for n in self.networks if wanted in map(str.lower, (n.name, n.caip2, *n.aliases))), None)

    def asset(self, network: Network, text: str, *, field: str = "--payment-asset") -> Asset:
        """The asset of a symbol or contract address on a network. Raises `SettingsError`."""
        asset = self.find_asset(network, text)
        if asset is None:
            known = ", ".join(a.symbol.lower() for a in self.assets if a.network.chain_id == network.chain_id) or "none"
            raise SettingsError(field, f"{text!r} is not a known asset on {network.name}: known there: {known}")
        return asset

    def find_asset(self, network: Network, text: str) -> Asset | None:
        """The asset of a symbol or contract address on a network, or None."""
        wanted = text.lower()
        there = (a for a in self.assets if a.network.chain_id == network.chain_id)
        return next((a for a in there if wanted in (a.symbol.lower(), a.address.lower())), None)

    def with_assets(self, networks: Iterable[Network], assets: Iterable[Asset]) -> "Catalogue":
        """A copy that knows more; a later entry for the same symbol or address wins."""
        return Catalogue((*networks, *self.networks), (*assets, *self.assets))


def canonical_address(text: str) -> str | None:
    """The lower-case form of a 20-byte hex address, the form that keys and comparisons use, or None."""
    return "0x" + text[2:].lower() if _ADDRESS.fullmatch(text) else None


def _usdc(network: Network, address: str, name: str = "USD Coin", version: str = "2", symbol: str = "USDC") -> Asset:
    return Asset(symbol, network, address, 6, name, version)


BASE = Network("base", 8453, ("base-mainnet",))
BASE_SEPOLIA = Network("base-sepolia", 84532)
ETHEREUM = Network("ethereum", 1, ("ethereum-mainnet", "mainnet"), block_time_s=12.0)
POLYGON = Network("polygon", 137, ("polygon-mainnet",))
POLYGON_AMOY = Network("polygon-amoy", 80002)
AVALANCHE = Network("avalanche", 43114, ("avalanche-mainnet",))
AVALANCHE_FUJI = Network("avalanche-fuji", 43113)
ARBITRUM_ONE = Network("arbitrum-one", 42161, ("arbitrum",), block_time_s=0.25)
ARBITRUM_SEPOLIA = Network("arbitrum-sepolia", 421614, block_time_s=0.25)

DEFAULT_CATALOGUE = Catalogue(
    networks=(
        BASE,
        BASE_SEPOLIA,
        ETHEREUM,
        POLYGON,
        POLYGON_AMOY,
        AVALANCHE,
        AVALANCHE_FUJI,
        ARBITRUM_ONE,
        ARBITRUM_SEPOLIA,
    ),
    assets=(
        _usdc(BASE, "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"),
        _usdc(BASE_SEPOLIA, "0x036CbD53842c5426634e7929541eC2318f3dCF7e", "USDC"),
        _usdc(ETHEREUM, "0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48"),
        _usdc(POLYGON, "0x3c499c542cEF5E3811e1192ce70d8cC03d5c3359"),
        _usdc(POLYGON_AMOY, "0x41E94Eb019C0762f9Bfcf9Fb1E58725BfB0e7582", "USDC"),
        _usdc(AVALANCHE, "0xB97EF9Ef8734C71904D8002F8b6Bc66Dd9c48a6E"),
        _usdc(AVALANCHE_FUJI, "0x5425890298aed601595a70AB815c96711a31Bc65"),
        _usdc(ARBITRUM_ONE, "0xaf88d065e77c8cC2239327C5EDb3A432268e5831"),
        _usdc(ARBITRUM_SEPOLIA, "0x75faf114eafb1BDbe2F0316DF893fd58CE46AA4d"),
        Asset(
            "OBOL",
            ETHEREUM,
            "0x0B010000b7624eb9B3DfBC279673C76E9D29D5F7",
            18,
            "Obol Network",
            "1",
            TransferMethod.PERMIT2,
        ),
        Asset(
            "OBOL",
            BASE_SEPOLIA,
            "0x0a09371a8b011d5110656ceBCc70603e53FD2c78",
            18,
            "Obol Network",
            "1",
            TransferMethod.PERMIT2,
        ),
    ),
)
