"""The official Python facilitator as a program: its mechanisms behind the HTTP API that its documentation describes.

Arguments: the RPC's URL and the key that pays the gas. Prints its address as one line of JSON, and serves until it is
ended. A process of its own, and its threads: its calls to the chain block.
"""

import json
import socket
import sys
from typing import Any

import uvicorn
from fastapi import FastAPI
from x402 import x402FacilitatorSync
from x402.extensions.eip2612_gas_sponsoring import EIP2612_GAS_SPONSORING
from x402.mechanisms.evm import FacilitatorWeb3Signer
from x402.mechanisms.evm.exact import register_exact_evm_facilitator
from x402.schemas import parse_payment_payload, parse_payment_requirements

NETWORK = "eip155:84532"


def build_app(rpc_url: str, key: str) -> FastAPI:
    """`/verify`, `/settle` and `/supported`, each in a thread of FastAPI's."""
    signer = FacilitatorWeb3Signer(private_key=key, rpc_url=rpc_url)
    facilitator = register_exact_evm_facilitator(x402FacilitatorSync(), signer, NETWORK)
    facilitator.register_extension(EIP2612_GAS_SPONSORING)
    app = FastAPI()

    @app.post("/verify")
    def verify(body: dict[str, Any]) -> Any:
        return facilitator.verify(*_read(body)).model_dump(by_alias=True, exclude_none=True)

    @app.post("/settle")
    def settle(body: dict[str, Any]) -> Any:
        return facilitator.settle(*_read(body)).model_dump(by_alias=True, exclude_none=True)

    @app.get("/supported")
    def supported() -> Any:
        return facilitator.get_supported().model_dump(by_alias=True, exclude_none=True)

    return app


def _read(body: dict[str, Any]) -> tuple[Any, Any]:
    payload = parse_payment_payload(body["paymentPayload"])
    return payload, parse_payment_requirements(payload.x402_version, body["paymentRequirements"])


def main() -> None:
    rpc_url, key = sys.argv[1:]
    app = build_app(rpc_url, key)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        host, port = listening.getsockname()
        sys.stdout.write(json.dumps({"address": f"http://{host}:{port}"}) + "\n")
        sys.stdout.flush()  # whoever connects from now on is served soon
        uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none")).run(sockets=[listening])


if __name__ == "__main__":
    main()
