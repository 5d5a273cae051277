"""Listening until told to stop, then letting requests that are being answered end."""

import asyncio
from collections.abc import Callable

from aiohttp import web

from obol.errors import SettingsError
from obol.facilitator.settings import FacilitatorSettings


async def serve(
    app: web.Application, settings: FacilitatorSettings, *, on_listening: Callable[[str], None], stop: asyncio.Event
) -> None:
    """Serve `app` until `stop` is set, then drain. `on_listening` gets the URL, with the real port.

    Raises `SettingsError` naming `--listen` when the address cannot be listened on.
    """
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=settings.drain_timeout_s)
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.host, settings.port)
        try:
            await site.start()
        except OSError as error:
            raise SettingsError("--listen", f"cannot listen on {settings.host}:{settings.port}: {error}") from error
        on_listening(_url(settings.host, runner.addresses[0][1]))
        await stop.wait()
    finally:
        await runner.cleanup()


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
