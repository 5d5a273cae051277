"""Reconciliation: the sales of one asset against the transfers that a chain shows; every atomic unit is accounted for.

A transfer explains at most one sale, and a sale takes at most one transfer. The sums always add up:

    chain total  = matched + unrecorded + wrong (as transferred) + unexplained
    ledger total = matched + wrong (as recorded) + missing + not due
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

from obol.core.payment import PAID, State
from obol.core.sale import Sale
from obol.core.totals import amount_of
from obol.core.transfer import Transfer

K = TypeVar("K", bound=Hashable)

_UNRECORDED = (State.SETTLING, State.SETTLE_UNKNOWN, State.SETTLE_FAILED)
"""States that a transfer can prove wrong or out of date; the likeliest explanation first."""


class Kind(StrEnum):
    """What is said of one sale, one transfer, or the two together."""

    MATCHED = "matched"
    UNRECORDED = "unrecorded"
    """The chain shows a payment by that payer of that amount; the sale does not say paid."""
    WRONG = "wrong"
    """The sale's transaction moved another amount, or another payer's."""
    MISSING = "missing"
    """The sale says paid, and the chain does not show it: money that we think we have."""
    UNEXPLAINED = "unexplained"
    """No sale explains the transfer."""
    NOT_DUE = "not_due"
    """The sale says paid, later than the chain was read."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the account. Whatever is not there is ""; amounts None where there is no such side."""

    kind: Kind
    sale: str = ""
    state: str = ""
    transaction: str = ""
    log_index: int | None = None
    payer: str = ""
    recorded_atomic: int | None = None
    transferred_atomic: int | None = None
    is_alarm: bool = True


@dataclass(slots=True)
class Report:
    """`findings` are all but those that match, in the order of `Kind`."""

    findings: list[Finding] = field(default_factory=list)
    counts: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(Kind, 0))
    recorded_atomic: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(Kind, 0))
    transferred_atomic: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(Kind, 0))

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
class _Entry:
    """What is kept of a sale."""

    id: str
    state: State
    transaction: str
    log_index: int | None
    payer: str
    pay_to: str
    amount_atomic: int
    is_due: bool
    is_in_scope: bool


