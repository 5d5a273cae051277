"""One EVM chain as its nodes tell it: typed reads of blocks, accounts, contracts, receipts and logs.

Everything that comes back is checked for form before it is used; what cannot be understood is as good as not answered.
Source: Ethereum JSON-RPC (execution-apis).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from obol.adapters.evm_abi import AbiError, call_data, decode_bool, decode_bytes, decode_string, decode_uint, topic
from obol.adapters.rpc_http import JsonRpc, RpcRefusedError
from obol.core.networks import Network
from obol.core.transfer import Transfer
from obol.errors import ChainUnavailableError, SettingsError

T = TypeVar("T")

TRANSFER = topic("Transfer(address,address,uint256)")
LOG_RANGE_BLOCKS = 2_000
"""Blocks asked for at once: what public nodes commonly allow. Halved where a node refuses, down to one."""
_QUANTITY = re.compile(r"0x[0-9a-fA-F]{1,64}", re.ASCII)
_DATA = re.compile(r"0x(?:[0-9a-fA-F]{2})*", re.ASCII)
_HASH = re.compile(r"0x[0-9a-fA-F]{64}", re.ASCII)
_ERROR_STRING = call_data("Error(string)", "")[:4]
_TEXT_LIMIT = 200


class RevertedError(Exception):
    """A simulated call reverted. `text` is the contract's own, "" where it gave none; `data` all that it returned."""

    def __init__(self, text: str, data: bytes = b"") -> None:
        super().__init__(text)
        self.text = text
        self.data = data


@dataclass(frozen=True, slots=True)
class TokenDomain:
    """What a token says of its EIP-712 domain. `name` or `version` is "" where it has no such function."""

    name: str
    version: str
    separator: bytes


@dataclass(frozen=True, slots=True)
class Block:
    number: int
    hash: str
    timestamp_s: int
    base_fee_wei: int


@dataclass(frozen=True, slots=True)
class Log:
    """Addresses, topics and hashes in lower case."""

    address: str
    topics: tuple[str, ...]
    data: bytes
    block: int
    transaction: str
    log_index: int


@dataclass(frozen=True, slots=True)
class SentTransaction:
    """What a transaction asks for. `to` in lower case, "" where it makes a contract."""

    to: str
    data: bytes


@dataclass(frozen=True, slots=True)
class TransactionReceipt:
    """A mined transaction."""

    transaction: str
    is_success: bool
    block: int
    block_hash: str
    logs: tuple[Log, ...]
    gas_used: int
    effective_gas_price_wei: int


class _WireTransaction(msgspec.Struct, frozen=True):
    hash: str
    to: str | None
    input: str


class _WireLog(msgspec.Struct, frozen=True, rename="camel"):
    address: str
    topics: list[str]
    data: str
    block_number: str
    transaction_hash: str
    log_index: str
    removed: bool = False


class _WireReceipt(msgspec.Struct, frozen=True, rename="camel"):
    transaction_hash: str
    status: str
    block_number: str
    block_hash: str
    logs: list[_WireLog]
    gas_used: str
    effective_gas_price: str = "0x0"


class _WireBlock(msgspec.Struct, frozen=True, rename="camel"):
    number: str
    hash: str
    timestamp: str
    base_fee_per_gas: str = "0x0"


