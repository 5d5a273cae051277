"""A facilitator whose word is held against the chain: a settlement is believed once the chain shows it.

What the facilitator said, and what the chain says:

                     Moved      NeverMoves         StillOpen                          cannot be asked
    SETTLED          SETTLED    FAILED (proven)    PENDING, after `seen_within_s`     SETTLED, as said
    PENDING/UNKNOWN  SETTLED    FAILED (proven)    as said                            as said
    FAILED           SETTLED    FAILED (proven)    as said                            UNKNOWN if it was broadcast, else
                                                                                      as said

A payment that somebody else has sent to us is paid like any other. While no RPC endpoint answers, a facilitator's yes
is believed as it is without a witness: an outage of the RPC is not one of the shop.
"""

import asyncio

import structlog

from obol.errors import ChainUnavailableError
from obol.x402.facilitator import Facilitator, Settlement, SettleOutcome, VerifyOutcome
from obol.x402.models import PaymentPayload, PaymentRequirements, SupportedResponse
from obol.x402.witness import Fate, Moved, NeverMoves, StillOpen, Witness

NOT_SEEN = "settlement_not_seen"
"""The facilitator says that it settled, and the chain does not show it (yet)."""
SEEN_WITHIN_S = 5.0
_POLL_S = 0.25


class WitnessedFacilitator:
    """Implements `x402.facilitator.Facilitator`; takes over both, which its `close` closes.

    `seen_within_s`: how long a settlement that is said to be made may take to be seen on the chain.
    """

    def __init__(
        self,
        facilitator: Facilitator,
        witness: Witness,
        log: structlog.typing.FilteringBoundLogger,
        *,
        seen_within_s: float = SEEN_WITHIN_S,
    ) -> None:
        self._facilitator = facilitator
        self._witness = witness
        self._log = log
        self._seen_within_s = seen_within_s

    async def verify(self, payload: PaymentPayload, requirements: PaymentRequirements) -> VerifyOutcome:
        """See the port."""
        return await self._facilitator.verify(payload, requirements)

    async def settle(self, payload: PaymentPayload, requirements: PaymentRequirements) -> Settlement:
        """See the port, and the table above."""
        said = await self._facilitator.settle(payload, requirements)
        fate = await self._fate(said, payload, requirements)
        match fate:
            case Moved():
                self._warn_of_a_foreign_transaction(said, fate)
                return Settlement(SettleOutcome.SETTLED, fate.transaction, said.reason, log_index=fate.log_index)
            case NeverMoves():
                if said.outcome is SettleOutcome.SETTLED:
                    self._log.error("facilitator_lied", reason=fate.reason, transaction=said.transaction)
                return Settlement(SettleOutcome.FAILED, "", fate.reason, is_proven=True)
            case StillOpen() if said.outcome is SettleOutcome.SETTLED:
                self._log.warning("settlement_not_seen", transaction=said.transaction)
                return Settlement(SettleOutcome.PENDING, "", NOT_SEEN, "the chain does not show the settlement yet")
            case StillOpen():
                return said
            case None:
                return _unwitnessed(said)

    async def supported(self) -> SupportedResponse:
        """See the port."""
        return await self._facilitator.supported()

    async def close(self) -> None:
        """See the port."""
        try:
            await self._facilitator.close()
        finally:
            await self._witness.close()

    async def _fate(self, said: Settlement, payload: PaymentPayload, requirements: PaymentRequirements) -> Fate | None:
        """What the chain says; None when it cannot be asked. Waits for what is said to be settled to be seen."""
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + self._seen_within_s
        while True:
            try:
                fate = await self._witness.fate(payload, requirements)
            except ChainUnavailableError as error:
                self._log.warning("witness_unavailable", error=str(error))
                return None
            is_awaited = said.outcome is SettleOutcome.SETTLED and isinstance(fate, StillOpen)
            if not is_awaited or loop.time() >= give_up_s:
                return fate
            await asyncio.sleep(_POLL_S)

    def _warn_of_a_foreign_transaction(self, said: Settlement, fate: Moved) -> None:
        if said.outcome is SettleOutcome.SETTLED and said.transaction.lower() != fate.transaction:
            self._log.warning("foreign_transaction", said=said.transaction, seen=fate.transaction)


def _unwitnessed(said: Settlement) -> Settlement:
    """A transaction that reverted may have done so because somebody else sent the same authorization first."""
    if said.outcome is SettleOutcome.FAILED and said.transaction:
        return Settlement(SettleOutcome.UNKNOWN, said.transaction, said.reason, said.message)
    return said
