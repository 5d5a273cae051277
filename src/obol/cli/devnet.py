"""`obol devnet`: money and balances on the embedded test ledger, in its file; a facilitator may be running on it."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from obol.cli import output

if TYPE_CHECKING:
    from obol.adapters.chain_devnet import DevnetChain
    from obol.core.networks import Asset


def _token_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option(
            "--data-dir", type=click.Path(path_type=Path), help="Where the ledger is kept.  [default: by XDG]"
        ),
        click.option("--chain", default="base-sepolia", show_default=True, help="Network: name or CAIP-2 id."),
        click.option("--asset", default="usdc", show_default=True, help="Token: symbol or contract address."),
    ):
        command = option(command)
    return command


@click.group()
def devnet() -> None:
    """Fund accounts and read balances on the embedded test ledger. Its money is worth nothing."""


@devnet.command()
@click.argument("address")
@click.argument("amount")
@_token_options
@output.json_option
def fund(address: str, amount: str, asset: str, chain: str, data_dir: Path | None, as_json: bool) -> None:
    """Make AMOUNT (a decimal such as 1.50) of play money for ADDRESS."""
    from obol.core.money import parse_amount

    token = _token(chain, asset)
    amount_atomic = parse_amount(amount, token.decimals, field="AMOUNT")
    held = _on_devnet(token, data_dir, lambda ledger: ledger.fund(token, address, amount_atomic))
    output.show(_facts(token, address, held), title="Funded", as_json=as_json)


@devnet.command()
@click.argument("address")
@_token_options
@output.json_option
def balance(address: str, asset: str, chain: str, data_dir: Path | None, as_json: bool) -> None:
    """Show what ADDRESS holds."""
    token = _token(chain, asset)
    held = _on_devnet(token, data_dir, lambda ledger: ledger.balance(token, address))
    output.show(_facts(token, address, held), title="Balance", as_json=as_json)


def _token(chain: str, asset: str) -> "Asset":
    from obol.core.networks import DEFAULT_CATALOGUE, TransferMethod
    from obol.errors import SettingsError

    token = DEFAULT_CATALOGUE.asset(DEFAULT_CATALOGUE.network(chain), asset, field="--asset")
    if token.transfer_method is not TransferMethod.EIP3009:
        raise SettingsError("--asset", f"the devnet has no {token.symbol}: only tokens that are moved by EIP-3009")
    return token


def _on_devnet(token: "Asset", data_dir: Path | None, ask: Callable[["DevnetChain"], Awaitable[int]]) -> int:
    import os

    from obol.adapters.chain_devnet import DevnetChain
    from obol.adapters.clock import SystemClock
    from obol.adapters.paths import default_data_dir, devnet_file
    from obol.cli.runtime import run_async

    file = devnet_file(data_dir or default_data_dir(os.environ))

    async def asked() -> int:
        ledger = await DevnetChain.open(file, SystemClock(), networks=(token.network,))
        try:
            return await ask(ledger)
        finally:
            await ledger.close()

    return run_async(asked())


def _facts(token: "Asset", address: str, held_atomic: int) -> dict[str, object]:
    from obol.core.money import format_amount

    return {
        "address": address,
        "balance": format_amount(held_atomic, token.decimals),
        "asset": token.symbol,
        "network": token.network.caip2,
        "balance_atomic": str(held_atomic),
    }
