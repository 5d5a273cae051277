"""`obol facilitator`: a process that verifies and settles x402 payments for sellers."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from obol.cli import output
from obol.cli.environment import secret
from obol.cli.rpc_urls import rpc_urls
from obol.facilitator.settings import DEFAULT_LISTEN, FacilitatorSettings

if TYPE_CHECKING:
    import structlog

    from obol.adapters.evm_signing import TransactionSigner
    from obol.adapters.facilitator_evm import Served
    from obol.adapters.facilitator_metrics import FacilitatorMetrics
    from obol.facilitator.on_chain import ChainSettings
    from obol.x402.facilitator import Facilitator

_GWEI = 10**9
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.group()
def facilitator() -> None:
    """Verify and settle x402 payments for sellers."""


@facilitator.command(short_help="Verify and settle for whoever asks, until SIGTERM.")
@click.option("--devnet", is_flag=True, help="On the embedded ledger of play money.")
@click.option(
    "--rpc",
    "rpcs",
    multiple=True,
    envvar="OBOL_RPC",
    metavar="URL[,URL…]",
    help="On the chain of these nodes (or OBOL_RPC); repeated: on several chains.",
)
@click.option("--key-file", type=_FILE, help="The key that pays the gas: 64 hex digits.")
@click.option("--keystore", type=_FILE, help="The same, as an encrypted keystore file.")
@click.option("--keystore-password-env", metavar="NAME", help="Variable with its password; else it is asked.")
@click.option("--signer-url", metavar="URL", help="A signer that has the key: JSON-RPC eth_signTransaction.")
@click.option("--signer-address", metavar="0x…", help="The address of the signer's key.")
@click.option(
    "--pay-to",
    "payees",
    multiple=True,
    metavar="0x…",
    help="Work for this seller only (repeatable); else for whoever can reach it.",
)
@click.option(
    "--max-gas-price",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    metavar="GWEI",
    help="Send nothing while gas costs more.",
)
@click.option(
    "--confirmations",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Blocks until a settlement counts.",
)
@click.option(
    "--batch-max",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    metavar="N",
    help="Payments in one transaction, by our batcher contract.",
)
@click.option(
    "--batch-wait",
    "batch_wait_s",
    type=click.FloatRange(min=0),
    default=0.05,
    show_default=True,
    metavar="S",
    help="Wait for others to fill a batch.",
)
@click.option(
    "--allow-factory",
    "factories",
    multiple=True,
    metavar="0x…",
    help="May be called to deploy a payer's contract wallet (ERC-6492; repeatable).",
)
@click.option(
    "--settle-wait",
    "settle_wait_s",
    type=click.FloatRange(min=0),
    default=45.0,
    show_default=True,
    metavar="S",
    help="Wait for a block before answering settlement_pending.",
)
@click.option(
    "--max-timeout",
    "max_timeout_s",
    type=click.IntRange(min=1),
    default=86_400,
    show_default=True,
    metavar="S",
    help="Refuse requirements with a longer maxTimeoutSeconds.",
)
@click.option("--listen", default=DEFAULT_LISTEN, show_default=True, help="Address to serve on; port 0: any free one.")
@click.option(
    "--chain", "chains", multiple=True, help="Network of the devnet, may be repeated.  [default: base-sepolia]"
)
@click.option(
    "--data-dir", type=click.Path(path_type=Path), help="Where ledger and journals are kept.  [default: by XDG]"
)
@output.json_option
def run(  # noqa: PLR0913 - the options
    devnet: bool,
    rpcs: tuple[str, ...],
    key_file: Path | None,
    keystore: Path | None,
    keystore_password_env: str | None,
    signer_url: str | None,
    signer_address: str | None,
    payees: tuple[str, ...],
    max_gas_price: int,
    confirmations: int,
    batch_max: int,
    batch_wait_s: float,
    factories: tuple[str, ...],
    settle_wait_s: float,
    max_timeout_s: int,
    listen: str,
    chains: tuple[str, ...],
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Serve /verify, /settle, /supported, /health and /metrics until SIGTERM; then finish what is being answered."""
    import os

    from obol.adapters.paths import default_data_dir
    from obol.cli.runtime import run_async
    from obol.errors import SettingsError
    from obol.facilitator.settings import load

    if devnet and click.get_current_context().get_parameter_source("rpcs") is ParameterSource.ENVIRONMENT:
        rpcs = ()
    if devnet == bool(rpcs):
        raise click.UsageError("say where the money is, one of --devnet and --rpc URL (or OBOL_RPC)")
    settings = load(listen, data_dir or default_data_dir(os.environ), chains)
    if devnet:
        run_async(_serve_devnet(settings, as_json=as_json))
        return
    urls = tuple(rpc_urls(text) for text in rpcs)
    if chains:
        raise SettingsError("--chain", "is for --devnet: the nodes of --rpc say of which chain they are")
    signer = _signer(key_file, keystore, keystore_password_env, signer_url, signer_address)
    from obol.adapters.evm_sender import SendingLimits
    from obol.facilitator.on_chain import ChainSettings

    on_chain = ChainSettings(
        rpc_urls=urls,
        data_dir=settings.data_dir,
        catalogue=settings.catalogue,
        limits=SendingLimits(max_fee_wei=max_gas_price * _GWEI),
        confirmations=confirmations,
        batch_max=batch_max,
        batch_wait_s=batch_wait_s,
        factories=frozenset(_address(one, "--allow-factory") for one in factories),
        payees=frozenset(_address(one, "--pay-to") for one in payees),
        settle_wait_s=settle_wait_s,
        max_timeout_s=max_timeout_s,
    )
    run_async(_serve_chains(settings, on_chain, signer, as_json=as_json))


