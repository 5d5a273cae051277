"""`obol wallet`: a key to pay with. The key is written to a file and never shown."""

from pathlib import Path

import click

from obol.cli import output


@click.group()
def wallet() -> None:
    """Make a key to pay with, and show its address."""


_KEY_FILE = click.option(
    "--key-file",
    required=True,
    envvar="OBOL_KEY_FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with the private key (or OBOL_KEY_FILE).",
)


@wallet.command(short_help="Make a new key in a new file, and show its address.")
@_KEY_FILE
@output.json_option
def new(key_file: Path, as_json: bool) -> None:
    """Make a new key in a new file that only you can read, and show its address.

    Whoever has the file has the money: keep it private and keep a copy. A file that exists is left as it is.
    """
    from obol.adapters.signer_local import LocalSigner

    signer = LocalSigner.generate()
    signer.write_key_file(key_file)
    output.show({"address": signer.address, "key_file": str(key_file)}, title="new wallet", as_json=as_json)


@wallet.command(short_help="Show the address of a key.")
@_KEY_FILE
@output.json_option
def address(key_file: Path, as_json: bool) -> None:
    """Show the address of a key: where to send the money that it can pay with."""
    from obol.adapters.signer_local import LocalSigner

    signer = LocalSigner.from_key_file(key_file)
    output.show({"address": signer.address}, title="wallet", as_json=as_json)
