"""Parts in this process: payment header to verified, one signature, a durable claim alone and 64 at once."""

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec

from bench.machine import SUBJECT_CORE, on_core
from bench.offer import MODEL, NETWORK, PAY_TO, PRICE, USDC
from bench.payments import Wallet
from bench.report import Table, middle, number
from obol.adapters.clock import SystemClock
from obol.adapters.event_loop import run
from obol.adapters.ledger_sqlite import SqliteLedger
from obol.core.money import parse_amount
from obol.core.networks import DEFAULT_CATALOGUE
from obol.core.offer import Model, Offer
from obol.core.sale import ClaimKey, NewSale
from obol.x402.authorization import parse_authorization, parse_signature
from obol.x402.eip712 import authorization_digest, domain_separator, recover
from obol.x402.exact import ExactVerifier, Verified, build_requirements, matches
from obol.x402.headers import read_presented

PAYMENTS = 2000
ROUNDS = 5
CLAIMS_ALONE = 200
CLAIMS_TOGETHER = 4096


def measure(folder: Path, say: Callable[[str], None]) -> list[Table]:
    """Best of a few rounds: what else runs on the machine only ever adds."""
    with on_core(SUBJECT_CORE):
        say("payment header to verified")
        table = Table(
            "Parts",
            ("part", "µs"),
            notes=("CPU time, best of several rounds; claims: median by the wall clock, fsync included.",),
        )
        table.rows.extend(_payment_rows())
        say("durable claims")
        table.rows.extend(run(_claim_rows(folder)))
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


async def _claim_rows(folder: Path) -> list[tuple[str, str]]:
    ledger = await SqliteLedger.open(folder / "micro" / "ledger.sqlite3", SystemClock())
    try:
        alone_us = await _claims(ledger, CLAIMS_ALONE, 1)
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        together_us = await _claims(ledger, CLAIMS_TOGETHER, 64)
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    finally:
        await ledger.close()
    return [
        ("claim, durable, alone", number(middle(alone_us))),
        ("claim, durable, 64 at once: until it is durable", number(middle(together_us))),
        ("  CPU of one", number(cpu_s / CLAIMS_TOGETHER * 1e6)),
        ("  claims a second", number(CLAIMS_TOGETHER / wall_s)),
    ]


async def _claims(ledger: SqliteLedger, count: int, concurrent: int) -> list[float]:
    """Microseconds that each claim took, `concurrent` of them at any time."""
    durations_us: list[float] = []
    sales = iter([_new_sale() for _ in range(count)])

    async def claim_on() -> None:
        for sale in sales:
            started_s = time.perf_counter()
            await ledger.claim(sale)
            durations_us.append((time.perf_counter() - started_s) * 1e6)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(concurrent):
            tasks.create_task(claim_on())
    return durations_us


_KEY = ClaimKey(NETWORK.caip2, USDC.address.lower(), "0x" + "11" * 20, "")
_SALE = NewSale(
    id="",
    key=_KEY,
    offer="bench",
    pay_to=PAY_TO,
    authorized_atomic=1000,
    valid_before_s=2_000_000_000,
    api="chat",
    model=MODEL,
    payload=msgspec.json.encode({"payload": "x" * 600}),
    requirements=msgspec.json.encode({"requirements": "x" * 250}),
    created_s=0.0,
)


def _new_sale() -> NewSale:
    return replace(_SALE, id=secrets.token_hex(16), key=replace(_KEY, nonce="0x" + secrets.token_hex(32)))
