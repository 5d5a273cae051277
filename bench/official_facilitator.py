"""A facilitator made of the official Python SDK, as in its own example: what to compare with.

`python -m bench.official_facilitator PORT RPC KEY (as-in-its-example | in-threads)`. Its example asks the chain, with
calls that block, in the event loop itself: one payment at a time. `in-threads` is kinder: its class for threads.
"""

import sys
from typing import Any

import uvicorn
from fastapi import FastAPI
from x402 import x402Facilitator, x402FacilitatorSync
from x402.mechanisms.evm import FacilitatorWeb3Signer
from x402.mechanisms.evm.exact import register_exact_evm_facilitator
from x402.schemas import PaymentPayload, PaymentRequirements

from bench.offer import NETWORK
from bench.programs import HOST

AS_IN_ITS_EXAMPLE = "as-in-its-example"
IN_THREADS = "in-threads"


def build_app(rpc: str, key: str, *, in_threads: bool) -> FastAPI:
    """`/verify`, `/settle` and `/supported`."""
    signer = FacilitatorWeb3Signer(private_key=key, rpc_url=rpc)
    app = FastAPI()
    if in_threads:
        _add_in_threads(app, register_exact_evm_facilitator(x402FacilitatorSync(), signer, NETWORK.caip2))
    else:
        _add_as_in_its_example(app, register_exact_evm_facilitator(x402Facilitator(), signer, NETWORK.caip2))
    return app


def _add_as_in_its_example(app: FastAPI, facilitator: x402Facilitator) -> None:
    @app.post("/verify")
    async def verify(body: dict[str, Any]) -> Any:
        return _wire(await facilitator.verify(*_read(body)))

    @app.post("/settle")
    async def settle(body: dict[str, Any]) -> Any:
        return _wire(await facilitator.settle(*_read(body)))


def _add_in_threads(app: FastAPI, facilitator: x402FacilitatorSync) -> None:
    @app.post("/verify")
    def verify(body: dict[str, Any]) -> Any:
        return _wire(facilitator.verify(*_read(body)))

    @app.post("/settle")
    def settle(body: dict[str, Any]) -> Any:
        return _wire(facilitator.settle(*_read(body)))


def _read(body: dict[str, Any]) -> tuple[PaymentPayload, PaymentRequirements]:
    return (
        PaymentPayload.model_validate(body["paymentPayload"]),
        PaymentRequirements.model_validate(body["paymentRequirements"]),
    )


def _wire(answer: Any) -> Any:
    return answer.model_dump(by_alias=True, exclude_none=True)


if __name__ == "__main__":
    uvicorn.run(
        build_app(sys.argv[2], sys.argv[3], in_threads=sys.argv[4] == IN_THREADS),
        host=HOST,
        port=int(sys.argv[1]),
        log_level="warning",
        access_log=False,
        loop="uvloop",
        http="httptools",
    )
