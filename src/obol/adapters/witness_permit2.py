"""What became of a Permit2 authorization, from Permit2's own state and the token's logs.

Permit2 keeps one bit for each nonce and logs no use of it. So the transfer is looked for: from the payer to us, of
exactly the amount, in a transaction that names this very nonce (see `permit2_calls`), so that a transfer never counts
for two. Where there is none, the block is looked for in which the bit was set: if that whole block holds no such
transfer, the nonce was used for something else, or invalidated by the payer, and never pays. One whose block cannot be
had, or that could have made a transfer that names no nonce, is `Used`.
Source: Permit2 `nonceBitmap`, x402 `exact` scheme on EVM.
"""

from collections.abc import Iterable, Sequence
from itertools import islice

from obol.adapters.block_content import BlockContent, block_content
from obol.adapters.block_times import age_s, blocks_of
from obol.adapters.chain_evm import TRANSFER, EvmChain, Log, address_topic, transfer_of
from obol.adapters.evm_abi import call_data, decode_uint, topic
from obol.adapters.fate_memory import Seen
from obol.adapters.permit2_calls import is_of_another_nonce, settled_by
from obol.adapters.use_search import Flag, block_of_use
from obol.core.money import parse_atomic
from obol.errors import ChainUnavailableError
from obol.x402.authorization import Authorization
from obol.x402.models import PaymentRequirements
from obol.x402.permit2 import PERMIT2_ADDRESS
from obol.x402.witness import (
    CANCELLED,
    EXPIRED,
    USED_ELSEWHERE,
    Moved,
    NeverMoves,
    StillOpen,
    Unconfirmed,
    Used,
)

_NEWEST_BLOCKS = 2_000
_NEWEST_TRANSACTIONS = 16
"""With transfers of these terms, asked for one by one before the nonce's own block is looked for."""
_INVALIDATED = topic("UnorderedNonceInvalidation(address,uint256,uint256)")


async def permit2_fate(chain: EvmChain, authorization: Authorization, requirements: PaymentRequirements) -> Seen:
    """As `Witness.fate`. Four questions for what was just settled.

    For what was used n blocks ago in any other way: at most 2 log2(n) + 30, where the node has the state and the
    receipts; where it has not, those of `blocks_of`, and one for each 2,000 blocks and for each transfer in them.
    """
    newest = await chain.newest_block()
    if not await is_permit2_nonce_used(chain, authorization, newest):
        return await _unused(chain, authorization, newest)
    try:
        return await _fate_of_used(chain, authorization, requirements, newest)
    except ChainUnavailableError as error:
        return Seen(Used(str(error)))


def find_payment(logs: Iterable[Log], authorization: Authorization, requirements: PaymentRequirements) -> Moved | None:
    """The transfer in a transaction that settled this payment and no other."""
    found = _payments(logs, authorization, requirements)
    return Moved(found[0].transaction, found[0].log_index) if found else None


async def is_permit2_nonce_used(chain: EvmChain, authorization: Authorization, block: int) -> bool:
    """Whether it was used, or made void, at the end of a block."""
    flag = _flag(authorization)
    return await chain.read(flag.contract, flag.data, flag.is_set, block)


def _flag(authorization: Authorization) -> Flag:
    nonce = int(authorization.nonce, 16)
    data = call_data("nonceBitmap(address,uint256)", authorization.payer, nonce >> 8)
    return Flag(PERMIT2_ADDRESS, data, lambda result: _has_bit(decode_uint(result), nonce))


async def _fate_of_used(
    chain: EvmChain, authorization: Authorization, requirements: PaymentRequirements, newest: int
) -> Seen:
    """The newest blocks first: what is asked about has most often just been sent."""
    recent = await _transfers(chain, authorization, requirements, max(0, newest - _NEWEST_BLOCKS), newest)
    settled = await _settlement(chain, authorization, requirements, recent, most=_NEWEST_TRANSACTIONS)
    if settled is None:
        seen = await _fate_in_its_block(chain, authorization, requirements, newest)
        return seen or await _fate_by_logs(chain, authorization, requirements, recent, newest)
    return await _moved(chain, settled, newest)


async def _fate_in_its_block(
    chain: EvmChain, authorization: Authorization, requirements: PaymentRequirements, newest: int
) -> Seen | None:
    """What the whole block says in which the nonce was used; None where the node cannot show that."""
    block = await block_of_use(chain, _flag(authorization), newest)
    content = None if block is None else await block_content(chain, block)
    if block is None or content is None:
        return None
    if not await chain.is_deep(block):
        return Seen(Unconfirmed())
    judged = _judge(content, authorization, requirements)
    if isinstance(judged, Log):
        return await _moved(chain, judged, newest)
    return Seen(judged, await age_s(chain, block, newest) if isinstance(judged, NeverMoves) else 0)


