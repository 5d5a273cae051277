"""A facilitator on EVM chains: verifies payments against the chain, and settles them with a key that pays the gas.

Verified is in the order of the official facilitator, cheap first: form, amount and recipient, window, signature, then
one simulated call, which says all the rest. Nobody is told or decides anything about a payment without its payer's
signature. Before a settlement is broadcast it is simulated again; what was broadcast is never sent a second time,
whatever became of it. A payment whose authorization is used already is settled if the chain shows that it paid: by
whom does not matter. Source: x402 `exact` scheme on EVM.
"""

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from obol.adapters.chain_evm import EvmChain, TransactionReceipt
from obol.adapters.evm_batching import BatchingSender
from obol.adapters.evm_calls import Call, Mined, NotSent, Unmined
from obol.adapters.evm_plans import Plan, Planner
from obol.adapters.evm_sender import Sender
from obol.adapters.evm_transfers import transfer_call
from obol.adapters.evm_wallets import unwrap
from obol.adapters.failure_budget import FailureBudget
from obol.adapters.gas_account import GasAccount
from obol.adapters.in_flight import Account, Claim, InFlight
from obol.adapters.witness_evm import EvmWitness, find_transfer
from obol.adapters.witness_permit2 import find_payment, is_permit2_nonce_used
from obol.core.clock import Clock
from obol.core.networks import Asset, TransferMethod, canonical_address
from obol.errors import ChainUnavailableError, FacilitatorUnavailableError, LedgerUnavailableError
from obol.x402.checks import REASONS, SETTLE_MARGIN_S, outside_window
from obol.x402.exact import SCHEME
from obol.x402.facilitator import Accepted, Refused, Settlement, SettleOutcome, VerifyOutcome
from obol.x402.gas_sponsoring import GAS_SPONSORING, permit_expired
from obol.x402.models import PaymentPayload, PaymentRequirements, SupportedKind, SupportedResponse
from obol.x402.reasons import Reason
from obol.x402.transfer_order import TransferOrder, read_order
from obol.x402.witness import Moved, NeverMoves, StillOpen, Unconfirmed, Used

BLOCKS_LEFT = 2
"""That must be left of an authorization's window: what expires on its way into a block is gas burnt."""

_BUDGET_SPENT = Refused(Reason.FAILURE_BUDGET, "too many of this payer's settlements reverted of late")


@dataclass(frozen=True, slots=True)
class Served:
    """One network that is served: its chain, who sends there, and the tokens that were found there.

    `factories` (lower case) may be called to deploy a payer's wallet: then the batcher must be on the chain.
    """

    chain: EvmChain
    sender: Sender | BatchingSender
    assets: tuple[Asset, ...]
    factories: frozenset[str] = frozenset()
    gas: GasAccount | None = None
    """None: whether there is any is not looked at before it is sent."""


