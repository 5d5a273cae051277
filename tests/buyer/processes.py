"""Buyers that come one after another, each a process of its own on one folder of kept payments."""

from collections.abc import Callable
from pathlib import Path

import httpx2

from obol.buyer.payment_auth import PaymentAuth
from obol.errors import PaymentRefusedError
from tests.buyer.test_payment_auth import post
from tests.fakes.seller import FakeSeller

NewAuth = Callable[..., PaymentAuth]


def kept(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


def nonces(seller: FakeSeller) -> int:
    """How many payments the seller has seen."""
    return len({seen.nonce for seen in seller.paid})


def try_to_buy(seller: FakeSeller, auth: PaymentAuth, path: str = "/v1/x") -> int | str:
    """The answer's status, or why there is none."""
    try:
        return post(seller, auth, path).status_code
    except PaymentRefusedError as refused:
        return refused.reason
    except httpx2.TransportError:
        return "lost"
