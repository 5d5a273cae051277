"""The batcher contract: where it is, how it gets there, how it is called, and what it says became of the calls.

Its address follows from its code, so it is the same on every network, whoever deploys it: by the deterministic
deployment factory, which is on all of them, with salt zero (EIP-1014). The source is `contracts/Batcher.sol`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files

import msgspec

from obol.adapters.chain_evm import Log
from obol.adapters.evm_abi import call_data, decode_uint, topic
from obol.core.networks import canonical_address
from obol.x402.eip712 import checksum_address, keccak

FACTORY = "0x4e59b44847b379578588920cA78FbF26c0B4956C"
MAX_CALLS = 256
"""One bit each."""
_RUN = "run((address,bytes,uint256)[])"
_RAN = topic("Ran(uint256)")
_SALT = bytes(32)
_BASE_GAS = 40_000
_GAS_PER_BYTE = 40
"""What a byte of call data costs at most."""
_GAS_PER_CALL = 20_000
"""Twice what the contract keeps back for itself at each call."""
_BYTES_PER_CALL = 192
"""Offset, target, gas limit, where its data is, how long that is, and what fills its last word."""


@dataclass(frozen=True, slots=True)
class BatchedCall:
    """`gas_limit`: what this call may use; what it does not use is not paid."""

    target: str
    data: bytes = field(repr=False)
    gas_limit: int


@dataclass(frozen=True, slots=True)
class Batcher:
    """The contract. `deployment` is what to send to the factory where there is no code at `address` yet."""

    address: str
    deployment: bytes = field(repr=False)
    runtime: bytes = field(repr=False)


class _Compiled(msgspec.Struct):
    creation: str
    runtime: str


def load_batcher() -> Batcher:
    """Read it from the package's data. The address is in EIP-55 spelling."""
    content = files("obol.adapters.contracts").joinpath("Batcher.json").read_bytes()
    compiled = msgspec.json.decode(content, type=_Compiled)
    creation = _unhex(compiled.creation)
    place = keccak(b"\xff" + _unhex(FACTORY) + _SALT + keccak(creation))[-20:]
    return Batcher(checksum_address("0x" + place.hex()), _SALT + creation, _unhex(compiled.runtime))


def run_data(calls: Sequence[BatchedCall]) -> bytes:
    """The call data that runs them. Raises `ValueError` for more than `MAX_CALLS`."""
    if len(calls) > MAX_CALLS:
        raise ValueError(f"at most {MAX_CALLS} calls")
    return call_data(_RUN, [(call.target, call.data, call.gas_limit) for call in calls])


def run_gas_limit(calls: Sequence[BatchedCall], data: bytes) -> int:
    """Enough gas for a transaction with this call data, whatever the calls do: with less the contract may refuse."""
    # A call is given at most 63/64 of what is left: its gas limit is there only if a bit more is.
    inside = sum(call.gas_limit + call.gas_limit // 63 + _GAS_PER_CALL for call in calls)
    return _BASE_GAS + _GAS_PER_BYTE * len(data) + inside


def batch_share(call: BatchedCall) -> tuple[int, int]:
    """What a call adds to the transaction that runs it with others: gas, and bytes of call data."""
    size_bytes = _BYTES_PER_CALL + len(call.data)
    return call.gas_limit + call.gas_limit // 63 + _GAS_PER_CALL + _GAS_PER_BYTE * size_bytes, size_bytes


def read_outcomes(logs: Iterable[Log], address: str, count: int) -> tuple[bool, ...] | None:
    """Which of `count` calls succeeded, by the logs of a transaction that called the batcher at `address` once.

    None when the logs do not say: then nothing was run, or not there.
    """
    ours = canonical_address(address)
    said = [log.data for log in logs if canonical_address(log.address) == ours and log.topics == (_RAN,)]
    if len(said) != 1:
        return None
    succeeded = decode_uint(said[0])
    return tuple(bool(succeeded >> place & 1) for place in range(count))


def _unhex(text: str) -> bytes:
    return bytes.fromhex(text[2:])
