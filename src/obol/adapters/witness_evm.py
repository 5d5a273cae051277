"""The chain as a witness: what became of an EIP-3009 authorization, from the token's own logs.

`AuthorizationUsed(payer, nonce)` is followed, in its transaction, by the token's Transfer: from the payer to us, of
exactly the amount, or it was used for something else (`receiveWithAuthorization` has the same nonces). One that was
cancelled, or is unused in a block past its window, will never move. `authorizationState` alone says neither.
Source: EIP-3009.
"""

from collections.abc import Sequence

from obol.adapters.chain_evm import TRANSFER, EvmChain, Log, address_topic, transfer_of
from obol.adapters.evm_abi import topic
from obol.adapters.witness_permit2 import permit2_fate
from obol.core.money import parse_atomic
from obol.core.networks import TransferMethod
from obol.errors import ChainUnavailableError
from obol.x402.authorization import Authorization, parse_authorization
from obol.x402.models import PaymentPayload, PaymentRequirements
from obol.x402.witness import CANCELLED, EXPIRED, USED_ELSEWHERE, Fate, Moved, NeverMoves, StillOpen

AUTHORIZATION_USED = topic("AuthorizationUsed(address,bytes32)")
AUTHORIZATION_CANCELED = topic("AuthorizationCanceled(address,bytes32)")
SEARCH_BLOCKS = 200_000
"""How far back an authorization's end is looked for: four days at two seconds a block."""
NEWEST_BLOCKS = 2_000


class EvmWitness:
    """Implements `x402.witness.Witness`, for both transfer methods; takes over `chain`, which its `close` closes."""

    def __init__(self, chain: EvmChain, *, newest_blocks: int = NEWEST_BLOCKS) -> None:
        """`newest_blocks` are searched first: what is asked about has most often just been sent."""
        self._chain = chain
        self._newest_blocks = newest_blocks

    async def fate(self, payload: PaymentPayload, requirements: PaymentRequirements) -> Fate:
        """See the port. `ChainUnavailableError` also where it is used and the node does not show by what."""
        authorization = parse_authorization(payload.payload)
        if authorization.method is TransferMethod.PERMIT2:
            return await permit2_fate(self._chain, authorization, requirements)
        token = requirements.asset.lower()
        newest = await self._chain.newest_block()
        recent = await self._ends(token, authorization, max(0, newest - self._newest_blocks), newest)
        if recent:
            return await self._judge(recent[-1], requirements, authorization)
        if not await self._chain.is_authorization_used(token, authorization.payer, authorization.nonce, newest):
            return await self._unused(token, authorization, newest)
        ends = await self._ends(token, authorization, max(0, newest - SEARCH_BLOCKS), newest + 1)
        if not ends:
            raise ChainUnavailableError("the authorization is used, and the node does not show by what")
        return await self._judge(ends[-1], requirements, authorization)

    async def close(self) -> None:
        """See the port."""
        await self._chain.close()

    async def _ends(self, token: str, authorization: Authorization, from_block: int, to_block: int) -> list[Log]:
        """Where the authorization was used or cancelled: at most one, on an honest chain."""
        topics = [
            [AUTHORIZATION_USED, AUTHORIZATION_CANCELED],
            address_topic(authorization.payer),
            authorization.nonce,
        ]
        return await self._chain.logs(token, topics, from_block, to_block)

    async def _judge(self, end: Log, requirements: PaymentRequirements, authorization: Authorization) -> Fate:
        """What the end of an authorization means for us, if it is deep enough to stay."""
        if not await self._chain.is_deep(end.block):
            return StillOpen()
        if end.topics[0] == AUTHORIZATION_CANCELED:
            return NeverMoves(CANCELLED)
        receipt = await self._chain.receipt(end.transaction)
        if receipt is None:
            raise ChainUnavailableError("the node shows a log and not its transaction's receipt")
        moved = find_transfer(receipt.logs, requirements, authorization)
        return moved or NeverMoves(USED_ELSEWHERE)

    async def _unused(self, token: str, authorization: Authorization, newest: int) -> Fate:
        """Unused for good once it is unused in a block that stays and is past the window.

        Both are asked of that one block: a node that lags behind does not have it, and cannot say "unused" of it.
        """
        deep = newest - self._chain.confirmations + 1
        if deep < 0 or (await self._chain.block(deep)).timestamp_s < authorization.valid_before_s:
            return StillOpen()
        if await self._chain.is_authorization_used(token, authorization.payer, authorization.nonce, deep):
            return StillOpen()
        return NeverMoves(EXPIRED)


def find_transfer(logs: Sequence[Log], requirements: PaymentRequirements, authorization: Authorization) -> Moved | None:
    """Which transfer of one transaction the authorization made, if it is the one that pays these requirements."""
    token = requirements.asset.lower()
    use = (AUTHORIZATION_USED, address_topic(authorization.payer), authorization.nonce)
    used = next((log for log in logs if log.address == token and log.topics == use), None)
    if used is None:
        return None
    moved = next(
        (
            log
            for log in logs
            if log.address == token and log.topics[:1] == (TRANSFER,) and log.log_index > used.log_index
        ),
        None,
    )
    transfer = None if moved is None else transfer_of(moved)
    expected = (authorization.payer, requirements.pay_to.lower(), parse_atomic(requirements.amount))
    if transfer is None or (transfer.payer, transfer.pay_to, transfer.amount_atomic) != expected:
        return None
    return Moved(transfer.transaction, transfer.log_index)
