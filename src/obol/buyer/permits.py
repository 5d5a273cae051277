"""Whether a payment by Permit2 takes an EIP-2612 permit along, and which permits are out.

A permit is of exactly the payment's amount, and a token takes each nonce once: of two payments with the same nonce only
one can be settled. So a nonce is given to one payment, and to the next only when that one moved nothing. Pure.
"""

from dataclasses import dataclass, field

from obol.buyer.payment import Payment, PaymentStatus
from obol.core.networks import Asset
from obol.errors import UnpayableError
from obol.x402.allowances import Allowances
from obol.x402.permit2 import allowance_advice

IN_USE = "permit_in_use"
NO_PERMITS = "token_without_permits"


async def permit_nonce(allowances: Allowances, asset: Asset, payer: str, amount_atomic: int) -> int | None:
    """The nonce of the permit that a payment needs; None where Permit2 may move the amount already: a permit would
    only lower what the payer allowed.

    Raises `ChainUnavailableError` where it cannot be found out, `UnpayableError` where the token takes no permits.
    """
    if await allowances.permit2_allowance(asset, payer) >= amount_atomic:
        return None
    nonce = await allowances.permit_nonce(asset, payer)
    if nonce is None:
        raise UnpayableError(f"{asset.symbol} takes no permits. {allowance_advice(asset)}", reason=NO_PERMITS)
    return nonce


_Key = tuple[int, str, int]


@dataclass(slots=True)
class PermitsOut:
    """Which payment each nonce was given to. Whoever owns it sees to it that one thread uses it at a time."""

    _payments: dict[_Key, Payment] = field(default_factory=dict, repr=False)

    def is_free(self, payment: Payment) -> bool:
        """Whether no payment that may still move money has its permit's nonce. True without a permit."""
        holder = self._payments.get(_key(payment))
        return holder is None or holder.status is PaymentStatus.UNPAID

    def take(self, payment: Payment) -> None:
        """Give the nonce to this payment. Raises `UnpayableError` where it is not free."""
        if payment.permit_nonce is None:
            return
        if not self.is_free(payment):
            raise UnpayableError(
                f"an earlier payment of {payment.asset.symbol} is not settled yet, and both need the same permit: try "
                f"again when it is. To pay several at once, {allowance_advice(payment.asset)}",
                reason=IN_USE,
            )
        self._payments[_key(payment)] = payment

    def update(self, payment: Payment) -> None:
        """Take in what is known now of a payment."""
        holder = self._payments.get(_key(payment))
        if holder is not None and holder.id == payment.id:
            self._payments[_key(payment)] = payment

    def expire(self, before_s: float) -> None:
        """Forget those whose permit expired before then, in Unix seconds."""
        for key, payment in list(self._payments.items()):
            if payment.valid_before_s < before_s:
                del self._payments[key]


def _key(payment: Payment) -> _Key:
    asset = payment.asset
    return asset.network.chain_id, asset.address, -1 if payment.permit_nonce is None else payment.permit_nonce
