"""When something on a chain was used: the block in which a contract's state first says so, found by halves."""

from collections.abc import Callable
from dataclasses import dataclass

from obol.adapters.chain_evm import EvmChain, RevertedError
from obol.adapters.evm_abi import AbiError
from obol.errors import ChainUnavailableError

_FIRST_STEP_BLOCKS = 64
"""Less than the least that nodes keep the state of."""
_MOST_UNANSWERED = 4
"""A node that lacks a state and one that is down look alike, and one that is down may take long to be that."""


@dataclass(frozen=True, slots=True)
class Flag:
    """What a contract says yes to from some block on, and never no again: `data` is the call that asks for it."""

    contract: str
    data: bytes
    is_set: Callable[[bytes], bool]
    """Reads what the call returns; may raise `AbiError`."""


async def block_of_use(chain: EvmChain, flag: Flag, last: int) -> int | None:
    """The block in which a flag was set, which is set at the end of `last`; None where the state does not show that.

    At most 2 log2(n) + 2 questions for a block n before `last`: backwards in steps that double, then by halves. Where
    the node lacks a state it is looked for among newer ones, `_MOST_UNANSWERED` times; only a block before which the
    flag was not set counts.
    """
    search = _Search(chain, flag)
    low, high, step = 0, last, _FIRST_STEP_BLOCKS
    while high > 0:
        earlier = max(0, last - step)
        if not await search.is_set(earlier):
            low = earlier + 1
            break
        high, step = earlier, 2 * step
    while low < high and search.unanswered <= _MOST_UNANSWERED:
        middle = (low + high) // 2
        if await search.is_set(middle):
            high = middle
        else:
            low = middle + 1
    is_found = low == high and high > 0 and await search.is_set(high - 1) is False
    return high if is_found else None


class _Search:
    """The answers to one search: none is asked for twice."""

    def __init__(self, chain: EvmChain, flag: Flag) -> None:
        self._chain = chain
        self._flag = flag
        self._answers: dict[int, bool | None] = {}
        self.unanswered = 0

    async def is_set(self, block: int) -> bool | None:
        """At the end of a block; None where the node lacks its state, or the contract was not there yet."""
        if block not in self._answers:
            self._answers[block] = await is_set(self._chain, self._flag, block)
            self.unanswered += self._answers[block] is None
        return self._answers[block]


async def is_set(chain: EvmChain, flag: Flag, block: int) -> bool | None:
    """Whether a flag is set at the end of a block; None where nobody says so."""
    try:
        return flag.is_set(await chain.call(flag.contract, flag.data, block=block))
    except (ChainUnavailableError, RevertedError, AbiError):
        return None