class EvmChain:
    """Reads one chain; takes over `rpc`, which its `close` closes. `confirmations`: 1 is "in the newest block".

    Methods raise `ChainUnavailableError` when nobody answers, or nothing that can be understood.
    """

    def __init__(self, rpc: JsonRpc, network: Network, *, confirmations: int = 1) -> None:
        self.network = network
        self.confirmations = confirmations
        self.rpc = rpc
        self._range_blocks = LOG_RANGE_BLOCKS
        rpc.expect(network.chain_id)

    async def check(self, *, field: str = "--rpc") -> None:
        """Raises `SettingsError` naming both chains when an endpoint is of another one."""
        chain_id = await self.rpc.chain_id()
        if chain_id != self.network.chain_id:
            raise SettingsError(field, f"is of chain {chain_id}; {self.network.name} is chain {self.network.chain_id}")

    async def code(self, address: str) -> bytes:
        """The contract at an address; b"" for an ordinary account."""
        return _data(await self.rpc.call("eth_getCode", [address, "latest"]))

    async def call(
        self, to: str, data: bytes, *, sender: str | None = None, block: int | None = None, gas: int | None = None
    ) -> bytes:
        """What a call would return now, or at the end of a block, with so much gas (the node's own limit where None).

        Raises `RevertedError`, also for a call that runs out of gas.
        """
        asked = {"to": to, "data": "0x" + data.hex()}
        asked |= ({"from": sender} if sender else {}) | ({"gas": hex(gas)} if gas is not None else {})
        try:
            return _data(await self.rpc.call("eth_call", [asked, "latest" if block is None else hex(block)]))
        except RpcRefusedError as refused:
            data = _revert_data(refused)
            raise RevertedError(_revert_text(data), data) from None

    async def read(self, contract: str, data: bytes, decode: Callable[[bytes], T], block: int | None = None) -> T:
        """What a contract that should be there returns; one that reverts, or returns another form, is not that one."""
        try:
            return decode(await self.call(contract, data, block=block))
        except (RevertedError, AbiError) as error:
            raise ChainUnavailableError(f"the contract {contract} does not answer like one of its kind") from error

    async def token_domain(self, token: str) -> TokenDomain | None:
        """The EIP-712 domain that a token has; None when there is no contract at that address."""
        if not await self.code(token):
            return None
        name = await self._optional_string(token, "name()")
        version = await self._optional_string(token, "version()")
        try:
            separator = await self.call(token, call_data("DOMAIN_SEPARATOR()"))
        except RevertedError:
            separator = b""
        return TokenDomain(name, version, separator)

    async def balance(self, token: str, owner: str) -> int:
        """Atomic units of a token."""
        return await self.read(token, call_data("balanceOf(address)", owner), decode_uint)

    async def allowance(self, token: str, owner: str, spender: str) -> int:
        """Atomic units of a token that `spender` may move."""
        return await self.read(token, call_data("allowance(address,address)", owner, spender), decode_uint)

    async def native_balance(self, address: str) -> int:
        """Wei."""
        return _quantity(await self.rpc.call("eth_getBalance", [address, "latest"]))

    async def is_authorization_used(self, token: str, payer: str, nonce: str, block: int) -> bool:
        """EIP-3009: used or cancelled at the end of a block."""
        data = call_data("authorizationState(address,bytes32)", payer, bytes.fromhex(nonce[2:]))
        return await self.read(token, data, decode_bool, block)

    async def block(self, which: int | str = "latest") -> Block:
        """A block by number, or by tag. Raises `ChainUnavailableError` where there is none (yet)."""
        tag = which if isinstance(which, str) else hex(which)
        wire = _typed(await self.rpc.call("eth_getBlockByNumber", [tag, False]), _WireBlock)
        number = _quantity(wire.number)
        if number != which and not isinstance(which, str):
            raise _nonsense("another block than was asked for")
        return Block(number, _hash(wire.hash), _quantity(wire.timestamp), _quantity(wire.base_fee_per_gas))

    async def newest_block(self) -> int:
        """Its number."""
        return _quantity(await self.rpc.call("eth_blockNumber", []))

    async def receipt(self, transaction: str) -> TransactionReceipt | None:
        """The receipt of a transaction that is in a block; None for one that is not (any more)."""
        result = await self.rpc.call("eth_getTransactionReceipt", [transaction])
        return None if result is None else _receipt(_typed(result, _WireReceipt), transaction)

    async def is_deep(self, block: int) -> bool:
        """Whether a block has as many confirmations as count here."""
        return self.confirmations <= 1 or await self.newest_block() - block + 1 >= self.confirmations

    async def transaction_count(self, address: str, tag: str = "latest") -> int:
        """The nonce of the next transaction of an address."""
        return _quantity(await self.rpc.call("eth_getTransactionCount", [address, tag]))

    async def priority_fee(self) -> int:
        """Wei per gas that the node suggests."""
        return _quantity(await self.rpc.call("eth_maxPriorityFeePerGas", []))

    async def send_raw(self, raw: bytes) -> str:
        """Broadcast a signed transaction; its hash. Raises `RpcRefusedError` when the node will not take it."""
        return _hash(await self.rpc.call("eth_sendRawTransaction", ["0x" + raw.hex()]))

    async def transaction(self, transaction: str) -> SentTransaction | None:
        """Whom a transaction calls with what; None for one that the node does not know."""
        result = await self.rpc.call("eth_getTransactionByHash", [transaction])
        if result is None:
            return None
        wire = _typed(result, _WireTransaction)
        if _hash(wire.hash) != transaction.lower():
            raise _nonsense("another transaction than was asked for")
        return SentTransaction((wire.to or "").lower(), _data(wire.input))

    async def logs(
        self, address: str, topics: Sequence[str | Sequence[str] | None], from_block: int, to_block: int
    ) -> list[Log]:
        """Logs of a contract in a range of blocks, both ends included, oldest first.

        In pieces that grow from question to question, up to what a node refuses: not every refusal is for good.
        """
        found: list[Log] = []
        most = LOG_RANGE_BLOCKS
        while from_block <= to_block:
            until = min(to_block, from_block + self._range_blocks - 1)
            try:
                found += await self._logs(address, topics, from_block, until)
            except RpcRefusedError as refused:
                if until == from_block:
                    raise ChainUnavailableError(f"the node gives no logs: {refused}") from refused
                most = self._range_blocks = (until - from_block + 1) // 2
            else:
                self._range_blocks = min(most, 2 * self._range_blocks)
                from_block = until + 1
        return found

    async def _logs(
        self, address: str, topics: Sequence[str | Sequence[str] | None], from_block: int, to_block: int
    ) -> list[Log]:
        asked = {"address": address, "topics": topics, "fromBlock": hex(from_block), "toBlock": hex(to_block)}
        result = await self.rpc.call("eth_getLogs", [asked])
        logs = [_log(wire) for wire in _typed(result, list[_WireLog]) if not wire.removed]
        for log in logs:
            is_there = log.address == address.lower() and from_block <= log.block <= to_block
            if not is_there or not _fit(log.topics, topics):
                raise _nonsense("a log that was not asked for")
        return logs

    async def transfers(self, token: str, pay_to: str, from_block: int, to_block: int) -> list[Transfer]:
        """Every movement of a token to an address in a range of blocks, oldest first."""
        logs = await self.logs(token, [TRANSFER, None, address_topic(pay_to)], from_block, to_block)
        return [transfer for log in logs if (transfer := transfer_of(log)) is not None]

    async def close(self) -> None:
        """Idempotent."""
        await self.rpc.close()

    async def _optional_string(self, token: str, function: str) -> str:
        try:
            return decode_string(await self.call(token, call_data(function)))
        except (RevertedError, AbiError):
            return ""


