"""Signed payments for one offer, and their other spellings."""

import base64
import json
from typing import Any

import msgspec

from obol.adapters.signer_local import LocalSigner
from obol.core.networks import BASE_SEPOLIA, DEFAULT_CATALOGUE
from obol.core.offer import Model, Offer
from obol.x402.client import sign_exact
from obol.x402.exact import ExactVerifier, build_requirements
from obol.x402.headers import read_presented
from obol.x402.models import PaymentPayload, PaymentRequirements
from obol.x402.presented import Presented

NOW_S = 1_800_000_000.0
MAX_VALIDITY_S = 24 * 3600
BUYER = LocalSigner(bytes.fromhex("11" * 32))
PAY_TO = "0x209693Bc6afc0C5328bA36FaF03C514EF312287C"
USDC = DEFAULT_CATALOGUE.asset(BASE_SEPOLIA, "usdc")
OFFER = Offer("demo", "http://127.0.0.1:1", (Model("m", "m"),), USDC, PAY_TO, 1000)
REQUIREMENTS = build_requirements(OFFER)
OBOL = DEFAULT_CATALOGUE.asset(BASE_SEPOLIA, "obol")
OBOL_OFFER = Offer("demo", "http://127.0.0.1:1", (Model("m", "m"),), OBOL, PAY_TO, 5 * 10**16)
OBOL_REQUIREMENTS = build_requirements(OBOL_OFFER)
SECP256K1_N = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def pay(requirements: PaymentRequirements = REQUIREMENTS, nonce: bytes = b"\x42" * 32) -> PaymentPayload:
    return sign_exact(BUYER, requirements, USDC, now_s=NOW_S, nonce=nonce)


def pay_obol(requirements: PaymentRequirements = OBOL_REQUIREMENTS, nonce: bytes = b"\x42" * 32) -> PaymentPayload:
    return sign_exact(BUYER, requirements, OBOL, now_s=NOW_S, nonce=nonce)


def as_v2(payload: PaymentPayload) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(payload)
    return fields


def as_v1(payload: PaymentPayload, network: str = "base-sepolia") -> dict[str, Any]:
    return {"x402Version": 1, "scheme": "exact", "network": network, "payload": as_v2(payload)["payload"]}


def header(fields: object, *, indent: int | None = None) -> str:
    text = json.dumps(fields, indent=indent)
    return base64.b64encode(text.encode()).decode()


def header_of_text(text: str) -> str:
    return base64.b64encode(text.encode("utf-8", "surrogatepass")).decode()


def read(text: str) -> Presented:
    presented = read_presented([], [text], DEFAULT_CATALOGUE)
    assert presented is not None
    return presented


def read_fields(fields: object) -> Presented:
    return read(header(fields))


def verifier() -> ExactVerifier:
    return ExactVerifier(REQUIREMENTS, USDC, max_validity_s=MAX_VALIDITY_S)


def obol_verifier() -> ExactVerifier:
    return ExactVerifier(OBOL_REQUIREMENTS, OBOL, max_validity_s=MAX_VALIDITY_S)


def high_s_twin(signature: bytes) -> bytes:
    """The other signature of the same key over the same digest: n - s, and v flipped."""
    s = SECP256K1_N - int.from_bytes(signature[32:64], "big")
    return signature[:32] + s.to_bytes(32, "big") + bytes((55 - signature[64],))
