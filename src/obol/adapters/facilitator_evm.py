"""A facilitator on EVM chains: verifies payments against the chain, and settles them with a key that pays the gas.

Verified is in the order of the official facilitator, cheap first: form, amount and recipient, window, signature, then
one simulated call, which says all the rest. Before a settlement is broadcast it is simulated again; what was broadcast
is never sent a second time, whatever became of it. A payment whose authorization is used already is settled if the
chain shows that it paid: by whom does not matter. Source: x402 `exact` scheme on EVM.
"""

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from obol.adapters.chain_evm import EvmChain, RevertedError, TransactionReceipt
from obol.adapters.evm_abi import call_data
from obol.adapters.evm_batching import BatchingSender
from obol.adapters.evm_sender import Call, Mined, NotSent, Sender, Unmined
from obol.adapters.failure_budget import FailureBudget
from obol.adapters.witness_evm import EvmWitness, find_transfer
from obol.core.clock import Clock
from obol.core.networks import Asset
from obol.errors import ChainUnavailableError, FacilitatorUnavailableError, LedgerUnavailableError
from obol.x402.authorization import Authorization
from obol.x402.eip712 import authorization_digest, domain_separator, recover
from obol.x402.exact import SCHEME, SETTLE_MARGIN_S
from obol.x402.facilitator import Accepted, Refused, Settlement, SettleOutcome, VerifyOutcome
from obol.x402.models import PaymentPayload, PaymentRequirements, SupportedKind, SupportedResponse
from obol.x402.reasons import Reason
from obol.x402.transfer_order import TransferOrder, read_order
from obol.x402.witness import Moved, NeverMoves

GAS_LIMIT = 300_000
"""A FiatToken transfer takes 80,000 to 100,000; a contract wallet's signature check comes on top."""
_WORDS = "address,address,uint256,uint256,uint256,bytes32"
_BY_PARTS = f"transferWithAuthorization({_WORDS},uint8,bytes32,bytes32)"
_BY_BYTES = f"transferWithAuthorization({_WORDS},bytes)"
_REVERTS = (
    ("authorization is used or canceled", Reason.AUTHORIZATION_USED),
    ("authorization is expired", Reason.VALID_BEFORE),
    ("authorization is not yet valid", Reason.VALID_AFTER),
    ("transfer amount exceeds balance", Reason.INSUFFICIENT_BALANCE),
    ("invalid signature", Reason.SIGNATURE),
)
"""What tokens say when they revert, and the reason it is."""


