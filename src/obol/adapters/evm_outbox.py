"""Signs the transactions of one key, and hands them to the nodes of one chain."""

from dataclasses import dataclass

import structlog

from obol.adapters.chain_evm import EvmChain
from obol.adapters.evm_calls import Call
from obol.adapters.evm_fees import Fees
from obol.adapters.evm_journal import Attempt, JournalCall
from obol.adapters.evm_refusals import PROOFS, Meaning, meaning_of
from obol.adapters.evm_signing import TransactionFields, TransactionSigner
from obol.adapters.rpc_http import RpcRefusedError
from obol.core.clock import Clock
from obol.errors import ChainUnavailableError

_NOTHING_GAS = 21_000
"""What a transaction to ourselves that does nothing takes."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a broadcast. `is_proof`: no node has kept the transaction, this time."""

    meaning: Meaning
    text: str = ""
    is_proof: bool = False


class Outbox:
    """Takes over `signer`, not the chain."""

    def __init__(
        self, chain: EvmChain, signer: TransactionSigner, clock: Clock, log: structlog.typing.FilteringBoundLogger
    ) -> None:
        self.address = signer.address
        self._chain = chain
        self._signer = signer
        self._clock = clock
        self._log = log

    @property
    def filler(self) -> Call:
        """Uses a nonce, and does nothing."""
        return Call((), self.address, b"", _NOTHING_GAS)

    async def sign(self, nonce: int, what: Call | JournalCall, fees: Fees, *, is_filler: bool = False) -> Attempt:
        """A transaction, not broadcast. Raises `ChainUnavailableError` where the signer cannot be asked."""
        max_fee_wei, priority_fee_wei = fees.max_fee_wei, fees.priority_fee_wei
        chain_id = self._chain.network.chain_id
        signed = await self._signer.sign(
            TransactionFields(chain_id, nonce, what.to, what.data, what.gas_limit, max_fee_wei, priority_fee_wei)
        )
        now_s = self._clock.now_s()
        return Attempt(signed.transaction, signed.raw, max_fee_wei, priority_fee_wei, now_s, is_filler)

    async def broadcast(self, attempt: Attempt) -> Answer:
        """Hand it to a node."""
        try:
            await self._chain.send_raw(attempt.raw)
        except RpcRefusedError as refused:
            meaning = meaning_of(str(refused))
            return Answer(meaning, str(refused), is_proof=refused.is_last_word and meaning in PROOFS)
        except ChainUnavailableError as error:
            self._log.warning("broadcast_unknown", transaction=attempt.transaction)
            return Answer(Meaning.LOST, str(error))
        return Answer(Meaning.KEPT)

    async def close(self) -> None:
        """Let go of the signer. Idempotent."""
        await self._signer.close()
