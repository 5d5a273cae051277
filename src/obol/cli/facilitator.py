"""`obol facilitator`: a process that verifies and settles x402 payments for sellers."""

from pathlib import Path

import click

from obol.cli import output
from obol.facilitator.settings import DEFAULT_LISTEN, FacilitatorSettings


@click.group()
def facilitator() -> None:
    """Verify and settle x402 payments for sellers."""


@facilitator.command()
@click.option("--devnet", is_flag=True, help="On the embedded ledger of play money (the only kind so far).")
@click.option("--listen", default=DEFAULT_LISTEN, show_default=True, help="Address to serve on; port 0: any free one.")
@click.option(
    "--chain", "chains", multiple=True, help="Network of the devnet, may be repeated.  [default: base-sepolia]"
)
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where the ledger is kept.  [default: by XDG]")
@output.json_option
def run(devnet: bool, listen: str, chains: tuple[str, ...], data_dir: Path | None, as_json: bool) -> None:
    """Serve /verify, /settle, /supported and /health until SIGTERM; then finish what is being answered."""
    import os

    from obol.adapters.paths import default_data_dir
    from obol.cli.runtime import run_async
    from obol.facilitator.settings import load

    if not devnet:
        raise click.UsageError("say which ledger: --devnet is the only one so far")
    settings = load(listen, data_dir or default_data_dir(os.environ), chains)
    run_async(_serve(settings, as_json=as_json))


async def _serve(settings: FacilitatorSettings, *, as_json: bool) -> None:
    """Open the devnet, listen, wait for a signal, drain, close."""
    import asyncio
    import secrets
    import signal
    import sys

    from obol.adapters.chain_devnet import DevnetChain
    from obol.adapters.clock import SystemClock
    from obol.adapters.facilitator_devnet import DevnetFacilitator
    from obol.adapters.logs import make_logger
    from obol.adapters.paths import devnet_file
    from obol.facilitator.app import build_app
    from obol.facilitator.serve import serve

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    file = devnet_file(settings.data_dir)
    on_devnet = DevnetFacilitator(
        await DevnetChain.open(file, SystemClock(), networks=settings.networks, catalogue=settings.catalogue)
    )

    def announce(url: str) -> None:
        facts = {
            "address": url,
            "ledger": "devnet: play money, worth nothing",
            "networks": ", ".join(network.caip2 for network in settings.networks),
            "file": str(file),
        }
        output.show(facts, title="Facilitator listening", as_json=as_json)

    try:
        log = make_logger(as_json=not sys.stderr.isatty())
        app = build_app(on_devnet, new_request_id=lambda: secrets.token_hex(8), log=log, catalogue=settings.catalogue)
        await serve(app, settings, on_listening=announce, stop=stop)
    finally:
        await on_devnet.close()
