"""What can be done with an EIP-3009 nonce, as call data for the token: signed by eth-account, encoded by eth-abi."""

from typing import Any

from eth_abi.abi import encode
from eth_account.signers.local import LocalAccount

from obol.x402.eip712 import keccak
from obol.x402.models import ExactAuthorization, PaymentPayload
from tests.evm.anvil import USDC

_DOMAIN = {
    "name": USDC.eip712_name,
    "version": USDC.eip712_version,
    "chainId": USDC.network.chain_id,
    "verifyingContract": USDC.address,
}
_WINDOW = ["address", "address", "uint256", "uint256", "uint256", "bytes32"]
_RECEIVE = {
    "ReceiveWithAuthorization": [
        {"name": "from", "type": "address"},
        {"name": "to", "type": "address"},
        {"name": "value", "type": "uint256"},
        {"name": "validAfter", "type": "uint256"},
        {"name": "validBefore", "type": "uint256"},
        {"name": "nonce", "type": "bytes32"},
    ]
}
_CANCEL = {
    "CancelAuthorization": [{"name": "authorizer", "type": "address"}, {"name": "nonce", "type": "bytes32"}],
}


def transfer_call(paid: PaymentPayload) -> bytes:
    """`transferWithAuthorization`, as anybody can send it."""
    values = _values(paid)
    return _call("transferWithAuthorization", [*_WINDOW, "bytes"], [*values, _signature(paid)])


def receive_call(wallet: LocalAccount, paid: PaymentPayload, to: str) -> bytes:
    """The same nonce signed once more, for `receiveWithAuthorization` by somebody else."""
    values = [wallet.address, to, *_values(paid)[2:]]
    message = dict(zip(["from", "to", "value", "validAfter", "validBefore", "nonce"], values, strict=True))
    signed = wallet.sign_typed_data(_DOMAIN, _RECEIVE, message)
    return _call("receiveWithAuthorization", [*_WINDOW, "bytes"], [*values, bytes(signed.signature)])


def cancel_call(wallet: LocalAccount, nonce_hex: str) -> bytes:
    """`cancelAuthorization`."""
    nonce = bytes.fromhex(nonce_hex[2:])
    signed = wallet.sign_typed_data(_DOMAIN, _CANCEL, {"authorizer": wallet.address, "nonce": nonce})
    values = [wallet.address, nonce, bytes(signed.signature)]
    return _call("cancelAuthorization", ["address", "bytes32", "bytes"], values)


def _values(paid: PaymentPayload) -> list[Any]:
    wire = paid.payload.signed
    assert isinstance(wire, ExactAuthorization)
    window = [int(wire.value), int(wire.valid_after), int(wire.valid_before)]
    return [wire.from_, wire.to, *window, bytes.fromhex(wire.nonce[2:])]


def _signature(paid: PaymentPayload) -> bytes:
    return bytes.fromhex(paid.payload.signature[2:])


def _call(name: str, kinds: list[str], values: list[Any]) -> bytes:
    return keccak(f"{name}({','.join(kinds)})".encode())[:4] + encode(kinds, values)