class EvmFacilitator:
    """Implements `x402.facilitator.Facilitator`; takes over chains and senders, which its `close` closes.

    `settle_wait_s`: how long a settlement waits for its block; after it, or the requirements' `maxTimeoutSeconds` where
    that is shorter, it is `settlement_pending`. Requirements with a longer `maxTimeoutSeconds` than `max_timeout_s`
    are refused. `payees` (lower case) are the sellers that it works for; none: anybody.
    """

    def __init__(
        self,
        networks: Collection[Served],
        clock: Clock,
        *,
        settle_wait_s: float = 45.0,
        max_timeout_s: int = 86_400,
        payees: Collection[str] = (),
    ) -> None:
        self._served: Mapping[str, Served] = {served.chain.network.caip2: served for served in networks}
        self._assets = tuple(asset for served in networks for asset in served.assets)
        self._clock = clock
        self._settle_wait_s = settle_wait_s
        self._max_timeout_s = max_timeout_s
        self._payees = frozenset(payees)
        self._budget = FailureBudget(clock)
        self._in_flight = InFlight(clock)
        self._under_way: dict[str, tuple[_Asked, asyncio.Task[Settlement]]] = {}
        self._witnesses = {served.chain.network.caip2: EvmWitness(served.chain) for served in networks}
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
            refused = await self._refusal(order)
            unaffordable = await self._unaffordable(self._of(order))
        except ChainUnavailableError as error:
            raise FacilitatorUnavailableError(f"the chain cannot be asked: {error}") from error
        if unaffordable:
            raise FacilitatorUnavailableError(unaffordable)
        return refused or Accepted(order.authorization.payer)

    async def settle(self, payload: PaymentPayload, requirements: PaymentRequirements) -> Settlement:
        """See the port. Concurrent asks for one payment share one settlement, which nobody's leaving cancels."""
        order = self._read(payload, requirements)
        if isinstance(order, Refused):
            return _failed(order)
        key = _key(order)
        try:
            plan = await self._planner(order).plan(order)
            if isinstance(plan, Refused) and not await self._is_sent(key, order):
                return _failed(plan)
        except ChainUnavailableError as error:
            return replace(_unknown(f"the chain cannot be asked: {error}"), is_unsent=True)
        except LedgerUnavailableError:
            return replace(_unknown("the journal cannot be read or written"), is_unsent=True)
        asked = _Asked(order, payload, requirements)
        while (under_way := self._under_way.get(key)) is not None and under_way[0] != asked:
            await asyncio.wait((under_way[1],))  # the same nonce, and something else is asked: one after the other
        if under_way is None:
            task = asyncio.get_running_loop().create_task(self._settle(key, plan, asked))
            self._under_way[key] = (asked, task)
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
        else:
            task = under_way[1]
        return await asyncio.shield(task)

    async def supported(self) -> SupportedResponse:
        """`exact` on every network that has a token we can move, by what protocol versions, and who pays the gas."""
        kinds = [kind for served in self._served.values() for kind in _kinds(served)]
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
        if requirements.max_timeout_seconds <= 0:
            return Refused(Reason.INVALID_REQUIREMENTS, "maxTimeoutSeconds must be at least 1")
        if self._payees and canonical_address(requirements.pay_to) not in self._payees:
            return Refused(Reason.INVALID_REQUIREMENTS, "this facilitator does not work for that payTo")
        return read_order(payload, requirements, self._assets)

    def _of(self, order: TransferOrder) -> Served:
        return self._served[order.asset.network.caip2]

    def _witness(self, order: TransferOrder) -> EvmWitness:
        return self._witnesses[order.asset.network.caip2]

    def _planner(self, order: TransferOrder) -> Planner:
        return self._planners[order.asset.network.caip2]

    async def _unaffordable(self, served: Served) -> str:
        """Why nothing would be sent now, whoever paid; or ""."""
        too_dear = await served.sender.too_dear()
        if too_dear is not None:
            return too_dear.message
        return "" if served.gas is None else await served.gas.shortage()

    async def _refusal(self, order: TransferOrder) -> Refused | None:
        """Why it would not be settled now."""
        refused = self._outside(order)
        if refused is None and self._budget.is_spent(order.authorization.payer):
            refused = _BUDGET_SPENT
        if refused is not None:
            return refused
        plan = await self._planner(order).plan(order)
        if not isinstance(plan, Refused):
            plan = await self._planner(order).tried(plan, sender=self._of(order).sender.address)
        return plan if isinstance(plan, Refused) else None

    def _outside(self, order: TransferOrder) -> Refused | None:
        now_s = self._clock.now_s()
        margin_s = max(SETTLE_MARGIN_S, BLOCKS_LEFT * order.asset.network.block_time_s)
        refused = outside_window(order.authorization, now_s, margin_s=margin_s)
        if refused is None and order.token_permit is not None:
            refused = permit_expired(order.token_permit, now_s)
        return refused

    # -------------------------------------------------------------------------------------------------- settling

    async def _settle(self, key: str, plan: Plan | Refused, asked: "_Asked") -> Settlement:
        order, requirements = asked.order, asked.requirements
        served = self._of(order)
        wait_s = min(self._settle_wait_s, requirements.max_timeout_seconds)
        try:
            sent: Mined | Unmined | NotSent | Refused | None = await served.sender.known(key, wait_s=wait_s)
            if sent is None:
                sent = plan if isinstance(plan, Refused) else await self._send(served, key, plan, wait_s)
            elif isinstance(plan, Plan) and plan.deploys and not await self._is_sent(key, order):
                sent = Refused(REASONS[order.authorization.method].signature, "sent with another signature")
            if isinstance(sent, Refused):
                return await self._why_refused(sent, asked)
            if isinstance(sent, Mined):
                settlement = await self._outcome(served, key, sent.receipt, asked)
                self._in_flight.leave(_account(order), key, is_paid=settlement.outcome is SettleOutcome.SETTLED)
                return settlement
        except ChainUnavailableError as error:
            return _unknown(f"the chain cannot be asked: {error}")
        except LedgerUnavailableError:
            return _unknown("the journal cannot be read or written")
        if isinstance(sent, NotSent):  # not now, which is not "never": asking again may do it
            return replace(_unknown(sent.message), is_unsent=True)
        return _pending(sent.transaction)

    async def _send(self, served: Served, key: str, plan: Plan, wait_s: float) -> Mined | Unmined | NotSent | Refused:
        """Once the payer's money covers it with what it has under way, and the simulation passes now."""
        order, began_s = plan.order, self._clock.monotonic_s()
        refused = self._outside(order)
        if refused is not None:
            return refused
        token, payer = order.asset.address, order.authorization.payer
        if self._budget.is_spent(payer):
            return _BUDGET_SPENT
        claim = Claim(
            _account(order),
            key,
            order.authorization.value_atomic,
            float(order.authorization.valid_before_s),
            is_alone=order.token_permit is not None,  # its nonce is good for one
        )
        account = Account(lambda: served.chain.balance(token, payer), lambda other: self._has_ended(served, other))
        if not await self._in_flight.enter(claim, account, wait_s=wait_s):
            return NotSent("payer_busy", "what this payer has under way may take the money")
        sent: Mined | Unmined | NotSent | Refused = NotSent("", "")
        try:
            tried = await self._planner(order).tried(plan, sender=served.sender.address)
            if isinstance(tried, Refused):
                return tried
            call = Call((key,), tried.to, tried.data, tried.gas_limit, is_alone=tried.is_alone)
            left_s = max(0.0, wait_s - (self._clock.monotonic_s() - began_s))
            sent = await served.sender.run(call, wait_s=left_s)
            return sent
        finally:
            if isinstance(sent, NotSent):
                self._in_flight.leave(claim.account, key, is_paid=False)
            else:
                self._in_flight.is_sent(claim.account, key)

    async def _has_ended(self, served: Served, key: str) -> bool:
        """Whether what was sent for another payment moves nothing any more."""
        return not isinstance(await served.sender.known(key), Unmined)

    async def _is_sent(self, key: str, order: TransferOrder) -> bool:
        """Whether a transaction for this payment was sent with this very signature: then its payer signed it, whatever
        a contract wallet says of it by now."""
        served = self._of(order)
        sent = await served.sender.known(key)
        if sent is None:
            return False
        mined = sent.receipt.transaction if isinstance(sent, Mined) else sent.transaction
        transaction = await served.chain.transaction(mined)
        return transaction is not None and by_wallet(order) in transaction.data

    async def _outcome(self, served: Served, key: str, receipt: TransactionReceipt, asked: "_Asked") -> Settlement:
        """What a mined transaction did for this payment."""
        moved = _find(receipt, asked.order, asked.requirements) if receipt.is_success else None
        if moved is not None:
            return Settlement(SettleOutcome.SETTLED, moved.transaction, log_index=moved.log_index)
        fate = await self._witness(asked.order).fate(asked.payload, asked.requirements)
        match fate:
            case Moved():  # somebody else sent it first, and ours reverted
                return Settlement(SettleOutcome.SETTLED, fate.transaction, log_index=fate.log_index)
            case Unconfirmed() | Used():
                return _pending("")
            case StillOpen() if await is_used(served.chain, asked.order, receipt.block):
                return _pending("")  # by what, a node that lags behind does not show yet
        if not receipt.is_success or isinstance(fate, StillOpen):  # else it is the asker's terms that are other ones
            self._budget.note_failure(asked.order.authorization.payer, key)
        message = "the transaction was mined and moved nothing"
        return Settlement(SettleOutcome.FAILED, receipt.transaction, Reason.TRANSACTION_FAILED, message)

    async def _why_refused(self, refused: Refused, asked: "_Asked") -> Settlement:
        """A used authorization, or one whose window has closed, may have paid: the chain tells."""
        reasons = REASONS[asked.order.authorization.method]
        if refused.reason not in (reasons.used, reasons.valid_before):
            return _failed(refused)
        fate = await self._witness(asked.order).fate(asked.payload, asked.requirements)
        match fate:
            case Moved(transaction, log_index):
                return Settlement(SettleOutcome.SETTLED, transaction, log_index=log_index)
            case Unconfirmed() | Used():
                return _pending("")
            case StillOpen() if refused.reason == reasons.used:  # a node that lags behind
                return _pending("")
            case NeverMoves() | StillOpen():
                return _failed(refused)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What one settlement was asked with: only who asks the very same shares its answer."""

    order: TransferOrder
    payload: PaymentPayload
    requirements: PaymentRequirements


async def is_used(chain: EvmChain, order: TransferOrder, block: int) -> bool:
    """Whether the authorization was used, or made void, at the end of a block."""
    authorization = order.authorization
    if authorization.permit is None:
        return await chain.is_authorization_used(order.asset.address, authorization.payer, authorization.nonce, block)
    return await is_permit2_nonce_used(chain, authorization, block)


def by_wallet(order: TransferOrder) -> bytes:
    """The call that moves a contract wallet's payment, as it is found in the transaction that made it."""
    undeployed = unwrap(order.signature)
    order = order if undeployed is None else replace(order, signature=undeployed.signature)
    return transfer_call(order, by_wallet=True)[1]


