"""A facilitator on EVM chains: verifies payments against the chain, and settles them with a key that pays the gas.

Verified is in the order of the official facilitator, cheap first: form, amount and recipient, window, signature, then
one simulated call, which says all the rest. Before a settlement is broadcast it is simulated again; what was broadcast
is never sent a second time, whatever became of it. A payment whose authorization is used already is settled if the
chain shows that it paid: by whom does not matter. Source: x402 `exact` scheme on EVM.
"""

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from obol.adapters.chain_evm import EvmChain, TransactionReceipt
from obol.adapters.evm_batching import BatchingSender
from obol.adapters.evm_calls import Call, Mined, NotSent, Unmined
from obol.adapters.evm_plans import Plan, Planner
from obol.adapters.evm_sender import Sender
from obol.adapters.failure_budget import FailureBudget
from obol.adapters.witness_evm import EvmWitness, find_transfer
from obol.adapters.witness_permit2 import find_payment
from obol.core.clock import Clock
from obol.core.networks import Asset, TransferMethod
from obol.errors import ChainUnavailableError, FacilitatorUnavailableError, LedgerUnavailableError
from obol.x402.checks import REASONS, outside_window
from obol.x402.exact import SCHEME
from obol.x402.facilitator import Accepted, Refused, Settlement, SettleOutcome, VerifyOutcome
from obol.x402.gas_sponsoring import GAS_SPONSORING, permit_expired
from obol.x402.models import PaymentPayload, PaymentRequirements, SupportedKind, SupportedResponse
from obol.x402.reasons import Reason
from obol.x402.transfer_order import TransferOrder, read_order
from obol.x402.witness import Moved, NeverMoves


@dataclass(frozen=True, slots=True)
class Served:
    """One network that is served: its chain, who sends there, and the tokens that were found there.

    `factories` (lower case) may be called to deploy a payer's wallet: then the batcher must be on the chain.
    """

    chain: EvmChain
    sender: Sender | BatchingSender
    assets: tuple[Asset, ...]
    factories: frozenset[str] = frozenset()


