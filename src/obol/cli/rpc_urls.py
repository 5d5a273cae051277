"""The nodes that `--rpc` names."""

from obol.errors import SettingsError


def rpc_urls(given: str) -> tuple[str, ...]:
    """The URLs of `URL[,URL…]`. Raises `SettingsError` for none: `--rpc "$UNSET"` must not pass for no `--rpc`."""
    urls = tuple(url.strip() for url in given.split(",") if url.strip())
    if not urls:
        raise SettingsError("--rpc", "is empty: give the URL of a node of the chain, or leave it out")
    return urls
