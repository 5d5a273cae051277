"""Which nonce call data names."""

import secrets

import msgspec

from obol.adapters.chain_evm import Log, SentTransaction
from obol.adapters.permit2_calls import is_of_another_nonce, settled_by
from obol.adapters.signer_local import LocalSigner
from obol.x402.authorization import parse_authorization
from obol.x402.client import sign_exact
from obol.x402.models import PaymentPayload
from obol.x402.permit2 import EXACT_PROXY
from tests.adapters.payments import account, requirements
from tests.evm.anvil import USDC
from tests.evm.contracts import OBOL, settle_call

BUYER = LocalSigner(bytes([1] * 32))
WANTED = requirements(10**18, OBOL, extra={"assetTransferMethod": "permit2"})
SENT, OTHER = "0x" + "ab" * 32, "0x" + "cd" * 32


def pay(signer: LocalSigner = BUYER) -> PaymentPayload:
    return sign_exact(signer, WANTED, OBOL, now_s=1_800_000_000, nonce=secrets.token_bytes(32), version=2)


def data_of(paid: PaymentPayload) -> bytes:
    return settle_call(msgspec.to_builtins(paid.payload))


def transfers(count: int = 1, transaction: str = SENT) -> list[Log]:
    return [Log(OBOL.address.lower(), (), b"", 7, transaction, index) for index in range(count)]


def found(paid: PaymentPayload, to: str, data: bytes, *, moves: int = 1) -> int | None:
    sent = {SENT: SentTransaction(to, data), OTHER: SentTransaction("", b"")}
    logs = [*transfers(transaction=OTHER), *transfers(moves)]
    log = settled_by(logs, sent, parse_authorization(paid.payload), WANTED)
    return None if log is None else log.log_index


def test_a_call_of_the_proxy_names_its_payment() -> None:
    paid, other = pay(), pay()
    assert found(paid, EXACT_PROXY, data_of(paid)) == 0
    assert found(other, EXACT_PROXY, data_of(paid)) is None
    assert found(other, EXACT_PROXY, data_of(paid) + data_of(other)) is None
    assert found(paid, EXACT_PROXY, b"") is None


def test_a_call_of_somebody_else_names_payments_wherever_they_are_in_it() -> None:
    first, second, third = pay(), pay(), pay()
    data = b"xyz" + data_of(first) + b"\n" + data_of(second)
    assert [found(one, "0x" + "bb" * 20, data, moves=2) for one in (first, second, third)] == [0, 1, None]
    assert [found(first, "0x" + "bb" * 20, data, moves=moves) for moves in (1, 3)] == [None, None]


def test_naming_a_payment_twice_makes_it_no_other() -> None:
    paid = pay()
    assert found(paid, "", data_of(paid) * 2) == 0
    assert found(paid, "", data_of(paid) * 2, moves=2) is None


def test_only_the_proxy_itself_says_that_a_transfer_is_another_nonces() -> None:
    paid, other, stranger = pay(), pay(), pay(LocalSigner(account(5).key))
    authorization = parse_authorization(paid.payload)

    def is_other(to: str, of: PaymentPayload) -> bool:
        return is_of_another_nonce(SentTransaction(to, data_of(of)), authorization, WANTED)

    assert is_other(EXACT_PROXY, other)
    assert not is_other("0x" + "bb" * 20, other)
    assert not is_other(EXACT_PROXY, paid)
    assert not is_other(EXACT_PROXY, stranger)
    other_token = msgspec.structs.replace(WANTED, asset=USDC.address)
    assert not is_of_another_nonce(SentTransaction(EXACT_PROXY, data_of(other)), authorization, other_token)
    assert not is_of_another_nonce(SentTransaction(EXACT_PROXY, b""), authorization, WANTED)