class EvmFacilitator:
    """Implements `x402.facilitator.Facilitator`; takes over chains and senders, which its `close` closes.

    `settle_wait_s`: how long a settlement waits for its block; after it, or the requirements' `maxTimeoutSeconds` where
    that is shorter, it is `settlement_pending`. Requirements with a longer `maxTimeoutSeconds` than `max_timeout_s`
    are refused.
    """

    def __init__(
        self, networks: Collection[Served], clock: Clock, *, settle_wait_s: float = 45.0, max_timeout_s: int = 86_400
    ) -> None:
        self._served: Mapping[str, Served] = {served.chain.network.caip2: served for served in networks}
        self._assets = tuple(asset for served in networks for asset in served.assets)
        self._clock = clock
        self._settle_wait_s = settle_wait_s
        self._max_timeout_s = max_timeout_s
        self._budget = FailureBudget(clock)
        self._under_way: dict[str, tuple[TransferOrder, asyncio.Task[Settlement]]] = {}
        self._planners = {served.chain.network.caip2: Planner(served.chain, served.factories) for served in networks}

    @property
    def served(self) -> Collection[Served]:
        """The networks, for who reports on them."""
        return self._served.values()

    async def verify(self, payload: PaymentPayload, requirements: PaymentRequirements) -> VerifyOutcome:
        """See the port."""
        order = self._read(payload, requirements)
        if isinstance(order, Refused):
            return order
        try:
            plan = await self._plan(order)
            unaffordable = await self._served[order.asset.network.caip2].sender.too_dear()
        except ChainUnavailableError as error:
            raise FacilitatorUnavailableError(f"the chain cannot be asked: {error}") from error
        if unaffordable is not None:
            raise FacilitatorUnavailableError(unaffordable.message)
        return plan if isinstance(plan, Refused) else Accepted(order.authorization.payer)

    async def settle(self, payload: PaymentPayload, requirements: PaymentRequirements) -> Settlement:
        """See the port. Concurrent asks for one payment share one settlement, which nobody's leaving cancels."""
        order = self._read(payload, requirements)
        if isinstance(order, Refused):
            return _failed(order)
        key = _key(order)
        while (under_way := self._under_way.get(key)) is not None and under_way[0].authorization != order.authorization:
            await asyncio.wait((under_way[1],))  # the same nonce, signed for something else: one after the other
        if under_way is None:
            task = asyncio.get_running_loop().create_task(self._settle(key, order, payload, requirements))
            self._under_way[key] = (order, task)
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
        else:
            task = under_way[1]
        return await asyncio.shield(task)

    async def supported(self) -> SupportedResponse:
        """Both protocol versions of `exact` on every network that has a token we can move, and who pays the gas."""
        networks = [served.chain.network for served in self._served.values() if served.assets]
        kinds = [
            SupportedKind(version, SCHEME, name)
            for network in networks
            for version, name in ((2, network.caip2), (1, network.name))
        ]
        senders = list(dict.fromkeys(served.sender.address for served in self._served.values()))
        by_permit2 = any(asset.transfer_method is TransferMethod.PERMIT2 for asset in self._assets)
        extensions = [GAS_SPONSORING] if by_permit2 else []
        return SupportedResponse(kinds, extensions, signers={"eip155:*": senders})

    async def close(self) -> None:
        """See the port. What is being settled is waited for."""
        if self._under_way:
            await asyncio.wait([task for _, task in self._under_way.values()])
        for served in self._served.values():
            await served.sender.close()
            await served.chain.close()

    def _read(self, payload: PaymentPayload, requirements: PaymentRequirements) -> TransferOrder | Refused:
        if requirements.max_timeout_seconds > self._max_timeout_s:
            text = f"maxTimeoutSeconds is above the {self._max_timeout_s} s allowed here"
            return Refused(Reason.INVALID_REQUIREMENTS, text)
        return read_order(payload, requirements, self._assets)

    # ------------------------------------------------------------------------------------------------- verifying

    async def _plan(self, order: TransferOrder) -> Plan | Refused:
        """How to settle a payment that would be settled now, or why not."""
        authorization, now_s = order.authorization, self._clock.now_s()
        refused = outside_window(authorization, now_s)
        if refused is None and order.token_permit is not None:
            refused = permit_expired(order.token_permit, now_s)
        if refused is not None:
            return refused
        if self._budget.is_spent(authorization.payer):
            return Refused(Reason.FAILURE_BUDGET, "too many of this payer's settlements reverted of late")
        network = order.asset.network.caip2
        plan = await self._planners[network].plan(order)
        if isinstance(plan, Refused):
            return plan
        return await self._planners[network].simulate(plan, sender=self._served[network].sender.address) or plan

    # -------------------------------------------------------------------------------------------------- settling

    async def _settle(
        self, key: str, order: TransferOrder, payload: PaymentPayload, requirements: PaymentRequirements
    ) -> Settlement:
        served = self._served[order.asset.network.caip2]
        wait_s = min(self._settle_wait_s, requirements.max_timeout_seconds)
        try:
            known = await served.sender.known(key, wait_s=wait_s)
            sent = known or await self._send(served, key, order, wait_s)
            if isinstance(sent, Refused):
                return await self._why_refused(served, sent, order, payload, requirements)
            if isinstance(sent, Mined):
                return await self._outcome(served, sent.receipt, order, payload, requirements)
        except ChainUnavailableError as error:
            return _unknown(f"the chain cannot be asked: {error}")
        except LedgerUnavailableError:
            return _unknown("the journal cannot be read or written")
        if isinstance(sent, NotSent):  # not now, which is not "never": asking again may do it
            return _unknown(sent.message)
        return _pending(sent.transaction)

    async def _send(
        self, served: Served, key: str, order: TransferOrder, wait_s: float
    ) -> Mined | Unmined | NotSent | Refused:
        """Once the simulation passes now."""
        plan = await self._plan(order)
        if isinstance(plan, Refused):
            return plan
        call = Call((key,), plan.to, plan.data, plan.gas_limit, is_alone=plan.is_alone)
        return await served.sender.run(call, wait_s=wait_s)

    async def _outcome(
        self,
        served: Served,
        receipt: TransactionReceipt,
        order: TransferOrder,
        payload: PaymentPayload,
        requirements: PaymentRequirements,
    ) -> Settlement:
        """What a mined transaction did for this payment."""
        moved = _find(receipt, order, requirements) if receipt.is_success else None
        if moved is not None:
            return Settlement(SettleOutcome.SETTLED, moved.transaction, log_index=moved.log_index)
        self._budget.note_failure(order.authorization.payer)
        fate = await EvmWitness(served.chain).fate(payload, requirements)
        if isinstance(fate, Moved):  # somebody else sent it first, and ours reverted
            return Settlement(SettleOutcome.SETTLED, fate.transaction, log_index=fate.log_index)
        message = "the transaction was mined and moved nothing"
        return Settlement(SettleOutcome.FAILED, receipt.transaction, Reason.TRANSACTION_FAILED, message)

    async def _why_refused(
        self,
        served: Served,
        refused: Refused,
        order: TransferOrder,
        payload: PaymentPayload,
        requirements: PaymentRequirements,
    ) -> Settlement:
        """A used authorization, or one whose window has closed, may have paid: the chain tells."""
        reasons = REASONS[order.authorization.method]
        if refused.reason not in (reasons.used, reasons.valid_before):
            return _failed(refused)
        fate = await EvmWitness(served.chain).fate(payload, requirements)
        match fate:
            case Moved(transaction, log_index):
                return Settlement(SettleOutcome.SETTLED, transaction, log_index=log_index)
            case NeverMoves():
                return _failed(refused)
        if refused.reason == reasons.used:  # not deep enough to be sure
            return _pending("")
        return _failed(refused)


def _find(receipt: TransactionReceipt, order: TransferOrder, requirements: PaymentRequirements) -> Moved | None:
    """Which transfer of a transaction of ours made this payment."""
    if order.authorization.permit is None:
        return find_transfer(receipt.logs, requirements, order.authorization)
    return find_payment(receipt.logs, order.authorization, requirements)


def _key(order: TransferOrder) -> str:
    """Names a payment in the sender's journal."""
    authorization, asset = order.authorization, order.asset
    return f"{asset.network.caip2}/{asset.address.lower()}/{authorization.payer}/{authorization.nonce}"


def _failed(refused: Refused) -> Settlement:
    return Settlement(SettleOutcome.FAILED, "", refused.reason, refused.message)


def _pending(transaction: str) -> Settlement:
    message = "broadcast, and not in a block that counts yet: ask again with the same payload"
    return Settlement(SettleOutcome.PENDING, transaction, Reason.SETTLEMENT_PENDING, message)


def _unknown(message: str) -> Settlement:
    return Settlement(SettleOutcome.UNKNOWN, "", Reason.UNEXPECTED_SETTLE_ERROR, message)