def transfer_of(log: Log) -> Transfer | None:
    """What an ERC-20 Transfer log says; None for any other log."""
    if len(log.topics) != 3 or log.topics[0] != TRANSFER or len(log.data) != 32:
        return None
    payer, pay_to = ("0x" + one[-40:] for one in log.topics[1:])
    return Transfer(log.transaction, log.log_index, log.block, payer, pay_to, int.from_bytes(log.data, "big"))


def address_topic(address: str) -> str:
    """An address as an indexed argument of an event."""
    return "0x" + address[2:].lower().rjust(64, "0")


def _fit(topics: Sequence[str], asked: Sequence[str | Sequence[str] | None]) -> bool:
    """Whether a log is one of those that were asked for: by position, None is any, a list any of it."""
    if len(topics) < len(asked):
        return False
    pairs = zip(asked, topics, strict=False)  # a log may have more
    return all(one is None or topic in ([one] if isinstance(one, str) else one) for one, topic in pairs)


def _receipt(wire: _WireReceipt, transaction: str) -> TransactionReceipt:
    of = {wire.transaction_hash.lower(), *(log.transaction_hash.lower() for log in wire.logs)}
    if of != {transaction.lower()}:
        raise _nonsense("the receipt of another transaction")
    return TransactionReceipt(
        transaction=_hash(wire.transaction_hash),
        is_success=_quantity(wire.status) == 1,
        block=_quantity(wire.block_number),
        block_hash=_hash(wire.block_hash),
        logs=tuple(_log(log) for log in wire.logs),
        gas_used=_quantity(wire.gas_used),
        effective_gas_price_wei=_quantity(wire.effective_gas_price),
    )


def _log(wire: _WireLog) -> Log:
    return Log(
        address=wire.address.lower(),
        topics=tuple(_hash(one) for one in wire.topics),
        data=_data(wire.data),
        block=_quantity(wire.block_number),
        transaction=_hash(wire.transaction_hash),
        log_index=_quantity(wire.log_index),
    )


def _typed(result: Any, kind: type[T]) -> T:
    try:
        return msgspec.convert(result, kind)
    except msgspec.ValidationError as error:
        raise _nonsense(str(error)) from None


def _quantity(value: Any) -> int:
    if not isinstance(value, str) or _QUANTITY.fullmatch(value) is None:
        raise _nonsense("a number was expected")
    return int(value, 16)


def _hash(value: Any) -> str:
    if not isinstance(value, str) or _HASH.fullmatch(value) is None:
        raise _nonsense("a hash was expected")
    return value.lower()


def _data(value: Any) -> bytes:
    if not isinstance(value, str) or _DATA.fullmatch(value) is None:
        raise _nonsense("bytes were expected")
    return bytes.fromhex(value[2:])


def _revert_data(refused: RpcRefusedError) -> bytes:
    """What the contract returned; nodes give it as it is, or in an object."""
    data = refused.data.get("data") if isinstance(refused.data, dict) else refused.data
    return bytes.fromhex(data[2:]) if isinstance(data, str) and _DATA.fullmatch(data) else b""


def _revert_text(raw: bytes) -> str:
    """The reason string, where what was returned is the standard error."""
    if raw[:4] != _ERROR_STRING:
        return ""
    try:
        text = decode_bytes(raw[4:])[:_TEXT_LIMIT].decode(errors="replace")
    except AbiError:
        return ""
    return "".join(c for c in text if c.isprintable())


def _nonsense(what: str) -> ChainUnavailableError:
    return ChainUnavailableError(f"the RPC's reply cannot be understood: {what}")
