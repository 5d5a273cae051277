"""What nodes say of a transaction, in their own words."""

import pytest

from obol.adapters.evm_refusals import PROOFS, Meaning, meaning_of

TEXTS = {
    Meaning.KEPT: [
        "already known",  # geth, reth, erigon
        "AlreadyKnown",  # nethermind
        "Known transaction",  # besu
        "known transaction. transaction with hash 0xab is already in the system",  # zksync
        "transaction already imported",  # anvil
        "Transaction with the same hash was already imported.",  # openethereum
        "INTERNAL_ERROR: existing tx with same hash",  # erigon
    ],
    Meaning.EARLY: [
        "nonce too high",
        "nonce too high: address 0xA1, tx: 5 state: 4",  # nitro
        "Nonce too high. Expected nonce to be 0 but got 5. Note that transactions can't be queued when automining.",
        "NonceGap, Future nonce. Expected nonce: 3",  # nethermind
        "Transaction nonce is too distant from current sender nonce",  # besu
        "future transaction tries to replace pending",  # geth
        "gapped-nonce tx from delegated accounts",  # geth
        "in-flight transaction limit reached for delegated accounts",  # geth
        "invalid transaction nonce",  # either way, so it is looked after
    ],
    Meaning.RIVAL: [
        "replacement transaction underpriced",
        "Replacement transaction underpriced. A gasPrice/maxFeePerGas of at least 5 is necessary to replace",  # hardhat
        "Transaction gas price 1wei is too low. There is another transaction with same nonce in the queue",
        "replacement fee too low",
        "OwnNonceAlreadyUsed",  # nethermind
    ],
    Meaning.USED: [
        "nonce too low",
        "nonce too low: next nonce 5, tx nonce 3",  # geth
        "Transaction nonce is too low. Try incrementing the nonce.",  # openethereum
        "OldNonce, Current nonce: 7, nonce of rejected tx: 6",  # nethermind
        "nonce has already been used",
        "Pool(Stale)",  # substrate
    ],
    Meaning.POOR: [
        "insufficient funds for gas * price + value: balance 1, tx cost 2, overshot 1",
        "InsufficientFunds, Account balance: 1, cumulative cost: 2",  # nethermind
        "Upfront cost exceeds account balance",  # besu
        "sender doesn't have enough funds to send tx. The max upfront cost is: 2 and the sender's balance is: 1.",
        "insufficient balance for transfer",
    ],
    Meaning.CHEAP: [
        "transaction underpriced",
        "transaction underpriced: gas tip cap 1, minimum needed 1000000",  # geth
        "max fee per gas less than block base fee: address 0xA1, maxFeePerGas: 1, baseFee: 2",
        "Transaction maxFeePerGas (1) is too low for the next block, which has a baseFeePerGas of 2",  # hardhat
        "FeeTooLowToCompete",  # nethermind
        "Gas price below configured minimum gas price",  # besu
        "gas price too low: 1 wei, use at least tx.gasPrice = 2 wei",  # metis
        "txpool is full",
        "sequencer pending tx pool full, please try again",  # nitro
        "queue full",
    ],
    Meaning.REFUSED: [
        "exceeds block gas limit",
        "Transaction gas limit is 30000001 and exceeds block gas limit of 30000000",  # hardhat
        "transaction gas limit too high (cap: 16777216, tx: 23342686)",  # geth, EIP-7825
        "GasLimitExceeded, Gas limit: 1, gas limit of rejected tx: 2",  # nethermind
        "intrinsic gas too low",
        "intrinsic gas too low: gas 20999, minimum needed 21000",
        "insufficient gas for floor data gas cost: gas 1, minimum needed 2",
        "gas required exceeds allowance (300000)",
        "oversized data: transaction size 200000, limit 131072",
        "Transaction is too big, see chain specification for the limit",
        "tx fee (1.20 ether) exceeds the configured cap (1.00 ether)",  # geth
        "max priority fee per gas higher than max fee per gas: address 0xA1",
        "invalid sender",
        "Invalid signature",
        "invalid chain id for signer: have 1 want 84532",
        "transaction type not supported",
        "only replay-protected (EIP-155) transactions allowed over RPC",
        "execution reverted: FiatTokenV2: authorization is used or canceled",
        "Sender is banned in local queue",
    ],
    Meaning.UNCLEAR: [
        "",
        "unknown error",
        "unknown transaction state",
        "internal error",
        "request timed out",
        "service unavailable",
        "rate limit exceeded",
        "daily request count exceeded, request rate limited",
        "header not found",
        "failed after 0 retries: timeout",
        "something went wrong with the nonce",
    ],
}


@pytest.mark.parametrize(("meaning", "text"), [(meaning, text) for meaning, texts in TEXTS.items() for text in texts])
def test_a_text_means_what_its_node_means(meaning: Meaning, text: str) -> None:
    assert meaning_of(text) is meaning


def test_only_what_was_refused_is_not_kept() -> None:
    """With anything else, a transaction may be mined at any time."""
    assert {Meaning.USED, Meaning.POOR, Meaning.CHEAP, Meaning.REFUSED} == PROOFS
