"""All that one block holds, where a node shows it whole: the proof that something is not in it.

`eth_getLogs` cannot prove that: a node whose index is behind, or that keeps none, says "no logs" as well. Here every
transaction of the block must have its receipt, and the logs of these must account for the bloom filter in the header.
Source: Ethereum JSON-RPC (execution-apis), yellow paper 4.4.3 on the bloom filter.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated

import msgspec

from obol.adapters.chain_evm import EvmChain, Log, SentTransaction
from obol.adapters.rpc_http import RpcRefusedError
from obol.errors import ChainUnavailableError
from obol.x402.eip712 import keccak

_Hash = Annotated[str, msgspec.Meta(pattern=r"\A0x[0-9a-fA-F]{64}\Z")]
_Address = Annotated[str, msgspec.Meta(pattern=r"\A0x[0-9a-fA-F]{40}\Z")]
_Quantity = Annotated[str, msgspec.Meta(pattern=r"\A0x[0-9a-fA-F]{1,64}\Z")]
_Data = Annotated[str, msgspec.Meta(pattern=r"\A0x(?:[0-9a-fA-F]{2})*\Z")]
_Bloom = Annotated[str, msgspec.Meta(pattern=r"\A0x[0-9a-fA-F]{512}\Z")]


@dataclass(frozen=True, slots=True)
class BlockContent:
    logs: tuple[Log, ...]
    """All of the block, in its order."""
    sent: Mapping[str, SentTransaction]
    """By transaction, its hash in lower case."""


class _WireTransaction(msgspec.Struct, frozen=True):
    hash: _Hash
    input: _Data
    to: _Address | None = None


class _WireBlock(msgspec.Struct, frozen=True, rename="camel"):
    number: _Quantity
    hash: _Hash
    logs_bloom: _Bloom
    transactions: list[_WireTransaction]


class _WireLog(msgspec.Struct, frozen=True, rename="camel"):
    address: _Address
    topics: list[_Hash]
    data: _Data
    log_index: _Quantity


class _WireReceipt(msgspec.Struct, frozen=True, rename="camel"):
    transaction_hash: _Hash
    block_hash: _Hash
    logs: list[_WireLog]


async def block_content(chain: EvmChain, number: int) -> BlockContent | None:
    """What is in a block: two questions. None where no node shows the whole of it."""
    try:
        block = msgspec.convert(await chain.rpc.call("eth_getBlockByNumber", [hex(number), True]), _WireBlock)
        receipts = msgspec.convert(await chain.rpc.call("eth_getBlockReceipts", [hex(number)]), list[_WireReceipt])
    except (RpcRefusedError, ChainUnavailableError, msgspec.ValidationError):
        return None
    sent = {one.hash.lower(): _sent(one) for one in block.transactions}
    logs = tuple(_log(log, receipt, number) for receipt in receipts for log in receipt.logs)
    is_of_block = int(block.number, 16) == number
    is_of_block &= all(one.block_hash.lower() == block.hash.lower() for one in receipts)
    has_all = sorted(one.transaction_hash.lower() for one in receipts) == sorted(sent)
    return BlockContent(logs, sent) if is_of_block and has_all and _account_for(logs, block.logs_bloom) else None


def _account_for(logs: Iterable[Log], bloom: str) -> bool:
    """Whether these can be all the logs under a bloom filter. Some chains log what is not in it, others have none."""
    shown = 0
    for value in {value for log in logs for value in (log.address, *log.topics)}:
        digest = keccak(bytes.fromhex(value[2:]))
        for place in (0, 2, 4):
            shown |= 1 << (int.from_bytes(digest[place : place + 2], "big") & 2047)
    header = int(bloom, 16)
    return header & ~shown == 0 and (header > 0 or shown == 0)


def _sent(wire: _WireTransaction) -> SentTransaction:
    return SentTransaction((wire.to or "").lower(), bytes.fromhex(wire.input[2:]))


def _log(wire: _WireLog, receipt: _WireReceipt, number: int) -> Log:
    return Log(
        address=wire.address.lower(),
        topics=tuple(topic.lower() for topic in wire.topics),
        data=bytes.fromhex(wire.data[2:]),
        block=number,
        transaction=receipt.transaction_hash.lower(),
        log_index=int(wire.log_index, 16),
    )
