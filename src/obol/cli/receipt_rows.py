"""A sale as a row of public values, for tables, JSON and CSV. The signed payload is never part of it."""

import re
from datetime import UTC, datetime

from obol.core.money import format_amount
from obol.core.networks import DEFAULT_CATALOGUE, Asset, canonical_address
from obol.core.sale import Sale, receipt_of

COLUMNS = (
    "id",
    "created",
    "updated",
    "offer",
    "model",
    "payer",
    "pay_to",
    "network",
    "asset",
    "symbol",
    "authorized",
    "authorized_atomic",
    "settled",
    "settled_atomic",
    "state",
    "delivery",
    "transaction",
    "log_index",
    "reason",
    "input_tokens",
    "output_tokens",
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""First characters that make a spreadsheet calculate."""
_AFTER_SEMICOLON = re.compile(r";(?=\s*[=+@-])")
"""Where some spreadsheets begin another cell, whatever the file says."""


def receipt_row(sale: Sale) -> dict[str, object]:
    """Values of `COLUMNS`. Amounts are text, exact; None: not known (decimals: the asset is not known here)."""
    receipt = receipt_of(sale)
    asset = known_asset(receipt.network, receipt.asset)
    return {
        "id": receipt.id,
        "created": iso(receipt.created_s),
        "updated": iso(receipt.updated_s),
        "offer": receipt.offer,
        "model": receipt.model,
        "payer": spelled(receipt.payer),
        "pay_to": spelled(receipt.pay_to),
        "network": receipt.network,
        "asset": spelled(receipt.asset),
        "symbol": asset.symbol if asset else None,
        "authorized": decimals_of(receipt.authorized_atomic, asset),
        "authorized_atomic": str(receipt.authorized_atomic),
        "settled": decimals_of(receipt.settled_atomic, asset),
        "settled_atomic": None if receipt.settled_atomic is None else str(receipt.settled_atomic),
        "state": receipt.state.value,
        "delivery": receipt.delivery.value,
        "transaction": receipt.transaction,
        "log_index": receipt.log_index,
        "reason": receipt.reason,
        "input_tokens": receipt.usage.input_tokens,
        "output_tokens": receipt.usage.output_tokens,
    }


def csv_cell(value: object) -> object:
    """A value on one line that no spreadsheet takes for a formula: text that would be one begins with an apostrophe."""
    if not isinstance(value, str):
        return "" if value is None else value
    line = _AFTER_SEMICOLON.sub(";'", "".join(c if c.isprintable() else " " for c in value))
    return "'" + line if value.startswith(_FORMULA) else line


def known_asset(network: str, address: str) -> Asset | None:
    """The token of our catalogue at an address, or None."""
    there = DEFAULT_CATALOGUE.find_network(network)
    return None if there is None else DEFAULT_CATALOGUE.find_asset(there, address)


def asset_name(network: str, address: str) -> str:
    """A token for people, by the names of our catalogue where it has any."""
    asset = known_asset(network, address)
    return f"{asset.symbol} on {asset.network.name}" if asset else f"{spelled(address)} on {network}"


def spelled(address: str) -> str:
    """An address in its EIP-55 spelling, as everything here emits it; what is none stays as it is."""
    from obol.x402.eip712 import checksum_address

    return address if canonical_address(address) is None else checksum_address(address)


def decimals_of(amount_atomic: int | None, asset: Asset | None) -> str | None:
    """An amount in whole units of the asset, exact; None where amount or asset is not known."""
    return None if amount_atomic is None or asset is None else format_amount(amount_atomic, asset.decimals)


def amount_text(amount_atomic: int, asset: Asset | None) -> str:
    """An amount for people: with its symbol, or in atomic units of an asset that is not known."""
    shown = decimals_of(amount_atomic, asset)
    return f"{amount_atomic} atomic" if asset is None or shown is None else f"{shown} {asset.symbol}"


def iso(time_s: float) -> str:
    """UTC to the second."""
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
