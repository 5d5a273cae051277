"""A proxy before a node's RPC that counts what is asked: `python -m bench.rpc_counter PORT NODE DELAY_S`.

`GET /` answers how often each method was asked since the start, as JSON. `DELAY_S` makes the node that far away.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator

import aiohttp
import msgspec
from aiohttp import web

from bench.programs import HOST


def build_app(node: str, delay_s: float) -> web.Application:
    """Every POST is one question, or a batch of them that costs one round trip all the same."""
    asked: Counter[str] = Counter()
    session: aiohttp.ClientSession

    async def lifespan(_: web.Application) -> AsyncIterator[None]:
        nonlocal session
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            yield

    async def forward(request: web.Request) -> web.Response:
        body = await request.read()
        question = msgspec.json.decode(body)
        asked[question["method"] if isinstance(question, dict) else "batch"] += 1
        await asyncio.sleep(delay_s)
        async with session.post(node, data=body, headers={"Content-Type": "application/json"}) as answer:
            return web.Response(body=await answer.read(), status=answer.status, content_type="application/json")

    async def counts(_: web.Request) -> web.Response:
        return web.json_response(asked)

    app = web.Application()
    app.cleanup_ctx.append(lifespan)
    app.router.add_post("/", forward)
    app.router.add_get("/", counts)
    return app


if __name__ == "__main__":
    web.run_app(
        build_app(sys.argv[2], float(sys.argv[3])), host=HOST, port=int(sys.argv[1]), print=None, access_log=None
    )