def _address(text: str, field: str) -> str:
    from obol.core.networks import canonical_address
    from obol.errors import SettingsError

    address = canonical_address(text)
    if address is None:
        raise SettingsError(field, f"{text!r} is not an address: 0x and 40 hex digits")
    return address


def _signer(
    key_file: Path | None,
    keystore: Path | None,
    password_variable: str | None,
    signer_url: str | None,
    signer_address: str | None,
) -> "TransactionSigner":
    """By the one that is given; what contradicts is found before a password is asked. Raises `SettingsError`."""
    from obol.errors import SettingsError

    if keystore is None and password_variable is not None:
        raise SettingsError("--keystore-password-env", "means nothing without --keystore")
    if sum(one is not None for one in (key_file, keystore, signer_url)) != 1:
        raise SettingsError("--key-file", "say who pays the gas: exactly one of --key-file, --keystore, --signer-url")
    if (signer_url is None) != (signer_address is None):
        raise SettingsError("--signer-address", "belongs to --signer-url: give both")
    try:
        from obol.adapters.evm_signing import LocalTransactionSigner, RemoteTransactionSigner
    except ModuleNotFoundError:
        raise SettingsError("--rpc", "needs eth-account: install obol with its extra `facilitator`") from None
    if keystore is not None:
        return LocalTransactionSigner.from_keystore(keystore, _password(keystore, password_variable))
    if key_file is not None:
        return LocalTransactionSigner.from_key_file(key_file)
    return RemoteTransactionSigner(signer_url or "", signer_address or "")


def _password(keystore: Path, variable: str | None) -> str:
    """Of a keystore file, from the environment or the terminal."""
    import os

    if variable is None:
        return str(click.prompt(f"Password of {keystore}", hide_input=True, err=True))
    return secret(os.environ, "--keystore-password-env", variable)


async def _serve_devnet(settings: FacilitatorSettings, *, as_json: bool) -> None:
    from obol.adapters.chain_devnet import DevnetChain
    from obol.adapters.clock import SystemClock
    from obol.adapters.facilitator_devnet import DevnetFacilitator
    from obol.adapters.facilitator_metrics import FacilitatorMetrics
    from obol.adapters.paths import devnet_file

    file = devnet_file(settings.data_dir)
    chain = await DevnetChain.open(file, SystemClock(), networks=settings.networks, catalogue=settings.catalogue)
    facts = {
        "ledger": "devnet: play money, worth nothing",
        "networks": ", ".join(network.caip2 for network in settings.networks),
        "file": str(file),
    }
    await _serve(DevnetFacilitator(chain), FacilitatorMetrics(), settings, facts, as_json=as_json)


async def _serve_chains(
    settings: FacilitatorSettings, on_chain: "ChainSettings", signer: "TransactionSigner", *, as_json: bool
) -> None:
    from obol.adapters.clock import SystemClock
    from obol.adapters.facilitator_metrics import FacilitatorMetrics
    from obol.facilitator.on_chain import open_on_chain

    facilitator = await open_on_chain(on_chain, signer, SystemClock(), _log())
    metrics = FacilitatorMetrics()
    for served in facilitator.served:
        _watch(metrics, served)
    facts = {
        "networks": ", ".join(served.chain.network.caip2 for served in facilitator.served),
        "tokens": ", ".join(f"{asset.symbol} {asset.address}" for one in facilitator.served for asset in one.assets),
        "gas_paid_by": signer.address,
        "journals": str(on_chain.data_dir),
    }
    shortages = [await served.gas.shortage() for served in facilitator.served if served.gas is not None]
    if any(shortages):
        facts["gas_short"] = "; ".join(f"{shortage}: fund it" for shortage in shortages if shortage)
    await _serve(facilitator, metrics, settings, facts, as_json=as_json)


def _watch(metrics: "FacilitatorMetrics", served: "Served") -> None:
    chain, sender = served.chain, served.sender
    metrics.watch(
        chain.network.caip2,
        unmined=lambda: sender.unmined,
        round_trips=lambda: chain.rpc.round_trips,
        gas_wei=lambda: chain.native_balance(sender.address),
    )


async def _serve(
    facilitator: "Facilitator",
    metrics: "FacilitatorMetrics",
    settings: FacilitatorSettings,
    facts: dict[str, str],
    *,
    as_json: bool,
) -> None:
    """Listen, wait for a signal, drain, close; takes over `facilitator`."""
    import asyncio
    import secrets
    import signal

    from obol.facilitator.app import build_app
    from obol.facilitator.serve import serve

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    def announce(url: str) -> None:
        output.show({"address": url, **facts}, title="Facilitator listening", as_json=as_json)

    def say_goodbye() -> None:
        output.note("stopping: no new requests, waiting for those being answered (again Ctrl-C: at once)")
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(number)

    try:
        app = build_app(
            facilitator,
            new_request_id=lambda: secrets.token_hex(8),
            log=_log(),
            catalogue=settings.catalogue,
            metrics=metrics,
        )
        await serve(app, settings, on_listening=announce, stop=stop, on_stopping=say_goodbye)
    finally:
        await facilitator.close()


def _log() -> "structlog.typing.FilteringBoundLogger":
    import sys

    from obol.adapters.logs import make_logger

    return make_logger(as_json=not sys.stderr.isatty())
