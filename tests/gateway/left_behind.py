"""What a gateway that was killed leaves in its ledger."""

from collections.abc import Sequence
from dataclasses import replace

import msgspec

from obol.adapters.ledger_sqlite import SqliteLedger
from obol.core.ledger import NO_CHANGE, Change
from obol.core.payment import Event
from obol.core.sale import ClaimKey, Delivery, NewSale
from obol.x402.authorization import parse_authorization
from tests.adapters.sales import a_new_sale
from tests.gateway.shop import PRICE_ATOMIC, Shop


def new_sale(shop: Shop) -> NewSale:
    """A sale of a payment that the buyer has signed."""
    payment = shop.sign()
    authorization = parse_authorization(payment.payload)
    asset = shop.requirements.asset.lower()
    return replace(
        a_new_sale(ClaimKey(shop.requirements.network, asset, authorization.payer, authorization.nonce)),
        pay_to=shop.requirements.pay_to,
        authorized_atomic=PRICE_ATOMIC,
        valid_before_s=authorization.valid_before_s,
        payload=msgspec.json.encode(payment),
        requirements=msgspec.json.encode(shop.requirements),
    )


async def leave_behind(shop: Shop, *sales: NewSale, events: Sequence[Event]) -> None:
    """In the ledger of a gateway that is stopped, as one that was killed leaves them."""
    ledger = await SqliteLedger.open(shop.ledger_file, shop.clock)
    for sale in sales:
        await ledger.claim(sale)
        await ledger.record(sale.id, events, Change(delivery=Delivery.COMPLETE) if events else NO_CHANGE)
    await ledger.close()
