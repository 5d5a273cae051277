"""A facilitator that gives one question several answers, and what must be true of a sale whatever it says."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from obol.adapters.facilitator_devnet import DevnetFacilitator
from obol.x402.facilitator import Accepted, Settlement, SettleOutcome, VerifyOutcome
from obol.x402.models import PaymentPayload, PaymentRequirements, SupportedKind, SupportedResponse
from tests.evm.anvil import USDC, Anvil
from tests.evm.authorizing import transfer_call
from tests.gateway.shop import PATIENCE_S, PRICE_ATOMIC, Shop, chat

A, B = "0x" + "aa" * 32, "0x" + "bb" * 32
NOT_KNOWN = Settlement(SettleOutcome.UNKNOWN, "", "unexpected_settle_error")
PENDING_A = Settlement(SettleOutcome.PENDING, A, "settlement_pending")
REFUSED = Settlement(SettleOutcome.FAILED, "", "insufficient_funds")
USED = Settlement(SettleOutcome.UNKNOWN, "", "invalid_exact_evm_nonce_already_used")
SETTLED_A, SETTLED_B = Settlement(SettleOutcome.SETTLED, A), Settlement(SettleOutcome.SETTLED, B)

Move = Callable[[PaymentPayload, PaymentRequirements], Awaitable[None]]
Payment = Mapping[str, str]


class ManyTongues:
    """Implements `Facilitator`: moves the money when first asked, and says the next of `says` each time.

    The last one is said again and again, once `may_end` is set.
    """

    def __init__(self, move: Move | None, *says: Settlement) -> None:
        self._move = move
        self._says = says
        self.asked: list[tuple[PaymentPayload, PaymentRequirements]] = []
        self.may_end = asyncio.Event()
        self._is_at_the_end = asyncio.Event()

    async def verify(self, payload: PaymentPayload, requirements: PaymentRequirements) -> VerifyOutcome:
        return Accepted(payload.payer.lower())

    async def settle(self, payload: PaymentPayload, requirements: PaymentRequirements) -> Settlement:
        if self._move is not None and not self.asked:
            await self._move(payload, requirements)
        self.asked.append((payload, requirements))
        if len(self.asked) < len(self._says):
            return self._says[len(self.asked) - 1]
        self._is_at_the_end.set()
        await self.may_end.wait()
        return self._says[-1]

    async def asked_to_the_end(self) -> None:
        """Wait until nothing but the last is left to say."""
        async with asyncio.timeout(PATIENCE_S):
            await self._is_at_the_end.wait()

    async def supported(self) -> SupportedResponse:
        return SupportedResponse([SupportedKind(2, "exact", "eip155:84532")])

    async def close(self) -> None:
        self.may_end.set()


def on_the_devnet(shop: Shop) -> Move:
    async def move(payload: PaymentPayload, requirements: PaymentRequirements) -> None:
        moved = await DevnetFacilitator(shop.chain).settle(payload, requirements)
        assert moved.outcome is SettleOutcome.SETTLED

    return move


def say(shop: Shop, *says: Settlement, move: Move | None = None) -> ManyTongues:
    """What the shop's facilitator says from now on."""
    tongues = ManyTongues(move, *says)
    shop.facilitator.inner = tongues
    return tongues


def on(anvil: Anvil) -> Move:
    async def move(payload: PaymentPayload, _requirements: PaymentRequirements) -> None:
        sent = await anvil.send(USDC.address, transfer_call(payload))
        assert sent["status"] == "0x1"

    return move


async def nobody_is_asked_to_pay_again(shop: Shop, payment: Payment) -> None:
    """Nor served, while nobody knows."""
    for stream in (False, True):
        meanwhile = await shop.post(payment, chat(stream=stream))
        assert (meanwhile.status in (409, 503), meanwhile.asks_for_money) == (True, False)
        assert b"Hello" not in meanwhile.body


async def it_is_served_once(shop: Shop, payment: Payment) -> None:
    served = await asyncio.gather(*(shop.post(payment) for _ in range(4)))
    assert sorted(one.status for one in served) == [200, 409, 409, 409]
    assert not any(one.asks_for_money for one in served)


async def one_sale_is_settled(shop: Shop, payment: Payment, *, transaction: str) -> dict[str, Any]:
    """Its receipt, which names this transaction."""
    (row,) = await shop.ledger_rows()
    receipt = await shop.receipt_in("settled", row["id"], delivery="complete")
    assert (receipt["transaction"], receipt["settledAtomic"]) == (transaction, str(PRICE_ATOMIC))
    again = await shop.again(payment)
    assert (again.reason, again.asks_for_money, again.sale_id) == ("payment_used", False, row["id"])
    assert len(await shop.ledger_rows()) == 1
    return receipt
