"""The chain as a witness: what became of an EIP-3009 authorization, from the token's own logs.

`AuthorizationUsed(payer, nonce)` is followed, in its transaction, by the token's Transfer: from the payer to us, of
exactly the amount, or it was used for something else (`receiveWithAuthorization` has the same nonces). One that was
cancelled, or is unused in a block past its window, will never move. `authorizationState` alone says neither: only that
it is used. Where that is all that a node shows, a no of anybody's counts for nothing.
Source: EIP-3009.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from obol.adapters.block_times import age_s, blocks_of
from obol.adapters.chain_evm import EvmChain, Log, address_topic, transfer_of
from obol.adapters.evm_abi import call_data, decode_bool, topic
from obol.adapters.fate_memory import FateMemory, Question, Seen
from obol.adapters.use_search import Flag, block_of_use, is_set
from obol.adapters.witness_permit2 import is_permit2_nonce_used, permit2_fate
from obol.core.money import parse_atomic
from obol.core.networks import TransferMethod
from obol.errors import ChainUnavailableError
from obol.x402.authorization import Authorization, parse_authorization
from obol.x402.models import PaymentPayload, PaymentRequirements
from obol.x402.witness import CANCELLED, EXPIRED, USED_ELSEWHERE, Fate, Moved, NeverMoves, StillOpen, Unconfirmed, Used

AUTHORIZATION_USED = topic("AuthorizationUsed(address,bytes32)")
AUTHORIZATION_CANCELED = topic("AuthorizationCanceled(address,bytes32)")
NEWEST_BLOCKS = 2_000
JUST_BLOCKS = 100
"""What is "just now", before what is not deep enough: nodes keep the state of about 128 blocks."""


class EvmWitness:
    """Implements `x402.witness.Witness`, for both transfer methods; takes over `chain`, which its `close` closes."""

    def __init__(
        self, chain: EvmChain, *, newest_blocks: int = NEWEST_BLOCKS, memory: FateMemory | None = None
    ) -> None:
        """`newest_blocks` are searched first: what is asked about has most often just been sent."""
        self._chain = chain
        self._newest_blocks = newest_blocks
        self._memory = memory or FateMemory()

    async def fate(self, payload: PaymentPayload, requirements: PaymentRequirements) -> Fate:
        """See the port. What is remembered costs no question."""
        authorization = parse_authorization(payload.payload)
        question = Question.of(authorization, requirements)
        known = self._memory.recall(question, _now_s())
        if known is not None:
            return known
        if authorization.method is TransferMethod.PERMIT2:
            seen = await permit2_fate(self._chain, authorization, requirements)
        else:
            seen = await self._token_fate(authorization, requirements)
        self._memory.keep(question, seen, _now_s())
        return seen.fate

    async def is_just_used(self, payload: PaymentPayload, requirements: PaymentRequirements) -> bool:
        """See the port."""
        authorization = parse_authorization(payload.payload)
        newest = await self._chain.newest_block()
        if not await self._is_used(authorization, requirements, newest):
            return False
        before = newest - JUST_BLOCKS - self._chain.confirmations
        return before < 0 or not await self._is_used(authorization, requirements, before)

    async def close(self) -> None:
        """See the port."""
        await self._chain.close()

    async def _token_fate(self, authorization: Authorization, requirements: PaymentRequirements) -> Seen:
        """Three questions for what was just settled.

        For what was used or cancelled n blocks ago: at most 2 log2(n) + 10, where the node has the state; where it has
        not, those of `blocks_of`, and one for each 2,000 blocks.
        """
        token = requirements.asset.lower()
        newest = await self._chain.newest_block()
        recent = max(0, newest - self._newest_blocks)
        end = await self._end(token, authorization, recent, newest)
        if isinstance(end, Used):
            if not await self._is_used(authorization, requirements, newest):
                return await self._unused(authorization, requirements, newest)
            end = await self._older_end(token, authorization, recent)
        return Seen(end) if isinstance(end, Used) else await self._judge(end, requirements, authorization, newest)

    async def _is_used(self, authorization: Authorization, requirements: PaymentRequirements, block: int) -> bool:
        if authorization.method is TransferMethod.PERMIT2:
            return await is_permit2_nonce_used(self._chain, authorization, block)
        payer, nonce = authorization.payer, authorization.nonce
        return await self._chain.is_authorization_used(requirements.asset.lower(), payer, nonce, block)

    async def _older_end(self, token: str, authorization: Authorization, recent: int) -> Log | Used:
        """By the token's state: a cancellation has no window. Without it, by the logs of the window."""
        try:
            block = await self._block_of_use(token, authorization, recent)
            end = None if block is None else await self._end(token, authorization, block, block)
            if isinstance(end, Log):
                return end
            first, last = await blocks_of(self._chain, authorization)
        except ChainUnavailableError as error:
            return Used(str(error))
        return await self._end(token, authorization, first, last)

    async def _block_of_use(self, token: str, authorization: Authorization, last: int) -> int | None:
        """None where it was used after `last`, or the node lacks the state to tell."""
        payer, nonce = authorization.payer, bytes.fromhex(authorization.nonce[2:])
        flag = Flag(token, call_data("authorizationState(address,bytes32)", payer, nonce), decode_bool)
        return await block_of_use(self._chain, flag, last) if await is_set(self._chain, flag, last) else None

    async def _end(self, token: str, authorization: Authorization, from_block: int, to_block: int) -> Log | Used:
        """Where the authorization was used or cancelled; where no log shows it, what to think if it was all the same.

        A node that gives no logs at all can still say whether it is used.
        """
        topics = [
            [AUTHORIZATION_USED, AUTHORIZATION_CANCELED],
            address_topic(authorization.payer),
            authorization.nonce,
        ]
        try:
            ends = await self._chain.logs(token, topics, from_block, to_block)
        except ChainUnavailableError as error:
            return Used(str(error))
        return ends[-1] if ends else Used("the node shows no log of the authorization")

    async def _judge(
        self, end: Log, requirements: PaymentRequirements, authorization: Authorization, newest: int
    ) -> Seen:
        """What the end of an authorization means for us, if it is deep enough to stay."""
        try:
            if not await self._chain.is_deep(end.block):
                return Seen(Unconfirmed())
            aged_s = await age_s(self._chain, end.block, newest)
            if end.topics[0] == AUTHORIZATION_CANCELED:
                return Seen(NeverMoves(CANCELLED), aged_s)
            receipt = await self._chain.receipt(end.transaction)
        except ChainUnavailableError as error:
            return Seen(Used(str(error)))
        if receipt is None or receipt.block != end.block:
            return Seen(Used("the node shows a log, and not its transaction's receipt"))
        fate = _fate_of_used(receipt.logs, requirements, authorization)
        return Seen(replace(fate, age_s=aged_s) if isinstance(fate, Moved) else fate, aged_s)

    async def _unused(self, authorization: Authorization, requirements: PaymentRequirements, newest: int) -> Seen:
        """Unused for good once it is unused in a block that stays and is past the window.

        Both are asked of that one block: a node that lags behind does not have it, and cannot say "unused" of it.
        """
        deep = newest - self._chain.confirmations + 1
        past_s = -1 if deep < 0 else (await self._chain.block(deep)).timestamp_s - authorization.valid_before_s
        if past_s < 0:
            return Seen(StillOpen())
        if await self._is_used(authorization, requirements, deep):
            return Seen(Used("it is used in one block, and in a later one it is not"))
        return Seen(NeverMoves(EXPIRED), past_s)


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def find_transfer(logs: Sequence[Log], requirements: PaymentRequirements, authorization: Authorization) -> Moved | None:
    """Which transfer of one transaction the authorization made, if it is the one that pays these requirements."""
    fate = _fate_of_used(logs, requirements, authorization)
    return fate if isinstance(fate, Moved) else None


def _fate_of_used(
    logs: Sequence[Log], requirements: PaymentRequirements, authorization: Authorization
) -> Moved | NeverMoves | Used:
    """What the transaction that used the authorization moved by it: the payer's transfer that follows its use.

    Only such a transfer to somebody else, or of another amount, says that it did not pay us.
    """
    token = requirements.asset.lower()
    use = (AUTHORIZATION_USED, address_topic(authorization.payer), authorization.nonce)
    of_token = [log for log in logs if log.address == token]
    used = next((log for log in of_token if log.topics == use), None)
    if used is None:
        return Used("the transaction's receipt does not hold the log of the authorization that it was found by")
    later = (transfer_of(log) for log in of_token if log.log_index > used.log_index)
    transfer = next((transfer for transfer in later if transfer is not None), None)
    if transfer is None or transfer.payer != authorization.payer:
        return Used("the transaction's receipt does not hold the transfer that the authorization made")
    if (transfer.pay_to, transfer.amount_atomic) != (requirements.pay_to.lower(), parse_atomic(requirements.amount)):
        return NeverMoves(USED_ELSEWHERE)
    return Moved(transfer.transaction, transfer.log_index)
