"""`obol demo`: a whole sale on this machine, told step by step: model server, facilitator, gateway, buyer."""

from pathlib import Path

import click


@click.command()
@click.option("--upstream", metavar="URL", help="Sell this model server instead of the built-in one.")
@click.option("--keep", is_flag=True, help="Leave everything running at the end, until Ctrl-C.")
@click.option("--price", default="0.001", show_default=True, help="Price of one request in USDC (play money).")
def demo(upstream: str | None, keep: bool, price: str) -> None:
    """A whole sale on this machine: no account, no internet, play money.

    Starts a real llama.cpp server with a random-weight model (its text is gibberish by design), a devnet facilitator
    and the gateway; buys a streamed answer with the OpenAI SDK; shows quote, receipt and balances; then fills the
    capacity to show the 429 that asks for no money. Everything is stopped at the end.
    """
    import tempfile

    from rich.console import Console

    from obol.cli.demo_story import Story
    from obol.cli.narrator import Narrator
    from obol.cli.runtime import run_async

    with tempfile.TemporaryDirectory(prefix="obol-demo-") as folder:
        run_async(Story(Narrator(Console()), Path(folder), upstream=upstream, price=price).tell(keep=keep))
