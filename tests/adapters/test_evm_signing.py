"""Signing transactions: by a key file, a keystore file, and a signer elsewhere that may give something else."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import rlp
from eth_account import Account

from obol.adapters.evm_signing import LocalTransactionSigner, RemoteTransactionSigner, TransactionFields
from obol.errors import ChainUnavailableError, SettingsError
from tests.adapters.payments import SELLER, account
from tests.evm.anvil import Anvil
from tests.fakes.rpc import Drops, Errors, FakeRpc, Says

WALLET = account(5)
FIELDS = TransactionFields(84532, 3, SELLER.lower(), b"\x01\x02", 50_000, 3 * 10**9, 10**9)


def private(path: Path, content: str) -> Path:
    path.write_text(content)
    path.chmod(0o600)
    return path


def keystore(path: Path, password: str) -> Path:
    return private(path, json.dumps(Account.encrypt(WALLET.key, password, kdf="pbkdf2", iterations=10)))


async def test_a_key_signs_what_anybody_can_check() -> None:
    signed = await LocalTransactionSigner(bytes(WALLET.key)).sign(FIELDS)
    assert Account.recover_transaction(signed.raw) == WALLET.address


async def test_a_key_file_and_a_keystore_file_hold_the_same_key(tmp_path: Path) -> None:
    by_file = LocalTransactionSigner.from_key_file(private(tmp_path / "key", WALLET.key.hex()))
    by_store = LocalTransactionSigner.from_keystore(keystore(tmp_path / "store.json", "secret"), "secret")
    assert by_file.address == by_store.address == WALLET.address
    assert await by_file.sign(FIELDS) == await by_store.sign(FIELDS)


def test_a_wrong_password_is_named_as_that(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--keystore: .* the password is wrong"):
        LocalTransactionSigner.from_keystore(keystore(tmp_path / "store.json", "secret"), "other")


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", '{"version": 3}', '{"version": 9, "crypto": {}}', "hello"])
def test_what_is_no_keystore_is_named_as_that(tmp_path: Path, content: str) -> None:
    with pytest.raises(SettingsError, match=r"--keystore: .* not a keystore file"):
        LocalTransactionSigner.from_keystore(private(tmp_path / "store.json", content), "secret")


def test_a_keystore_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = keystore(tmp_path / "store.json", "secret")
    path.chmod(0o644)
    with pytest.raises(SettingsError, match=r"--keystore: .*chmod 600"):
        LocalTransactionSigner.from_keystore(path, "secret")


def test_a_key_is_not_shown() -> None:
    assert WALLET.key.hex() not in repr(LocalTransactionSigner(bytes(WALLET.key)))


class TestSignerElsewhere:
    """anvil signs for its own accounts by `eth_signTransaction`."""

    @pytest.fixture
    async def fake(self, anvil: Anvil) -> AsyncIterator[FakeRpc]:
        async with FakeRpc(anvil.url) as fake:
            yield fake

    @pytest.fixture
    async def signer(self, fake: FakeRpc, anvil: Anvil) -> AsyncIterator[RemoteTransactionSigner]:
        address = (await anvil.rpc("eth_accounts"))[0]
        signer = RemoteTransactionSigner(fake.url, address)
        yield signer
        await signer.close()

    async def test_it_signs_what_was_asked_for(self, signer: RemoteTransactionSigner) -> None:
        signed = await signer.sign(FIELDS)
        assert Account.recover_transaction(signed.raw) == signer.address

    async def test_the_form_of_other_signers_is_understood(
        self, signer: RemoteTransactionSigner, fake: FakeRpc
    ) -> None:
        fake.behaviours = {"eth_signTransaction": Says(lambda raw: {"raw": raw, "tx": {}})}
        assert (await signer.sign(FIELDS)).raw

    @pytest.mark.parametrize("answer", [None, "0x", "0x02", "0xzz", 5, {"raw": None}, {"tx": {}}, "0x02c0"])
    async def test_nonsense_is_not_broadcast(self, signer: RemoteTransactionSigner, fake: FakeRpc, answer: Any) -> None:
        fake.behaviours = {"eth_signTransaction": Says(lambda _: answer)}
        with pytest.raises(ChainUnavailableError):
            await signer.sign(FIELDS)

    @pytest.mark.parametrize(
        ("v", "r", "s"),
        [(b"", b"", b""), (b"", b"\xff" * 32, b"\xff" * 32), (b"\x05", b"\x01", b"\x01"), (b"\x01", b"\x01", b"\x01")],
    )
    async def test_a_signature_that_is_none_is_not_broadcast(
        self, signer: RemoteTransactionSigner, fake: FakeRpc, v: bytes, r: bytes, s: bytes
    ) -> None:
        signed = await LocalTransactionSigner(bytes(WALLET.key)).sign(FIELDS)
        raw = b"\x02" + rlp.encode([*rlp.decode(signed.raw[1:])[:-3], v, r, s])
        fake.behaviours = {"eth_signTransaction": Says(lambda _: "0x" + raw.hex())}
        with pytest.raises(ChainUnavailableError):
            await signer.sign(FIELDS)

    @pytest.mark.parametrize(
        "other",
        [
            replace(FIELDS, nonce=4),
            replace(FIELDS, to="0x" + "66" * 20),
            replace(FIELDS, data=b"\x01"),
            replace(FIELDS, max_fee_wei=10**12),
            replace(FIELDS, gas_limit=60_000),
        ],
    )
    async def test_another_transaction_is_not_broadcast(
        self, signer: RemoteTransactionSigner, fake: FakeRpc, anvil: Anvil, other: TransactionFields
    ) -> None:
        own = RemoteTransactionSigner(anvil.url, signer.address)
        elsewhere = await own.sign(other)
        await own.close()
        raw = "0x" + elsewhere.raw.hex()
        fake.behaviours = {"eth_signTransaction": Says(lambda _: raw)}
        with pytest.raises(ChainUnavailableError, match="something else"):
            await signer.sign(FIELDS)

    async def test_anothers_signature_is_not_broadcast(self, signer: RemoteTransactionSigner, fake: FakeRpc) -> None:
        elsewhere = await LocalTransactionSigner(bytes(WALLET.key)).sign(FIELDS)
        fake.behaviours = {"eth_signTransaction": Says(lambda _: "0x" + elsewhere.raw.hex())}
        with pytest.raises(ChainUnavailableError, match="something else"):
            await signer.sign(FIELDS)

    @pytest.mark.parametrize("behaviour", [Drops(), Errors(-32000, "denied by policy")])
    async def test_a_signer_that_does_not_sign_is_unavailable(
        self, signer: RemoteTransactionSigner, fake: FakeRpc, behaviour: Drops | Errors
    ) -> None:
        fake.behaviours = {"eth_signTransaction": behaviour}
        with pytest.raises(ChainUnavailableError):
            await signer.sign(FIELDS)

    async def test_its_address_must_be_one(self, fake: FakeRpc) -> None:
        with pytest.raises(SettingsError, match="--signer-address"):
            RemoteTransactionSigner(fake.url, "0x12")
