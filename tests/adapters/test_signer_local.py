import copy
import stat
from pathlib import Path

import pytest
from eth_account import Account
from hypothesis import given
from hypothesis import strategies as st

from obol.adapters.signer_local import LocalSigner
from obol.errors import SettingsError
from obol.x402.eip712 import recover
from obol.x402.signer import Signer

KEY = bytes.fromhex("0b" * 32)
SECP256K1_N = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def key_file(folder: Path, content: str, mode: int = 0o600) -> Path:
    path = folder / "buyer.key"
    path.write_text(content)
    path.chmod(mode)
    return path


def test_a_local_signer_is_a_signer_with_the_address_of_its_key() -> None:
    signer: Signer = LocalSigner(KEY)
    assert Account.from_key(KEY).address == signer.address


@given(st.binary(min_size=32, max_size=32))
def test_signatures_are_65_bytes_low_s_and_v_27_or_28(digest: bytes) -> None:
    signature = LocalSigner(KEY).sign_digest(digest)
    assert len(signature) == 65
    assert signature[64] in (27, 28)
    assert int.from_bytes(signature[32:64], "big") <= SECP256K1_N // 2
    assert LocalSigner(KEY).address.lower() == recover(digest, signature)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_only_32_byte_digests_are_signed(length: int) -> None:
    with pytest.raises(ValueError, match="32"):
        LocalSigner(KEY).sign_digest(bytes(length))


@pytest.mark.parametrize(
    "key", [b"", b"\x0b" * 31, b"\x0b" * 33, bytes(32), SECP256K1_N.to_bytes(32, "big"), b"\xff" * 32]
)
def test_what_is_not_a_key_is_refused_without_showing_it(key: bytes) -> None:
    with pytest.raises(ValueError, match="private key") as caught:
        LocalSigner(key)
    assert not key or key.hex() not in str(caught.value)


def test_repr_masks_the_key() -> None:
    signer = LocalSigner(KEY)
    assert signer.address in repr(signer)
    assert KEY.hex() not in repr(signer) + str(signer) + f"{[signer]}"


def test_generated_keys_differ() -> None:
    assert LocalSigner.generate().address != LocalSigner.generate().address


@pytest.mark.parametrize("content", [KEY.hex(), KEY.hex() + "\n", "0x" + KEY.hex(), "0X" + KEY.hex().upper() + "\n"])
def test_a_key_file_is_read(tmp_path: Path, content: str) -> None:
    assert LocalSigner(KEY).address == LocalSigner.from_key_file(key_file(tmp_path, content)).address


@pytest.mark.parametrize(
    "content",
    [
        "",
        "\n",
        "0x",
        KEY.hex()[:-1],
        KEY.hex() + "0",
        KEY.hex() + "\n\n",
        " " + KEY.hex(),
        "zz" * 32,
        "00" * 32,
        KEY.hex() * 100,
    ],
)
def test_a_file_that_holds_no_key_is_refused_without_showing_it(tmp_path: Path, content: str) -> None:
    with pytest.raises(SettingsError, match="private key") as caught:
        LocalSigner.from_key_file(key_file(tmp_path, content))
    assert caught.value.field == "--key-file"
    assert KEY.hex()[:20] not in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610, 0o644, 0o666, 0o777])
def test_a_key_file_that_others_can_use_is_refused_with_the_command_to_run(tmp_path: Path, mode: int) -> None:
    path = key_file(tmp_path, KEY.hex(), mode)
    with pytest.raises(SettingsError, match="--key-file") as caught:
        LocalSigner.from_key_file(path)
    assert f"chmod 600 {path}" in str(caught.value)


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_key_file_of_its_owner_alone_is_read(tmp_path: Path, mode: int) -> None:
    assert LocalSigner(KEY).address == LocalSigner.from_key_file(key_file(tmp_path, KEY.hex(), mode)).address


def test_the_command_to_run_is_safe_to_paste(tmp_path: Path) -> None:
    folder = tmp_path / "my keys; rm"
    folder.mkdir()
    with pytest.raises(SettingsError) as caught:
        LocalSigner.from_key_file(key_file(folder, KEY.hex(), 0o644))
    assert f"chmod 600 '{folder}/buyer.key'" in str(caught.value)


def test_a_missing_key_file_or_a_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(SettingsError, match="--key-file"):
            LocalSigner.from_key_file(path)


def test_a_written_key_file_is_private_and_read_back(tmp_path: Path) -> None:
    signer, path = LocalSigner.generate(), tmp_path / "new.key"
    signer.write_key_file(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert signer.address == LocalSigner.from_key_file(path).address


def test_an_existing_key_file_is_never_overwritten(tmp_path: Path) -> None:
    path = key_file(tmp_path, KEY.hex())
    with pytest.raises(SettingsError, match="exists already"):
        LocalSigner.generate().write_key_file(path)
    assert KEY.hex() == path.read_text()


def test_a_key_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SettingsError, match="exists already"):
        LocalSigner.generate().write_key_file(tmp_path / "link")
    assert not (tmp_path / "elsewhere").exists()


def test_a_key_file_in_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be written"):
        LocalSigner.generate().write_key_file(tmp_path / "none" / "new.key")


def test_a_copy_signs_the_same() -> None:
    signer = LocalSigner(KEY)
    assert signer.sign_digest(KEY) == copy.copy(signer).sign_digest(KEY)
