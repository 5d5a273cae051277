"""What a reconciliation says: one finding for each sale and transfer, and their sums, which always add up:

chain total  = matched + unrecorded + wrong (as transferred) + known (as transferred) + unexplained
ledger total = matched + wrong (as recorded) + missing + known (as recorded) + not due
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum

TransferKey = tuple[str, int]
"""Transaction in lower case, and log index."""


class Kind(StrEnum):
    """What is said of one sale, one transfer, or the two together."""

    MATCHED = "matched"
    UNRECORDED = "unrecorded"
    """The chain shows the sale's payment; the sale does not say paid."""
    WRONG = "wrong"
    """The sale says paid, and its payment is another than it says: amount, payer, address or transaction."""
    MISSING = "missing"
    """The sale says paid, and the chain does not show it: money that we think we have."""
    UNEXPLAINED = "unexplained"
    """No sale explains the transfer."""
    KNOWN = "known"
    """Any of the four above, whose transaction the seller has looked into."""
    NOT_DUE = "not_due"
    """The sale says paid, later than the chain was read."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the account. Whatever is not there is ""; numbers are None where there is no such side."""

    kind: Kind
    sale: str = ""
    state: str = ""
    transaction: str = ""
    log_index: int | None = None
    block: int | None = None
    time_s: float | None = None
    """Of the block, in Unix seconds."""
    payer: str = ""
    recorded_atomic: int | None = None
    transferred_atomic: int | None = None
    is_alarm: bool = True
    is_recordable: bool = False
    """Surely the payment of that sale, which was refused: its own authorization moved its whole amount to its address,
    and no earlier than it was claimed."""


@dataclass(slots=True)
class Report:
    """`findings` are all but those that match, in the order of `Kind`."""

    findings: list[Finding] = field(default_factory=list)
    counts: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(Kind, 0))
    recorded_atomic: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(Kind, 0))
    transferred_atomic: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(Kind, 0))
    newly_recorded: list[Finding] = field(default_factory=list)
    """What was written into the ledger because the chain shows it; each as it is recorded now."""

    @property
    def ledger_atomic(self) -> int:
        """What the sales say was paid."""
        return sum(self.recorded_atomic.values())

    @property
    def chain_atomic(self) -> int:
        """What the transfers moved."""
        return sum(self.transferred_atomic.values())

    @property
    def is_explained(self) -> bool:
        """True when there is nothing to look into."""
        return not any(finding.is_alarm for finding in self.findings)

    def add(self, finding: Finding) -> None:
        self.counts[finding.kind] += 1
        self.recorded_atomic[finding.kind] += finding.recorded_atomic or 0
        self.transferred_atomic[finding.kind] += finding.transferred_atomic or 0
        if finding.kind is not Kind.MATCHED:
            self.findings.append(finding)


@dataclass(frozen=True, slots=True)
class KnownTransfers:
    """What the seller has looked into: whole transactions, and single transfers of others. Hashes in lower case."""

    transactions: Collection[str] = frozenset()
    transfers: Collection[TransferKey] = frozenset()

    def has(self, transaction: str, log_index: int | None) -> bool:
        return transaction in self.transactions or (transaction, log_index) in self.transfers


NOTHING_KNOWN = KnownTransfers()
