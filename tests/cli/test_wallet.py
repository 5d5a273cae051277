import json
from pathlib import Path

from obol.adapters.signer_local import LocalSigner
from obol.cli.exit_codes import ExitCode
from tests.cli.conftest import Run


def test_a_new_key_is_private_and_only_its_address_is_shown(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "key"

    result = run("wallet", "new", "--key-file", str(path))

    assert json.loads(result.stdout) == {"address": LocalSigner.from_key_file(path).address, "key_file": str(path)}
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text().strip() not in result.output


def test_a_key_that_exists_is_never_overwritten(run: Run, key_file: Path) -> None:
    before = key_file.read_bytes()

    result = run("wallet", "new", "--key-file", str(key_file))

    assert (result.exit_code, key_file.read_bytes()) == (ExitCode.USAGE, before)
    assert "exists" in result.stderr


def test_the_address_of_a_key_is_shown(run: Run, key_file: Path) -> None:
    result = run("wallet", "address", "--key-file", str(key_file))

    assert json.loads(result.stdout) == {"address": LocalSigner.from_key_file(key_file).address}


def test_a_file_without_a_key_is_refused(run: Run, tmp_path: Path) -> None:
    result = run("wallet", "address", "--key-file", str(tmp_path / "none"))

    assert result.exit_code == ExitCode.USAGE
    assert "--key-file" in result.stderr