class Reconciler:
    """Take the transfers to the sellers of one asset, oldest first; `add` the asset's sales; then `report`, once.

    `due_before_s`: until when the chain was read; what was recorded later is not due. `since_s`: sales claimed earlier
    may explain a transfer, and are not missed without one. Unix seconds. The transfers must be read before the sales:
    then every transfer's sale is there.
    """

    def __init__(self, transfers: Sequence[Transfer], *, due_before_s: float, since_s: float | None = None) -> None:
        self._left = {(one.transaction.lower(), one.log_index): one for one in transfers}
        self._due_before_s = due_before_s
        self._since_s = since_s
        self._paid: list[_Entry] = []
        self._unresolved: list[_Entry] = []
        self._report = Report()

    def add(self, sale: Sale) -> None:
        """A sale of this asset, to one of the addresses that the transfers went to."""
        if sale.state in PAID:
            self._add_paid(self._entry(sale))
        elif sale.state in _UNRECORDED:
            self._unresolved.append(self._entry(sale))

    def report(self) -> Report:
        """Match what is left, the surest first."""
        self._match_by_transaction(Kind.MATCHED, _is_payment)
        self._match_by_transaction(Kind.WRONG, _is_meant)
        for entry in self._paid:
            if entry.is_in_scope:
                self._book(Kind.MISSING if entry.is_due else Kind.NOT_DUE, entry, None)
        self._match_unrecorded()
        for transfer in self._left.values():
            self._book(Kind.UNEXPLAINED, None, transfer)
        order = list(Kind)
        self._report.findings.sort(key=lambda finding: order.index(finding.kind))
        return self._report

    def _entry(self, sale: Sale) -> _Entry:
        return _Entry(
            id=sale.id,
            state=sale.state,
            transaction=sale.transaction.lower(),
            log_index=sale.log_index,
            payer=sale.key.payer,
            pay_to=sale.pay_to.lower(),
            amount_atomic=amount_of(sale),
            is_due=sale.updated_s < self._due_before_s,
            is_in_scope=self._since_s is None or sale.created_s >= self._since_s,
        )

    def _add_paid(self, entry: _Entry) -> None:
        """By transaction and log index at once: nothing else may take that transfer."""
        named = None if entry.log_index is None else self._left.get((entry.transaction, entry.log_index))
        if named is not None and _is_payment(named, entry):
            self._take(Kind.MATCHED, entry, named)
        else:
            self._paid.append(entry)

    def _match_by_transaction(self, kind: Kind, fits: Callable[[Transfer, _Entry], bool]) -> None:
        """Of sales and transfers that are alike any two may be put together: they are interchangeable.

        A log index that did not fit is not held against a sale: it changes when the chain is reorganised.
        """
        there = _grouped(self._left.values(), lambda transfer: transfer.transaction.lower())
        unmatched = []
        for entry in self._paid:
            found = next((one for one in there[entry.transaction] if fits(one, entry)), None)
            if found is None:
                unmatched.append(entry)
                continue
            there[entry.transaction].remove(found)
            self._take(kind, entry, found)
        self._paid = unmatched

    def _match_unrecorded(self) -> None:
        """By the transaction that a sale may have heard of; else by payer and amount, whoever is likeliest first."""
        by_payment = _grouped(self._left.values(), lambda one: (one.payer, one.pay_to.lower(), one.amount_atomic))
        for entry in sorted(
            self._unresolved, key=lambda entry: (not entry.transaction, _UNRECORDED.index(entry.state))
        ):
            alike = by_payment[(entry.payer, entry.pay_to, entry.amount_atomic)]
            named = [one for one in alike if one.transaction.lower() == entry.transaction]
            found = next(iter(named if entry.transaction else alike), None)
            if found is not None:
                alike.remove(found)
                self._take(Kind.UNRECORDED, entry, found)

    def _take(self, kind: Kind, entry: _Entry, transfer: Transfer) -> None:
        del self._left[(transfer.transaction.lower(), transfer.log_index)]
        self._book(kind, entry, transfer)

    def _book(self, kind: Kind, entry: _Entry | None, transfer: Transfer | None) -> None:
        sale = entry or _NO_SALE
        self._report.add(
            Finding(
                kind=kind,
                sale=sale.id,
                state="" if entry is None else entry.state.value,
                transaction=sale.transaction if transfer is None else transfer.transaction,
                log_index=sale.log_index if transfer is None else transfer.log_index,
                payer=sale.payer if transfer is None else transfer.payer,
                recorded_atomic=None if entry is None or kind is Kind.UNRECORDED else entry.amount_atomic,
                transferred_atomic=None if transfer is None else transfer.amount_atomic,
                is_alarm=kind not in (Kind.MATCHED, Kind.NOT_DUE) and (kind is not Kind.UNRECORDED or sale.is_due),
            )
        )


_NO_SALE = _Entry("", State.REQUIRED, "", None, "", "", 0, is_due=True, is_in_scope=True)


def _is_payment(transfer: Transfer, entry: _Entry) -> bool:
    return (transfer.payer, transfer.pay_to.lower(), transfer.amount_atomic) == (
        entry.payer,
        entry.pay_to,
        entry.amount_atomic,
    )


def _is_meant(transfer: Transfer, entry: _Entry) -> bool:
    """Not the payment that was recorded, but the one that it must be about."""
    return transfer.payer == entry.payer or transfer.log_index == entry.log_index


def _grouped(transfers: Iterable[Transfer], key: Callable[[Transfer], K]) -> defaultdict[K, list[Transfer]]:
    groups: defaultdict[K, list[Transfer]] = defaultdict(list)
    for transfer in transfers:
        groups[key(transfer)].append(transfer)
    return groups
