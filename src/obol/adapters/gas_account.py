"""The account that pays the gas: whether it has enough for the next settlement, said before a payment is accepted."""

import structlog

from obol.adapters.chain_evm import EvmChain
from obol.core.clock import Clock

NEEDED_GAS = 300_000
"""For one payment, of a contract wallet; an ordinary one takes a third."""
ENOUGH_AGE_S = 30.0
SHORT_AGE_S = 3.0
"""How long what was read counts: somebody who has funded it should not wait."""


class GasAccount:
    """Reads balance and price now and then; says in the log when it is short, and when no longer."""

    def __init__(self, chain: EvmChain, address: str, clock: Clock, log: structlog.typing.FilteringBoundLogger) -> None:
        self._chain = chain
        self._address = address
        self._clock = clock
        self._log = log
        self._shortage = ""
        self._read_s = float("-inf")

    async def shortage(self) -> str:
        """Why nothing can be sent, or "". Raises `ChainUnavailableError`."""
        age_s = self._clock.monotonic_s() - self._read_s
        if age_s > (SHORT_AGE_S if self._shortage else ENOUGH_AGE_S):
            self._read_s = self._clock.monotonic_s()
            self._note(await self._read())
        return self._shortage

    async def _read(self) -> str:
        balance_wei = await self._chain.native_balance(self._address)
        needed_wei = NEEDED_GAS * (await self._chain.block()).base_fee_wei
        if balance_wei >= max(needed_wei, 1):
            return ""
        has = f"{self._address} has {balance_wei} wei on {self._chain.network.name} to pay gas with"
        return f"{has}, and a settlement may take {needed_wei}"

    def _note(self, shortage: str) -> None:
        if shortage and not self._shortage:
            self._log.error("gas_account_short", network=self._chain.network.caip2, error=f"{shortage}: fund it")
        elif self._shortage and not shortage:
            self._log.info("gas_account_funded", network=self._chain.network.caip2, address=self._address)
        self._shortage = shortage
