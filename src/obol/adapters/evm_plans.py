"""How one payment is put to a chain: who signed it, whom to call with what, and whether it would succeed now.

An ordinary payment is one call. That of a wallet which is still to be deployed is two in one transaction, by the
batcher: the wallet's factory, then the transfer. Sources: EIP-1271, ERC-6492, x402 `exact` scheme on EVM.
"""

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from obol.adapters.chain_evm import EvmChain, RevertedError
from obol.adapters.contracts.batcher import BatchedCall, load_batcher, run_data, run_gas_limit
from obol.adapters.evm_abi import call_data, decode_uint
from obol.adapters.evm_transfers import refusal_of, transfer_call
from obol.adapters.evm_wallets import Undeployed, unwrap
from obol.core.networks import TransferMethod
from obol.x402.checks import REASONS
from obol.x402.eip712 import authorization_digest, recover, signing_domain
from obol.x402.facilitator import Refused
from obol.x402.permit2 import PERMIT2_ADDRESS, allowance_advice
from obol.x402.reasons import Reason
from obol.x402.transfer_order import TransferOrder

GAS_LIMIT = 150_000
"""A transfer takes 80,000 to 130,000."""
WALLET_GAS = 150_000
"""For a contract wallet's own check of its signature, on top."""
DEPLOY_GAS = 1_000_000
"""For a wallet's factory."""
_IS_VALID = "isValidSignature(bytes32,bytes)"
_VALID = bytes.fromhex("1626ba7e") + bytes(28)
"""EIP-1271."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A transaction that settles one payment. `deploys`: the wallet first, by the batcher."""

    order: TransferOrder
    to: str
    data: bytes = field(repr=False)
    gas_limit: int
    deploys: bool = False

    @property
    def is_alone(self) -> bool:
        """No log names a Permit2 payment, so it must not share its transaction; nor can a batch be in a batch."""
        return self.deploys or self.order.asset.transfer_method is TransferMethod.PERMIT2


class Planner:
    """Plans for one chain. `factories` (lower case) may be called to deploy a payer's wallet; where there are any, the
    batcher is on the chain.
    """

    def __init__(self, chain: EvmChain, factories: Collection[str] = ()) -> None:
        self._chain = chain
        self._factories = frozenset(factories)

    async def plan(self, order: TransferOrder) -> Plan | Refused:
        """How to settle a payment that its payer signed; only for a wallet that is still to be deployed it is not known
        whether it did. Raises `ChainUnavailableError`."""
        if _is_signed_by_payer(order):
            return Plan(order, *transfer_call(order), GAS_LIMIT)
        undeployed = unwrap(order.signature)
        inner = order if undeployed is None else replace(order, signature=undeployed.signature)
        if undeployed is not None and _is_signed_by_payer(inner):  # an ordinary account needs nothing deployed
            return Plan(inner, *transfer_call(inner), GAS_LIMIT)
        is_there = bool(await self._chain.code(order.authorization.payer))
        if undeployed is not None and not is_there:
            return self._deploying(inner, undeployed)
        if not is_there:
            text = "not signed by the payer, which is no contract wallet either"
            return Refused(REASONS[order.authorization.method].signature, text)
        refused = await self._refused_by_wallet(inner)
        return refused or Plan(inner, *transfer_call(inner, by_wallet=True), GAS_LIMIT + WALLET_GAS)

    async def tried(self, plan: Plan, *, sender: str) -> Plan | Refused:
        """The plan as it would succeed now, or why it would not. Raises `ChainUnavailableError`."""
        refused = await self._simulated(plan, sender=sender)
        if refused is None:
            return plan
        if plan.gas_limit > GAS_LIMIT or not await self._chain.code(plan.order.authorization.payer):
            return refused
        plan = replace(plan, gas_limit=GAS_LIMIT + WALLET_GAS)  # an account that has both a key and code (EIP-7702)
        return await self._simulated(plan, sender=sender) or plan

    async def _simulated(self, plan: Plan, *, sender: str) -> Refused | None:
        """Why it would fail now with the gas that it is given, or None."""
        try:
            returned = await self._chain.call(plan.to, plan.data, sender=sender, gas=plan.gas_limit)
        except RevertedError as reverted:
            return await self._why(plan, reverted)
        if not plan.deploys:
            return None
        succeeded = decode_uint(returned)
        if not succeeded & 1:
            return Refused(Reason.DEPLOYMENT_FAILED, "the factory does not deploy the wallet")
        if not succeeded & 2:
            return Refused(Reason.SIMULATION_FAILED, "the token refuses the transfer of the deployed wallet")
        return None

    async def _refused_by_wallet(self, order: TransferOrder) -> Refused | None:
        """Why the wallet does not hold its signature for its own, or None."""
        spender = order.asset.address if order.authorization.permit is None else PERMIT2_ADDRESS
        data = call_data(_IS_VALID, _digest(order), order.signature)
        try:
            said = await self._chain.call(order.authorization.payer, data, sender=spender, gas=GAS_LIMIT + WALLET_GAS)
        except RevertedError:
            said = b""
        if said[:32] == _VALID:
            return None
        return Refused(
            REASONS[order.authorization.method].signature, "the payer's wallet does not accept the signature"
        )

    def _deploying(self, order: TransferOrder, undeployed: Undeployed) -> Plan | Refused:
        if undeployed.factory not in self._factories:
            return Refused(Reason.FACTORY_NOT_ALLOWED, "the factory of that wallet is not one that is called here")
        to, data = transfer_call(order, by_wallet=True)
        calls = [
            BatchedCall(undeployed.factory, undeployed.data, DEPLOY_GAS),
            BatchedCall(to, data, GAS_LIMIT + WALLET_GAS),
        ]
        both = run_data(calls)
        return Plan(order, load_batcher().address, both, run_gas_limit(calls, both), deploys=True)

    async def _why(self, plan: Plan, reverted: RevertedError) -> Refused:
        """Permit2 does not say why the token refused it: then balance and allowance tell."""
        order = plan.order
        refused = refusal_of(reverted, order.authorization.method)
        if refused.reason != Reason.SIMULATION_FAILED or order.authorization.permit is None:
            return refused
        token, payer, value_atomic = order.asset.address, order.authorization.payer, order.authorization.value_atomic
        if await self._chain.balance(token, payer) < value_atomic:
            return Refused(Reason.INSUFFICIENT_BALANCE, "the payer does not have the amount")
        if await self._chain.allowance(token, payer, PERMIT2_ADDRESS) < value_atomic:
            return Refused(Reason.PERMIT2_ALLOWANCE_REQUIRED, allowance_advice(order.asset))
        return refused


def _is_signed_by_payer(order: TransferOrder) -> bool:
    """Whether the payer's key signed. A contract wallet's own check is part of the simulation."""
    return recover(_digest(order), order.signature) == order.authorization.payer


def _digest(order: TransferOrder) -> bytes:
    return authorization_digest(signing_domain(order.asset), order.authorization)
