"""A facilitator whose word is held against the chain: a settlement is believed once the chain shows it.

What the facilitator said of a settlement, and what the chain says:

                     Moved     NeverMoves       Unconfirmed   Used       StillOpen   cannot be asked
    SETTLED          SETTLED   FAILED, proven   PENDING *     as said    PENDING *   as said
    PENDING/UNKNOWN  SETTLED   FAILED, proven   as said       as said    as said     as said
    FAILED           SETTLED   FAILED, proven   UNKNOWN       UNKNOWN    as said     UNKNOWN if broadcast, else as said

    * after `seen_within_s`, or `confirmed_within_s`

A payment that somebody else has sent to us is paid like any other, also one that was sent just before it was presented
here: what a facilitator does not take is looked for on the chain before it is refused. One that was sent long before
that may have paid for something else, and the refusal stands. While no RPC endpoint answers, a
facilitator's word is taken as it is without a witness: an outage of the RPC is not one of the shop.
"""

import asyncio

import structlog

from obol.errors import ChainUnavailableError, FacilitatorUnavailableError
from obol.x402.facilitator import Facilitator, Refused, Settlement, SettleOutcome, VerifyOutcome
from obol.x402.models import PaymentPayload, PaymentRequirements, SupportedResponse
from obol.x402.witness import JUST_S, Fate, Moved, NeverMoves, PaidAlready, StillOpen, Unconfirmed, Used, Witness

NOT_SEEN = "settlement_not_seen"
"""The facilitator says that it settled, and the chain does not show it (yet)."""
SEEN_WITHIN_S = 5.0
CONFIRMED_WITHIN_S = 60.0
_POLL_S = 0.25
_POLL_CONFIRMATIONS_S = 1.0


class WitnessedFacilitator:
    """Implements `x402.facilitator.Facilitator`; takes over both, which its `close` closes.

    `seen_within_s`: how long a settlement that is said to be made may take to be seen on the chain;
    `confirmed_within_s`: to be deep enough there, once it is seen. Both count from when it is said.
    """

    def __init__(
        self,
        facilitator: Facilitator,
        witness: Witness,
        log: structlog.typing.FilteringBoundLogger,
        *,
        seen_within_s: float = SEEN_WITHIN_S,
        confirmed_within_s: float = CONFIRMED_WITHIN_S,
    ) -> None:
        self._facilitator = facilitator
        self._witness = witness
        self._log = log
        self._seen_within_s = seen_within_s
        self._confirmed_within_s = confirmed_within_s
        self.is_chain_up: bool | None = None
        """Whether the chain could be asked the last time; None: it was not asked yet."""
        self.unseen = 0
        """Settlements that were believed because the chain could not be asked."""

    async def verify(self, payload: PaymentPayload, requirements: PaymentRequirements) -> VerifyOutcome:
        """See the port. A refusal is `PaidAlready` where the chain shows that, and nobody can say where it may be."""
        said = await self._facilitator.verify(payload, requirements)
        if not isinstance(said, Refused):
            return said
        match await self._fate_of_refused(payload, requirements):
            case Moved(age_s=age_s) if age_s <= JUST_S:
                return PaidAlready(said.reason, said.message)
            case Unconfirmed() | Used():
                raise FacilitatorUnavailableError("the payment is used, and the chain does not show yet by what")
        return said

    async def settle(self, payload: PaymentPayload, requirements: PaymentRequirements) -> Settlement:
        """See the port, and the table above."""
        said = await self._facilitator.settle(payload, requirements)
        fate = await self._fate_of_settled(said, payload, requirements)
        match fate:
            case Moved():
                self._warn_of_a_foreign_transaction(said, fate)
                return Settlement(
                    SettleOutcome.SETTLED,
                    fate.transaction,
                    said.reason,
                    log_index=fate.log_index,
                    age_s=fate.age_s,
                )
            case NeverMoves():
                if said.outcome is SettleOutcome.SETTLED:
                    self._log.error("facilitator_lied", reason=fate.reason, transaction=said.transaction)
                return Settlement(SettleOutcome.FAILED, "", fate.reason, is_proven=True)
            case StillOpen() | Unconfirmed() if said.outcome is SettleOutcome.SETTLED:
                self._log.warning("settlement_not_seen", transaction=said.transaction)
                return Settlement(SettleOutcome.PENDING, "", NOT_SEEN, "the chain does not show the settlement yet")
            case Unconfirmed() | Used() if said.outcome is SettleOutcome.FAILED:
                return _disbelieved(said)
            case None if said.outcome is SettleOutcome.FAILED and said.transaction:
                return _disbelieved(said)  # it may have reverted because somebody else sent the same first
            case None if said.outcome is SettleOutcome.SETTLED:
                self.unseen += 1
        return said

    async def supported(self) -> SupportedResponse:
        """See the port."""
        return await self._facilitator.supported()

    async def close(self) -> None:
        """See the port."""
        try:
            await self._facilitator.close()
        finally:
            await self._witness.close()

    async def _fate_of_refused(self, payload: PaymentPayload, requirements: PaymentRequirements) -> Fate | None:
        """Only of what was used a moment ago; None for all else: what was used before is not paid for this sale."""
        try:
            is_just_used = await self._witness.is_just_used(payload, requirements)
        except ChainUnavailableError as error:
            self._is_down(error)
            return None
        self.is_chain_up = True
        return await self._fate(payload, requirements) if is_just_used else None

    async def _fate_of_settled(
        self, said: Settlement, payload: PaymentPayload, requirements: PaymentRequirements
    ) -> Fate | None:
        """Waits for what is said to be settled to be seen, and then to be deep enough."""
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        while True:
            fate = await self._fate(payload, requirements)
            if said.outcome is not SettleOutcome.SETTLED:
                return fate
            match fate:
                case StillOpen() if loop.time() < started_s + self._seen_within_s:
                    await asyncio.sleep(_POLL_S)
                case Unconfirmed() if loop.time() < started_s + self._confirmed_within_s:
                    await asyncio.sleep(_POLL_CONFIRMATIONS_S)
                case _:
                    return fate

    async def _fate(self, payload: PaymentPayload, requirements: PaymentRequirements) -> Fate | None:
        """What the chain says; None when it cannot be asked."""
        try:
            fate = await self._witness.fate(payload, requirements)
        except ChainUnavailableError as error:
            self._is_down(error)
            return None
        self.is_chain_up = True
        if isinstance(fate, Used):
            self._log.warning("use_not_shown", error=fate.why)
        return fate

    def _is_down(self, error: ChainUnavailableError) -> None:
        self.is_chain_up = False
        self._log.warning("witness_unavailable", error=str(error))

    def _warn_of_a_foreign_transaction(self, said: Settlement, fate: Moved) -> None:
        if said.outcome is SettleOutcome.SETTLED and said.transaction.lower() != fate.transaction:
            self._log.warning("foreign_transaction", said=said.transaction, seen=fate.transaction)


def _disbelieved(said: Settlement) -> Settlement:
    return Settlement(SettleOutcome.UNKNOWN, said.transaction, said.reason, said.message)
