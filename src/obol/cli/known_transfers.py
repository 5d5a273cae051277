"""The file of `obol reconcile --known`: transactions that the seller has looked into, one a line."""

import re
from pathlib import Path

from obol.core.reconciliation_report import KnownTransfers, TransferKey
from obol.errors import SettingsError

FIELD = "--known"
_LINE = re.compile(r"(0x[0-9a-f]{64})(?::([0-9]{1,9}))?", re.ASCII)


def read_known(path: Path) -> KnownTransfers:
    """Lines of TRANSACTION, which stands for all of its transfers, or TRANSACTION:LOGINDEX; `#` begins a comment.

    Raises `SettingsError` naming `--known`, and the line that cannot be understood.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(FIELD, f"{path} cannot be read as text") from error
    transactions: set[str] = set()
    transfers: set[TransferKey] = set()
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip().lower()
        if not text:
            continue
        found = _LINE.fullmatch(text)
        if found is None:
            raise SettingsError(FIELD, f"line {number} of {path} is not TRANSACTION or TRANSACTION:LOGINDEX")
        if found[2] is None:
            transactions.add(found[1])
        else:
            transfers.add((found[1], int(found[2])))
    return KnownTransfers(transactions, transfers)
