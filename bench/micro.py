"""Parts in this process: payment header to verified, and one signature."""

import time
from collections.abc import Callable
from pathlib import Path

from bench.machine import SUBJECT_CORE, on_core
from bench.offer import MODEL, NETWORK, PAY_TO, PRICE, USDC
from bench.payments import Wallet
from bench.report import Table, number
from obol.core.money import parse_amount
from obol.core.networks import DEFAULT_CATALOGUE
from obol.core.offer import Model, Offer
from obol.x402.authorization import parse_authorization, parse_signature
from obol.x402.eip712 import authorization_digest, domain_separator, recover
from obol.x402.exact import ExactVerifier, Verified, build_requirements, matches
from obol.x402.headers import read_presented

PAYMENTS = 2000
ROUNDS = 5


def measure(_: Path, say: Callable[[str], None]) -> list[Table]:
    """Best of a few rounds: what else runs on the machine only ever adds."""
    with on_core(SUBJECT_CORE):
        say("payment header to verified")
        table = Table(
            "Parts",
            ("part", "µs"),
            notes=("CPU time, best of several rounds.",),
        )
        table.rows.extend(_payment_rows())
    return [table]


def _payment_rows() -> list[tuple[str, str]]:
    offer = Offer(
        "bench", "", (Model(MODEL, MODEL),), USDC, PAY_TO, parse_amount(PRICE, USDC.decimals, field="--price")
    )
    requirements = build_requirements(offer)
    verifier = ExactVerifier(requirements, USDC, max_validity_s=offer.max_validity_s)
    wallet = Wallet()
    signing_us = _best_us(lambda: wallet.headers(requirements, PAYMENTS))
    headers = wallet.headers(requirements, PAYMENTS)
    now_s = time.time()

    def verify_all() -> None:
        for header in headers:
            presented = read_presented((), (header,), DEFAULT_CATALOGUE)
            if presented is None or not matches(presented, requirements, DEFAULT_CATALOGUE):
                raise RuntimeError("a payment of ours does not match")
            if not isinstance(verifier.verify(presented, now_s), Verified):
                raise RuntimeError("a payment of ours is not valid")

    sample = read_presented((), (headers[0],), DEFAULT_CATALOGUE)
    if sample is None:
        raise RuntimeError("a payment of ours cannot be read")
    domain = domain_separator(USDC.eip712_name, USDC.eip712_version, NETWORK.chain_id, USDC.address)
    digest, signature = (
        authorization_digest(domain, parse_authorization(sample.payload)),
        parse_signature(sample.payload),
    )

    def recover_all() -> None:
        for _ in range(PAYMENTS):
            recover(digest, signature)

    return [
        ("payment header to verified (read, match, verify)", number(_best_us(verify_all), 1)),
        ("  of which recovering the signer (libsecp256k1)", number(_best_us(recover_all), 1)),
        ("sign a payment and write its header", number(signing_us, 1)),
    ]


def _best_us(run: Callable[[], object]) -> float:
    """CPU microseconds for one of `PAYMENTS`."""
    durations_s = []
    for _ in range(ROUNDS):
        started_s = time.thread_time()
        run()
        durations_s.append(time.thread_time() - started_s)
    return min(durations_s) / PAYMENTS * 1e6