def _kinds(served: Served) -> list[SupportedKind]:
    """x402 v1 has no Permit2."""
    network, methods = served.chain.network, {asset.transfer_method for asset in served.assets}
    v2 = [SupportedKind(2, SCHEME, network.caip2)] if methods else []
    return [*v2, SupportedKind(1, SCHEME, network.name)] if TransferMethod.EIP3009 in methods else v2


def _find(receipt: TransactionReceipt, order: TransferOrder, requirements: PaymentRequirements) -> Moved | None:
    """Which transfer of a transaction of ours made this payment."""
    if order.authorization.permit is None:
        return find_transfer(receipt.logs, requirements, order.authorization)
    return find_payment(receipt.logs, order.authorization, requirements)


def _key(order: TransferOrder) -> str:
    """Names a payment in the sender's journal."""
    authorization, asset = order.authorization, order.asset
    return f"{asset.network.caip2}/{asset.address.lower()}/{authorization.payer}/{authorization.nonce}"


def _account(order: TransferOrder) -> str:
    """Names a payer's money."""
    return f"{order.asset.network.caip2}/{order.asset.address.lower()}/{order.authorization.payer}"


def _failed(refused: Refused) -> Settlement:
    return Settlement(SettleOutcome.FAILED, "", refused.reason, refused.message)


def _pending(transaction: str) -> Settlement:
    message = "broadcast, and not in a block that counts yet: ask again with the same payload"
    return Settlement(SettleOutcome.PENDING, transaction, Reason.SETTLEMENT_PENDING, message)


def _unknown(message: str) -> Settlement:
    return Settlement(SettleOutcome.UNKNOWN, "", Reason.UNEXPECTED_SETTLE_ERROR, message)
