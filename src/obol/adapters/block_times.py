"""Time on a chain: which blocks a span of it was in, and how long ago a block was made."""

import asyncio

from obol.adapters.chain_evm import EvmChain
from obol.x402.authorization import Authorization

SEARCH_S = 8 * 86_400
"""How long before the end of its window an authorization is looked for, where it says no later beginning."""


async def blocks_of(chain: EvmChain, authorization: Authorization) -> tuple[int, int]:
    """The first and the last block in which it could be used: about fifty questions.

    Raises `ChainUnavailableError`.
    """
    newest = await chain.block()
    until_s = min(authorization.valid_before_s, newest.timestamp_s)
    first = await first_block_at(chain, max(authorization.valid_after_s, until_s - SEARCH_S), newest.number)
    return first, await first_block_at(chain, until_s + 1, newest.number)


async def first_block_at(chain: EvmChain, time_s: int, last: int) -> int:
    """The first block, up to `last`, whose time is at or after `time_s`. Raises `ChainUnavailableError`."""
    low, high = 0, last
    while low < high:
        middle = (low + high) // 2
        if (await chain.block(middle)).timestamp_s >= time_s:
            high = middle
        else:
            low = middle + 1
    return low


async def age_s(chain: EvmChain, block: int, newest: int) -> int:
    """How long a block has been as deep as counts, in seconds of the chain; 0, unasked, for the newest that is.

    Raises `ChainUnavailableError`.
    """
    deep = newest - chain.confirmations + 1
    if deep <= block:
        return 0
    late, early = await asyncio.gather(chain.block(deep), chain.block(block))
    return late.timestamp_s - early.timestamp_s