@dataclass(frozen=True, slots=True)
class Served:
    """One network that is served: its chain, who sends there, and the tokens that were found there."""

    chain: EvmChain
    sender: Sender | BatchingSender
    assets: tuple[Asset, ...]


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
        self._under_way: dict[str, asyncio.Task[Settlement]] = {}
        self._domains = {
            asset: domain_separator(asset.eip712_name, asset.eip712_version, asset.network.chain_id, asset.address)
            for asset in self._assets
        }

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
            unaffordable = await self._served[order.asset.network.caip2].sender.too_dear()
        except ChainUnavailableError as error:
            raise FacilitatorUnavailableError(f"the chain cannot be asked: {error}") from error
        if unaffordable is not None:
            raise FacilitatorUnavailableError(unaffordable.message)
        return refused or Accepted(order.authorization.payer)

    async def settle(self, payload: PaymentPayload, requirements: PaymentRequirements) -> Settlement:
        """See the port. Concurrent asks for one payment share one settlement, which nobody's leaving cancels."""
        order = self._read(payload, requirements)
        if isinstance(order, Refused):
            return _failed(order)
        key = _key(order)
        task = self._under_way.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._settle(key, order, payload, requirements))
            self._under_way[key] = task
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
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
        return SupportedResponse(kinds, signers={"eip155:*": senders})

    async def close(self) -> None:
        """See the port. What is being settled is waited for."""
        if self._under_way:
            await asyncio.wait(self._under_way.values())
        for served in self._served.values():
            await served.sender.close()
            await served.chain.close()

    def _read(self, payload: PaymentPayload, requirements: PaymentRequirements) -> TransferOrder | Refused:
        if requirements.max_timeout_seconds > self._max_timeout_s:
            text = f"maxTimeoutSeconds is above the {self._max_timeout_s} s allowed here"
            return Refused(Reason.INVALID_REQUIREMENTS, text)
        return read_order(payload, requirements, self._assets)

    # ------------------------------------------------------------------------------------------------- verifying

    async def _refusal(self, order: TransferOrder) -> Refused | None:
        """Why a settlement would fail now, or None."""
        authorization, now_s = order.authorization, self._clock.now_s()
        if authorization.valid_before_s < now_s + SETTLE_MARGIN_S:
            return Refused(Reason.VALID_BEFORE, "the authorization has expired or is about to")
        if authorization.valid_after_s > now_s:
            return Refused(Reason.VALID_AFTER, "the authorization is not valid yet")
        if self._budget.is_spent(authorization.payer):
            return Refused(Reason.FAILURE_BUDGET, "too many of this payer's settlements reverted of late")
        served = self._served[order.asset.network.caip2]
        if not self._is_own_signature(order) and not await served.chain.code(authorization.payer):
            return Refused(Reason.SIGNATURE, "not signed by the payer, which is no contract wallet either")
        return await self._simulate(served, order)

    def _is_own_signature(self, order: TransferOrder) -> bool:
        """Whether the payer's key signed. A contract wallet's own check is part of the simulation."""
        digest = authorization_digest(self._domains[order.asset], order.authorization)
        return recover(digest, order.signature) == order.authorization.payer

    async def _simulate(self, served: Served, order: TransferOrder) -> Refused | None:
        try:
            await served.chain.call(order.asset.address, transfer_data(order), sender=served.sender.address)
        except RevertedError as reverted:
            return _reverted(reverted.text)
        return None

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
                return await self._why_refused(served, sent, payload, requirements)
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
        refused = await self._refusal(order)
        if refused is not None:
            return refused
        return await served.sender.run(
            Call((key,), order.asset.address, transfer_data(order), GAS_LIMIT), wait_s=wait_s
        )

    async def _outcome(
        self,
        served: Served,
        receipt: TransactionReceipt,
        order: TransferOrder,
        payload: PaymentPayload,
        requirements: PaymentRequirements,
    ) -> Settlement:
        """What a mined transaction did for this payment."""
        moved = find_transfer(receipt.logs, requirements, order.authorization) if receipt.is_success else None
        if moved is not None:
            return Settlement(SettleOutcome.SETTLED, moved.transaction, log_index=moved.log_index)
        self._budget.note_failure(order.authorization.payer)
        fate = await EvmWitness(served.chain).fate(payload, requirements)
        if isinstance(fate, Moved):  # somebody else sent it first, and ours reverted
            return Settlement(SettleOutcome.SETTLED, fate.transaction, log_index=fate.log_index)
        message = "the transaction was mined and moved nothing"
        return Settlement(SettleOutcome.FAILED, receipt.transaction, Reason.TRANSACTION_FAILED, message)

    async def _why_refused(
        self, served: Served, refused: Refused, payload: PaymentPayload, requirements: PaymentRequirements
    ) -> Settlement:
        """A used authorization, or one whose window has closed, may have paid: the chain tells."""
        if refused.reason not in (Reason.AUTHORIZATION_USED, Reason.VALID_BEFORE):
            return _failed(refused)
        fate = await EvmWitness(served.chain).fate(payload, requirements)
        match fate:
            case Moved(transaction, log_index):
                return Settlement(SettleOutcome.SETTLED, transaction, log_index=log_index)
            case NeverMoves():
                return _failed(refused)
        if refused.reason == Reason.AUTHORIZATION_USED:  # not deep enough to be sure
            return _pending("")
        return _failed(refused)


def transfer_data(order: TransferOrder) -> bytes:
    """The call that moves the money: by (v, r, s) for an ordinary signature, else by its bytes."""
    authorization, signature = order.authorization, order.signature
    words = _words(authorization)
    if len(signature) != 65:
        return call_data(_BY_BYTES, *words, signature)
    v = signature[64] if signature[64] >= 27 else signature[64] + 27  # tokens revert on 0 and 1
    return call_data(_BY_PARTS, *words, v, signature[:32], signature[32:64])


def _words(authorization: Authorization) -> tuple[str, str, int, int, int, bytes]:
    return (
        authorization.payer,
        authorization.to,
        authorization.value_atomic,
        authorization.valid_after_s,
        authorization.valid_before_s,
        bytes.fromhex(authorization.nonce[2:]),
    )


def _key(order: TransferOrder) -> str:
    """Names a payment in the sender's journal."""
    authorization, asset = order.authorization, order.asset
    return f"{asset.network.caip2}/{asset.address.lower()}/{authorization.payer}/{authorization.nonce}"


def _reverted(text: str) -> Refused:
    for words, reason in _REVERTS:
        if words in text.lower():
            return Refused(reason, text)
    return Refused(Reason.SIMULATION_FAILED, text or "the token refuses the transfer and does not say why")


def _failed(refused: Refused) -> Settlement:
    return Settlement(SettleOutcome.FAILED, "", refused.reason, refused.message)


def _pending(transaction: str) -> Settlement:
    message = "broadcast, and not in a block that counts yet: ask again with the same payload"
    return Settlement(SettleOutcome.PENDING, transaction, Reason.SETTLEMENT_PENDING, message)


def _unknown(message: str) -> Settlement:
    return Settlement(SettleOutcome.UNKNOWN, "", Reason.UNEXPECTED_SETTLE_ERROR, message)
