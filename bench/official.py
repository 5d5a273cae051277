"""A seller made of the official x402 FastAPI middleware on uvicorn, with aiohttp to its upstream: what to compare with.

`python -m bench.official PORT UPSTREAM FACILITATOR`
"""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from starlette.responses import Response
from x402 import x402ResourceServer
from x402.http import FacilitatorConfig, HTTPFacilitatorClient, PaymentOption
from x402.http.middleware.fastapi import PaymentMiddlewareASGI
from x402.http.types import RouteConfig
from x402.mechanisms.evm.exact.register import register_exact_evm_server

from bench.offer import NETWORK, PATH, PAY_TO, PRICE
from bench.programs import HOST


def build_app(upstream: str, facilitator: str) -> FastAPI:
    """The middleware's own example with a proxy behind it."""
    session: aiohttp.ClientSession

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        nonlocal session
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            yield

    app = FastAPI(lifespan=lifespan)
    server = x402ResourceServer(HTTPFacilitatorClient(FacilitatorConfig(url=facilitator)))
    register_exact_evm_server(server)
    price = PaymentOption(scheme="exact", pay_to=PAY_TO, price=f"${PRICE}", network=NETWORK.caip2)
    app.add_middleware(PaymentMiddlewareASGI, routes={f"POST {PATH}": RouteConfig(accepts=[price])}, server=server)

    @app.post(PATH)
    async def chat(request: Request) -> Response:
        headers = {"Content-Type": "application/json"}
        answer = await session.post(upstream + PATH, data=await request.body(), headers=headers)
        content_type = answer.headers["Content-Type"]
        if content_type.startswith("text/event-stream"):
            return StreamingResponse(answer.content.iter_any(), media_type=content_type)
        async with answer:
            return Response(await answer.read(), answer.status, media_type=content_type)

    return app


if __name__ == "__main__":
    uvicorn.run(
        build_app(sys.argv[2], sys.argv[3]),
        host=HOST,
        port=int(sys.argv[1]),
        log_level="warning",
        access_log=False,
        loop="uvloop",
        http="httptools",
        backlog=1024,
    )