def _judge(
    content: BlockContent, authorization: Authorization, requirements: PaymentRequirements
) -> Log | NeverMoves | Used:
    """Which transfer of its block a nonce made, which it cannot have made, or that it may have made one.

    A transfer that names no nonce is nobody's: a payer could use many nonces for nothing in its block, unseen, and
    have it count for each of them.
    """
    moves = _payments(content.logs, authorization, requirements)
    settled = settled_by(moves, content.sent, authorization, requirements)
    if settled is not None:
        return settled
    if any(not is_of_another_nonce(content.sent[move.transaction], authorization, requirements) for move in moves):
        return Used("a transfer in the block of the use names no Permit2 nonce, or several")
    is_void = any(_is_invalidation(log, authorization) for log in content.logs)
    return NeverMoves(CANCELLED if is_void else USED_ELSEWHERE)


async def _fate_by_logs(
    chain: EvmChain,
    authorization: Authorization,
    requirements: PaymentRequirements,
    recent: Sequence[Log],
    newest: int,
) -> Seen:
    """What the logs of its window show, without any state of old blocks."""
    older = await blocks_of(chain, authorization)
    transfers = [*await _transfers(chain, authorization, requirements, *older), *recent]
    settled = await _settlement(chain, authorization, requirements, transfers)
    if settled is not None:
        return await _moved(chain, settled, newest)
    recently = max(0, newest - _NEWEST_BLOCKS), newest
    cancelled = await _cancellation(chain, authorization, *older)
    cancelled = cancelled or await _cancellation(chain, authorization, *recently)
    if cancelled is None:
        return Seen(Used("the node shows no transaction that used the Permit2 nonce"))
    if not await chain.is_deep(cancelled.block):
        return Seen(Unconfirmed())
    if await _may_have_paid(chain, authorization, requirements, cancelled.block, older):
        return Seen(Used("the Permit2 nonce may have been used before it was invalidated"))
    return Seen(NeverMoves(CANCELLED), await age_s(chain, cancelled.block, newest))


async def _moved(chain: EvmChain, settled: Log, newest: int) -> Seen:
    if not await chain.is_deep(settled.block):
        return Seen(Unconfirmed())
    aged_s = await age_s(chain, settled.block, newest)
    return Seen(Moved(settled.transaction, settled.log_index, aged_s), aged_s)


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


async def _unused(chain: EvmChain, authorization: Authorization, newest: int) -> Seen:
    """Unused for good once it is unused in a block that stays and is past the deadline."""
    deep = newest - chain.confirmations + 1
    past_s = -1 if deep < 0 else (await chain.block(deep)).timestamp_s - authorization.valid_before_s
    if past_s <= 0:
        return Seen(StillOpen())
    if await is_permit2_nonce_used(chain, authorization, deep):
        return Seen(Used("it is used in one block, and in a later one it is not"))
    return Seen(NeverMoves(EXPIRED), past_s)


async def _settlement(
    chain: EvmChain,
    authorization: Authorization,
    requirements: PaymentRequirements,
    transfers: Sequence[Log],
    *,
    most: int | None = None,
) -> Log | None:
    """The newest first, by transaction, `most` of these; `transfers` has all that each of them made of these terms."""
    for transaction in islice(dict.fromkeys(log.transaction for log in reversed(transfers)), most):
        sent = await chain.transaction(transaction)
        of_it = [log for log in dict.fromkeys(transfers) if log.transaction == transaction]
        settled = None if sent is None else settled_by(of_it, {transaction: sent}, authorization, requirements)
        if settled is not None:
            return settled
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
    return next((log for log in logs if _is_invalidation(log, authorization)), None)


def _is_invalidation(log: Log, authorization: Authorization) -> bool:
    """Permit2 voids up to 256 nonces at once: a word of its bitmap, and which bits."""
    nonce = int(authorization.nonce, 16)
    if log.address != PERMIT2_ADDRESS.lower() or log.topics != (_INVALIDATED, address_topic(authorization.payer)):
        return False
    return len(log.data) == 64 and decode_uint(log.data) == nonce >> 8 and _has_bit(decode_uint(log.data, 1), nonce)


def _has_bit(word: int, nonce: int) -> bool:
    return bool(word >> (nonce & 0xFF) & 1)


def _payments(logs: Iterable[Log], authorization: Authorization, requirements: PaymentRequirements) -> list[Log]:
    expected = (authorization.payer, requirements.pay_to.lower(), parse_atomic(requirements.amount))
    token = requirements.asset.lower()
    found = ((log, transfer_of(log)) for log in logs if log.address == token)
    return [log for log, move in found if move and (move.payer, move.pay_to, move.amount_atomic) == expected]
