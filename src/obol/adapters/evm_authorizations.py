"""Which EIP-3009 authorization made a transfer: the token's log of its use, right before the transfer's own.

The token marks the nonce used and moves the money in one step, so the two logs are neighbours. A payer's authorization
that was used elsewhere in the transaction may have made the transfer or not: then it is not known. Source: EIP-3009.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Protocol

from obol.adapters.chain_evm import LOG_RANGE_BLOCKS, Log, address_topic
from obol.adapters.witness_evm import AUTHORIZATION_USED
from obol.core.transfer import Transfer

MOST_PAYERS = 100
"""Asked for in one question."""


class LogView(Protocol):
    """What is used of `EvmChain`."""

    async def logs(
        self, address: str, topics: Sequence[str | Sequence[str] | None], from_block: int, to_block: int
    ) -> list[Log]: ...


async def with_authorizations(chain: LogView, token: str, transfers: Sequence[Transfer]) -> list[Transfer]:
    """The transfers with their nonces. Raises `ChainUnavailableError` when the logs cannot be had.

    Costs about one question for as many blocks as can be asked for at once, or for `MOST_PAYERS` payers.
    """
    known: list[Transfer] = []
    for piece in _pieces(sorted(transfers, key=lambda one: (one.block, one.log_index))):
        payers = sorted({address_topic(one.payer) for one in piece})
        uses = await chain.logs(token, [AUTHORIZATION_USED, payers, None], piece[0].block, piece[-1].block)
        known += _joined(piece, uses)
    return known


def _pieces(transfers: Sequence[Transfer]) -> Iterator[list[Transfer]]:
    """Neighbours that are asked about together: all of a payer's in one transaction are in one piece."""
    piece: list[Transfer] = []
    payers: set[str] = set()
    for (block, _), group in groupby(transfers, key=lambda one: (one.block, one.transaction)):
        of_transaction = list(group)
        more = payers | {one.payer for one in of_transaction}
        if piece and (len(more) > MOST_PAYERS or block - piece[0].block >= LOG_RANGE_BLOCKS):
            yield piece
            piece, more = [], {one.payer for one in of_transaction}
        piece += of_transaction
        payers = more
    if piece:
        yield piece


def _joined(transfers: Sequence[Transfer], uses: Sequence[Log]) -> list[Transfer]:
    """Each with the nonce that was used right before it; where another use of the payer's is left over, unknown."""
    of_payer: defaultdict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for use in uses:
        of_payer[use.transaction, use.topics[1]][use.log_index] = use.topics[2]
    joined = [replace(one, nonce=of_payer[_payer_in(one)].pop(one.log_index - 1, None)) for one in transfers]
    return [one if one.nonce or of_payer[_payer_in(one)] else replace(one, nonce="") for one in joined]


def _payer_in(transfer: Transfer) -> tuple[str, str]:
    return transfer.transaction, address_topic(transfer.payer)
