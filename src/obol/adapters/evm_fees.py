"""What gas costs now, and what is paid for it at most."""

from dataclasses import dataclass

from obol.adapters.chain_evm import EvmChain
from obol.adapters.evm_calls import NotSent
from obol.core.clock import Clock

_AGE_S = 2.0
"""A price is asked for once in a block, not for each transaction."""


@dataclass(frozen=True, slots=True)
class Fees:
    """EIP-1559, both in wei per gas."""

    max_fee_wei: int
    priority_fee_wei: int

    def raised(self) -> "Fees":
        """What nodes accept for a replacement: 12.5 % more."""
        return Fees(self.max_fee_wei * 9 // 8 + 1, self.priority_fee_wei * 9 // 8 + 1)

    def is_half_above(self, price: "Fees") -> bool:
        """More than any node's rule asks for to replace what was offered at this price."""
        return 2 * self.max_fee_wei >= 3 * price.max_fee_wei and 2 * self.priority_fee_wei >= 3 * price.priority_fee_wei


class GasPrice:
    """The price on one chain, capped."""

    def __init__(self, chain: EvmChain, clock: Clock, *, cap_wei: int) -> None:
        self.cap_wei = cap_wei
        self._chain = chain
        self._clock = clock
        self._asked: tuple[float, int, int] | None = None
        """When, base fee, priority fee."""

    async def now(self) -> Fees | NotSent:
        """Twice the base fee leaves room for five full blocks. Raises `ChainUnavailableError`."""
        now_s = self._clock.monotonic_s()
        if self._asked is None or now_s - self._asked[0] > _AGE_S:
            block = await self._chain.block()
            self._asked = (now_s, block.base_fee_wei, await self._chain.priority_fee())
        _, base_wei, priority_wei = self._asked
        if base_wei + priority_wei > self.cap_wei:
            text = f"gas costs {base_wei + priority_wei} wei now; the cap is {self.cap_wei}"
            return NotSent("gas_price_above_cap", text)
        return Fees(min(2 * base_wei + priority_wei, self.cap_wei), priority_wei)

    async def for_replacing(self, fees: Fees) -> Fees | None:
        """More than was offered before, and what it costs now if that is more still.

        None above the cap, and where the offer is half above the price already: more of it would not help.
        """
        now, least = await self.now(), fees.raised()
        wanted = least if isinstance(now, NotSent) else now
        max_fee_wei = max(least.max_fee_wei, wanted.max_fee_wei)
        if max_fee_wei > self.cap_wei or (wanted is now and fees.is_half_above(wanted)):
            return None
        return Fees(max_fee_wei, min(max(least.priority_fee_wei, wanted.priority_fee_wei), max_fee_wei))
