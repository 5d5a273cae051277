"""What became of a Permit2 authorization, from Permit2's own state and the token's logs.

Permit2 keeps one bit for each nonce and logs no use of it. So the transfer is looked for: from the payer to us, of
exactly the amount, in a transaction that calls the x402 exact proxy with this very nonce. Such a transaction settles
one payment, so a transfer never counts for two. A payer can invalidate a nonce, also one that was used. One that was
used in any other way cannot be told from one whose transaction the node does not show: `Used`.
Source: Permit2 `nonceBitmap`, x402 `exact` scheme on EVM.
"""

from collections.abc import Iterable

from obol.adapters.block_times import age_s, blocks_of
from obol.adapters.chain_evm import TRANSFER, EvmChain, Log, address_topic, transfer_of
from obol.adapters.evm_abi import call_data, decode_uint, selector, topic, word_address
from obol.adapters.evm_transfers import SETTLE, SETTLE_WITH_PERMIT
from obol.core.money import parse_atomic
from obol.errors import ChainUnavailableError
from obol.x402.authorization import Authorization
from obol.x402.models import PaymentRequirements
from obol.x402.permit2 import EXACT_PROXY, PERMIT2_ADDRESS
from obol.x402.witness import CANCELLED, EXPIRED, Fate, Moved, NeverMoves, StillOpen, Unconfirmed, Used

_NEWEST_BLOCKS = 2_000
_INVALIDATED = topic("UnorderedNonceInvalidation(address,uint256,uint256)")
_NONCE_AT = {selector(SETTLE): 4 + 2 * 32, selector(SETTLE_WITH_PERMIT): 4 + 7 * 32}
"""Where the nonce is in the call data of the proxy; the owner is two words later."""


async def permit2_fate(chain: EvmChain, authorization: Authorization, requirements: PaymentRequirements) -> Fate:
    """As `Witness.fate`."""
    newest = await chain.newest_block()
    if not await is_permit2_nonce_used(chain, authorization, newest):
        return await _unused(chain, authorization, newest)
    try:
        return await _fate_of_used(chain, authorization, requirements, newest)
    except ChainUnavailableError as error:
        return Used(str(error))


def find_payment(logs: Iterable[Log], authorization: Authorization, requirements: PaymentRequirements) -> Moved | None:
    """The transfer in a transaction that settled this payment and no other."""
    found = _payments(logs, authorization, requirements)
    return Moved(found[0].transaction, found[0].log_index) if found else None


async def is_permit2_nonce_used(chain: EvmChain, authorization: Authorization, block: int) -> bool:
    """Whether it was used, or made void, at the end of a block."""
    nonce = int(authorization.nonce, 16)
    data = call_data("nonceBitmap(address,uint256)", authorization.payer, nonce >> 8)
    bitmap = await chain.read(PERMIT2_ADDRESS, data, decode_uint, block)
    return bool(bitmap >> (nonce & 0xFF) & 1)


async def _fate_of_used(
    chain: EvmChain, authorization: Authorization, requirements: PaymentRequirements, newest: int
) -> Fate:
    """The newest blocks first: what is asked about has most often just been sent."""
    recent = max(0, newest - _NEWEST_BLOCKS), newest
    settled = await _settlement(chain, authorization, requirements, *recent)
    if settled is None:
        older = await blocks_of(chain, authorization)
        settled = await _settlement(chain, authorization, requirements, *older)
    if settled is not None:
        if not await chain.is_deep(settled.block):
            return Unconfirmed()
        return Moved(settled.transaction, settled.log_index, await age_s(chain, settled.block, newest))
    cancelled = await _cancellation(chain, authorization, *older) or await _cancellation(chain, authorization, *recent)
    if cancelled is None:
        return Used("the node shows no transaction that used the Permit2 nonce")
    if not await chain.is_deep(cancelled.block):
        return Unconfirmed()
    if await _may_have_paid(chain, authorization, requirements, cancelled.block, older):
        return Used("the Permit2 nonce may have been used before it was invalidated")
    return NeverMoves(CANCELLED)


async def _may_have_paid(
    chain: EvmChain, authorization: Authorization, requirements: PaymentRequirements, block: int, older: tuple[int, int]
) -> bool:
    """Whether a nonce that was invalidated in a block was used until then: it can be invalidated afterwards too.

    Only archives have the state of old blocks. Without it, any transfer that it could have made counts as made by it.
    """
    try:
        if await is_permit2_nonce_used(chain, authorization, max(0, block - 1)):
            return True
    except ChainUnavailableError:
        return bool(await _transfers(chain, authorization, requirements, *older))
    return bool(await _transfers(chain, authorization, requirements, block, block))


async def _unused(chain: EvmChain, authorization: Authorization, newest: int) -> Fate:
    """Unused for good once it is unused in a block that stays and is past the deadline."""
    deep = newest - chain.confirmations + 1
    if deep < 0 or (await chain.block(deep)).timestamp_s <= authorization.valid_before_s:
        return StillOpen()
    if await is_permit2_nonce_used(chain, authorization, deep):
        return Used("it is used in one block, and in a later one it is not")
    return NeverMoves(EXPIRED)


async def _settlement(
    chain: EvmChain, authorization: Authorization, requirements: PaymentRequirements, from_block: int, to_block: int
) -> Log | None:
    for log in reversed(await _transfers(chain, authorization, requirements, from_block, to_block)):
        sent = await chain.transaction(log.transaction)
        if sent is not None and sent.to == EXACT_PROXY and _names(sent.data, authorization):
            return log
    return None


async def _transfers(
    chain: EvmChain, authorization: Authorization, requirements: PaymentRequirements, from_block: int, to_block: int
) -> list[Log]:
    """What the payer has moved to us of exactly the amount, by whatever payment."""
    topics = [TRANSFER, address_topic(authorization.payer), address_topic(requirements.pay_to)]
    logs = await chain.logs(requirements.asset, topics, from_block, to_block)
    return _payments(logs, authorization, requirements)


async def _cancellation(chain: EvmChain, authorization: Authorization, from_block: int, to_block: int) -> Log | None:
    """Where the payer first invalidated the nonce itself."""
    topics = [_INVALIDATED, address_topic(authorization.payer)]
    logs = await chain.logs(PERMIT2_ADDRESS, topics, from_block, to_block)
    return next((log for log in logs if _invalidates(log.data, int(authorization.nonce, 16))), None)


def _invalidates(data: bytes, nonce: int) -> bool:
    """Permit2 voids up to 256 nonces at once: a word of its bitmap, and which bits."""
    return len(data) == 64 and decode_uint(data) == nonce >> 8 and bool(decode_uint(data, 1) >> (nonce & 0xFF) & 1)


def _payments(logs: Iterable[Log], authorization: Authorization, requirements: PaymentRequirements) -> list[Log]:
    expected = (authorization.payer, requirements.pay_to.lower(), parse_atomic(requirements.amount))
    token = requirements.asset.lower()
    found = ((log, transfer_of(log)) for log in logs if log.address == token)
    return [log for log, move in found if move and (move.payer, move.pay_to, move.amount_atomic) == expected]


def _names(data: bytes, authorization: Authorization) -> bool:
    """Whether call data of the proxy is for this nonce of this payer."""
    at = _NONCE_AT.get(data[:4])
    if at is None:
        return False
    nonce, owner = data[at : at + 32], data[at + 64 : at + 96]
    return nonce == bytes.fromhex(authorization.nonce[2:]) and owner == word_address(authorization.payer)
