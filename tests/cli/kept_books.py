"""A ledger of a gateway on the devnet, and the devnet that its sales were paid on, in one folder."""

from dataclasses import replace
from pathlib import Path

import msgspec

from obol.adapters.chain_devnet import DevnetChain
from obol.adapters.clock import SystemClock
from obol.adapters.facilitator_devnet import DevnetFacilitator
from obol.adapters.ledger_sqlite import SqliteLedger
from obol.adapters.paths import devnet_file, ledger_file
from obol.core.ledger import Change
from obol.core.networks import BASE_SEPOLIA, DEFAULT_CATALOGUE
from obol.core.payment import Event
from obol.core.sale import ClaimKey, Delivery, NewSale
from obol.x402.authorization import Authorization, parse_authorization
from obol.x402.eip712 import checksum_address
from obol.x402.facilitator import SettleOutcome
from obol.x402.models import PaymentPayload
from obol.x402.wire_form import wire_form
from tests.adapters.payments import pay, requirements
from tests.adapters.sales import a_new_sale

SETTLED = (Event.SERVE, Event.OUTPUT, Event.SETTLE, Event.SETTLED)


async def keep_books(
    folder: Path,
    *,
    settled: int = 2,
    reason: str = "",
    pay_to: str = "",
    created_s: float | None = None,
) -> list[str]:
    """Record sales that say settled, with a devnet on which nothing moved; their ids, oldest first."""
    ledger = await SqliteLedger.open(ledger_file(folder, devnet=True), SystemClock())
    ids = []
    for number in range(settled):
        sale = as_a_gateway_writes_it(a_new_sale(), pay_to)
        await ledger.claim(sale if created_s is None else replace(sale, created_s=created_s))
        paid = Change(Delivery.COMPLETE, sale.authorized_atomic, f"0x{number:064x}", reason)
        await ledger.record(sale.id, SETTLED, paid)
        ids.append(sale.id)
    await ledger.close()
    chain = await DevnetChain.open(devnet_file(folder), SystemClock())
    await chain.close()
    return ids


def as_a_gateway_writes_it(sale: NewSale, pay_to: str = "") -> NewSale:
    """The sale with the payment that it tells of; the signature is nonsense."""
    wanted = requirements(sale.authorized_atomic, pay_to=checksum_address(pay_to or sale.pay_to))
    authorization = Authorization(
        sale.key.payer, wanted.pay_to, sale.authorized_atomic, 0, sale.valid_before_s, sale.key.nonce
    )
    payload = PaymentPayload(wanted, wire_form(authorization, bytes(65)))
    return replace(
        sale,
        pay_to=wanted.pay_to,
        payload=msgspec.json.encode(payload),
        requirements=msgspec.json.encode(wanted),
    )


async def keep_a_refused_sale_that_was_paid(folder: Path) -> str:
    """Nothing of it was handed over, and then its payment moved all the same."""
    wanted = requirements()
    paid = pay(wanted)
    authorization = parse_authorization(paid.payload)
    sale = replace(
        a_new_sale(ClaimKey(wanted.network, wanted.asset.lower(), authorization.payer, authorization.nonce)),
        pay_to=wanted.pay_to,
        authorized_atomic=authorization.value_atomic,
        valid_before_s=authorization.valid_before_s,
        payload=msgspec.json.encode(paid),
        requirements=msgspec.json.encode(wanted),
        created_s=SystemClock().now_s(),
    )
    ledger = await SqliteLedger.open(ledger_file(folder, devnet=True), SystemClock())
    await ledger.claim(sale)
    refusal = Change(settled_atomic=0, reason="insufficient_funds")
    await ledger.record(sale.id, [Event.SETTLE, Event.SETTLE_FAILED], refusal)
    await ledger.close()
    chain = await DevnetChain.open(devnet_file(folder), SystemClock())
    await chain.fund(DEFAULT_CATALOGUE.asset(BASE_SEPOLIA, "usdc"), authorization.payer, authorization.value_atomic)
    assert (await DevnetFacilitator(chain).settle(paid, wanted)).outcome is SettleOutcome.SETTLED
    await chain.close()
    return sale.id


async def fund(folder: Path, account: str, amount_atomic: int) -> None:
    """Money that no sale explains."""
    chain = await DevnetChain.open(devnet_file(folder), SystemClock())
    await chain.fund(DEFAULT_CATALOGUE.asset(BASE_SEPOLIA, "usdc"), account, amount_atomic)
    await chain.close()
