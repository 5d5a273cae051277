"""Listening until told to stop, then letting requests that are being answered end."""

import asyncio
from collections.abc import Callable

from aiohttp import web

from obol.adapters.listening import why_not
from obol.errors import SettingsError
from obol.facilitator.settings import FacilitatorSettings


async def serve(
    app: web.Application,
    settings: FacilitatorSettings,
    *,
    on_listening: Callable[[str], None],
    stop: asyncio.Event,
    on_stopping: Callable[[], None] = lambda: None,
) -> None:
    """Serve `app` until `stop` is set, then drain. `on_listening` gets the URL, with the real port; `on_stopping` is
    called before the drain.

    Raises `SettingsError` naming `--listen` when the address cannot be listened on.
    """
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=settings.drain_timeout_s)
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.host, settings.port)
        try:
            await site.start()
        except OSError as error:
            address = _address(settings.host, settings.port)
            raise SettingsError("--listen", f"cannot listen on {address}: {why_not(error)}") from error
        on_listening(f"http://{_address(settings.host, runner.addresses[0][1])}")
        await stop.wait()
        on_stopping()
    finally:
        await runner.cleanup()


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
