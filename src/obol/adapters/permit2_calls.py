"""Which Permit2 nonce a transaction's transfer was made by, as its call data names it.

A transaction that calls the x402 exact proxy settles the one payment that it names. One that has somebody else call the
proxy (a batch, a wallet, whoever saw the payment on its way) holds the same arguments somewhere in its call data. It
counts only where it names as many payments of these terms as it makes transfers: no transfer counts for two nonces,
whatever else is in the data. Source: x402 `exact` scheme on EVM.
"""

import re
from collections.abc import Mapping, Sequence

from obol.adapters.chain_evm import Log, SentTransaction
from obol.adapters.evm_abi import selector, word_address, word_uint
from obol.adapters.evm_transfers import SETTLE, SETTLE_WITH_PERMIT
from obol.core.money import parse_atomic
from obol.x402.authorization import Authorization
from obol.x402.models import PaymentRequirements
from obol.x402.permit2 import EXACT_PROXY

_WORD = 32
_NONCE_AT = {selector(SETTLE): 4 + 2 * _WORD, selector(SETTLE_WITH_PERMIT): 4 + 7 * _WORD}
"""Where the nonce is in the call data of the proxy; the token is two words earlier, the owner two words later."""


def settled_by(
    transfers: Sequence[Log],
    sent: Mapping[str, SentTransaction],
    authorization: Authorization,
    requirements: PaymentRequirements,
) -> Log | None:
    """The one of these transfers that was made by this nonce. They are all of the payment's terms, and all such
    transfers of their transactions, in order; `sent` has these transactions."""
    nonce = bytes.fromhex(authorization.nonce[2:])
    for transaction in dict.fromkeys(log.transaction for log in transfers):
        of_it = [log for log in transfers if log.transaction == transaction]
        call = sent[transaction]
        if call.to == EXACT_PROXY:
            named = [nonce] if _direct(call.data)[1:] == (nonce, word_address(authorization.payer)) else []
        else:
            named = _indirect(call.data, authorization, requirements)
        if nonce in named and len(named) == len(of_it):
            return of_it[named.index(nonce)]
    return None


def is_of_another_nonce(sent: SentTransaction, authorization: Authorization, requirements: PaymentRequirements) -> bool:
    """Whether a transaction can only have made another payment of the payer: it calls the proxy itself, for that one.

    Call data that somebody else reads proves nothing of the kind. Nor does a call for another token, which is a
    contract of anybody's and may call whom it likes.
    """
    if sent.to != EXACT_PROXY:
        return False
    token, nonce, owner = _direct(sent.data)
    is_payers = owner == word_address(authorization.payer) and token == word_address(requirements.asset)
    return is_payers and nonce != bytes.fromhex(authorization.nonce[2:])


def _direct(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Token, nonce and owner of a call of the proxy; empty where it is another call."""
    at = _NONCE_AT.get(data[:4], len(data) + 2 * _WORD)
    token, nonce, owner = (data[at + place : at + place + _WORD] for place in (-2 * _WORD, 0, 2 * _WORD))
    return token, nonce, owner


def _indirect(data: bytes, authorization: Authorization, requirements: PaymentRequirements) -> list[bytes]:
    """The nonces of payments of these terms anywhere in call data, in order, each once."""
    amount = word_uint(parse_atomic(requirements.amount) or 0)
    start = word_address(requirements.asset) + amount
    end = word_address(authorization.payer) + word_address(requirements.pay_to)
    pattern = re.escape(start) + b"(.{32}).{32}" + re.escape(end)  # the nonce, and the deadline
    return list(dict.fromkeys(re.findall(pattern, data, re.DOTALL)))
