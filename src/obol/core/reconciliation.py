"""Reconciliation: the sales of one asset against the transfers that a chain shows; every atomic unit is accounted for.

A transfer explains at most one sale, and a sale takes at most one transfer.

An EIP-3009 payment is known by its authorization, whose nonce the chain shows beside the transfer: nothing is guessed.
Permit2 logs no nonce, so there a transfer is known by the transaction that the sale names, else by payer, amount and
time.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from obol.core.payment import PAID, State
from obol.core.reconciliation_report import NOTHING_KNOWN, Finding, Kind, KnownTransfers, Report, TransferKey
from obol.core.sale import Sale
from obol.core.totals import amount_of
from obol.core.transfer import Transfer

K = TypeVar("K", bound=Hashable)

CLOCK_SKEW_S = 60
"""By how much a chain's clock and a gateway's may differ."""
_PERMIT2 = "permit2"
_UNRESOLVED = (State.SETTLING, State.SETTLE_UNKNOWN, State.SETTLE_FAILED)
"""States that a transfer can prove wrong or out of date; the likeliest explanation first."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """What is kept of a sale."""

    id: str
    state: State
    transaction: str
    log_index: int | None
    nonce: str
    """Of its EIP-3009 authorization; "" where it is paid by another method."""
    payer: str
    pay_to: str
    amount_atomic: int
    created_s: float
    valid_before_s: int
    is_due: bool
    is_in_scope: bool

    @property
    def is_paid(self) -> bool:
        return self.state in PAID


class Reconciler:
    """Take the transfers to the sellers of one asset, oldest first; `add` the asset's sales; then `report`, once.

    `due_before_s`: until when the chain was read; what was recorded later is not due. `since_s`: sales claimed earlier
    may explain a transfer, and are not missed without one. Unix seconds. The transfers must be read before the sales:
    then every transfer's sale is there.
    """

    def __init__(
        self,
        transfers: Sequence[Transfer],
        *,
        due_before_s: float,
        since_s: float | None = None,
        known: KnownTransfers = NOTHING_KNOWN,
    ) -> None:
        self._left = {_key(one): one for one in transfers}
        self._by_nonce = {(one.payer, one.nonce): _key(one) for one in transfers if one.nonce}
        self._due_before_s = due_before_s
        self._since_s = since_s
        self._known = known
        self._shown: dict[TransferKey, _Entry] = {}
        """Sales that do not say paid, by the transfer that their own authorization made."""
        self._paid: list[_Entry] = []
        self._unresolved: list[_Entry] = []
        self._report = Report()

    def add(self, sale: Sale) -> None:
        """A sale of this asset, to one of the addresses that the transfers went to."""
        entry = self._entry(sale)
        own = self._left.get(self._by_nonce.get((entry.payer, entry.nonce), ("", 0)))
        if own is not None:
            self._add_shown(entry, own)
        elif entry.is_paid:
            self._add_paid(entry)
        elif entry.state in _UNRESOLVED:
            self._unresolved.append(entry)

    def left(self) -> list[Transfer]:
        """The transfers that no sale is surely paid by, once all were added: `report` wants the times of these."""
        self._paid = self._match_by_transaction(Kind.MATCHED, _is_payment)
        return list(self._left.values())

    def report(self, dated: Sequence[Transfer] = ()) -> Report:
        """Match what is left, the surest first. `dated`: of what is `left`, with the times of their blocks."""
        self._left |= {_key(one): one for one in dated}
        for key, entry in self._shown.items():
            if key in self._left:
                self._take(Kind.UNRECORDED, entry, self._left[key])
        self._paid = self._match_by_transaction(Kind.MATCHED, _is_payment)
        self._paid = self._match_by_transaction(Kind.WRONG, _is_meant)
        self._paid = self._match_by_payment(Kind.WRONG, [entry for entry in self._paid if entry.is_due]) + [
            entry for entry in self._paid if not entry.is_due
        ]
        self._match_by_payment(Kind.UNRECORDED, sorted(self._unresolved, key=_likeliest))
        self._book_the_rest()
        return self._report

    def _book_the_rest(self) -> None:
        for entry in self._paid:
            if entry.is_in_scope:
                self._book(Kind.MISSING if entry.is_due else Kind.NOT_DUE, entry, None)
        for transfer in self._left.values():
            self._book(Kind.UNEXPLAINED, None, transfer)
        order = list(Kind)
        self._report.findings.sort(key=lambda finding: order.index(finding.kind))

    def _entry(self, sale: Sale) -> _Entry:
        return _Entry(
            id=sale.id,
            state=sale.state,
            transaction=sale.transaction.lower(),
            log_index=sale.log_index,
            nonce="" if is_by_permit2(sale) else sale.key.nonce,
            payer=sale.key.payer,
            pay_to=sale.pay_to.lower(),
            amount_atomic=amount_of(sale),
            created_s=sale.created_s,
            valid_before_s=sale.valid_before_s,
            is_due=sale.updated_s < self._due_before_s,
            is_in_scope=self._since_s is None or sale.created_s >= self._since_s,
        )

    def _add_shown(self, entry: _Entry, own: Transfer) -> None:
        """A sale whose authorization moved money. Of several with one authorization at most one is not released."""
        if entry.is_paid:
            self._take(Kind.MATCHED if _is_payment(own, entry) else Kind.WRONG, entry, own)
        elif entry.state is not State.RELEASED:
            self._shown[_key(own)] = entry
        else:
            self._shown.setdefault(_key(own), entry)

    def _add_paid(self, entry: _Entry) -> None:
        """By transaction and log index at once: nothing else may take that transfer."""
        named = None if entry.log_index is None else self._left.get((entry.transaction, entry.log_index))
        if named is not None and _is_payment(named, entry):
            self._take(Kind.MATCHED, entry, named)
        else:
            self._paid.append(entry)

    def _match_by_transaction(self, kind: Kind, fits: Callable[[Transfer, _Entry], bool]) -> list[_Entry]:
        """Of sales and transfers that are alike any two may be put together: they are interchangeable.

        A log index that did not fit is not held against a sale: it changes when the chain is reorganised. Returns the
        paid sales that are left.
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
        return unmatched

    def _match_by_payment(self, kind: Kind, entries: Sequence[_Entry]) -> list[_Entry]:
        """By payer, amount and time, where no nonce says it: first what a sale has heard of, whoever else is like it.

        Returns the sales that are left.
        """
        left = (one for key, one in self._left.items() if not self._known.has(*key))
        by_payment = _grouped(left, lambda one: (one.payer, one.pay_to.lower(), one.amount_atomic))
        for is_named in (True, False):
            unmatched = []
            for entry in entries:
                alike = by_payment[(entry.payer, entry.pay_to, entry.amount_atomic)]
                found = next((one for one in alike if _may_be(one, entry, is_named=is_named)), None)
                if found is None:
                    unmatched.append(entry)
                    continue
                alike.remove(found)
                self._take(kind, entry, found)
            entries = unmatched
        return list(entries)

    def _take(self, kind: Kind, entry: _Entry, transfer: Transfer) -> None:
        del self._left[_key(transfer)]
        self._book(kind, entry, transfer)

    def _book(self, kind: Kind, entry: _Entry | None, transfer: Transfer | None) -> None:
        finding = Finding(kind)
        is_due = True
        if entry is not None:
            is_due = entry.is_due
            finding = replace(
                finding,
                sale=entry.id,
                state=entry.state.value,
                transaction=entry.transaction,
                log_index=entry.log_index,
                payer=entry.payer,
                recorded_atomic=entry.amount_atomic if entry.is_paid else None,
            )
        if transfer is not None:
            finding = replace(
                finding,
                transaction=transfer.transaction,
                log_index=transfer.log_index,
                block=transfer.block or None,
                time_s=transfer.time_s,
                payer=transfer.payer,
                transferred_atomic=transfer.amount_atomic,
            )
        if entry is not None and transfer is not None:
            finding = replace(finding, is_recordable=kind is Kind.UNRECORDED and _is_surely_paid(transfer, entry))
        self._report.add(self._judged(finding, is_due=is_due))

    def _judged(self, finding: Finding, *, is_due: bool) -> Finding:
        if finding.kind in (Kind.MATCHED, Kind.NOT_DUE):
            return replace(finding, is_alarm=False)
        if self._known.has(finding.transaction.lower(), finding.log_index):
            return replace(finding, kind=Kind.KNOWN, is_alarm=False, is_recordable=False)
        is_alarm = finding.kind is not Kind.UNRECORDED or is_due
        return replace(finding, is_alarm=is_alarm, is_recordable=finding.is_recordable and is_alarm)


def is_no_earlier(time_s: float | None, created_s: float) -> bool:
    """Whether a transfer is known to have been made since a sale was claimed, by clocks that may differ.

    An earlier one paid for something else, by which its authorization is used up.
    """
    return time_s is not None and time_s >= created_s - CLOCK_SKEW_S


def _key(transfer: Transfer) -> TransferKey:
    return transfer.transaction.lower(), transfer.log_index


def is_by_permit2(sale: Sale) -> bool:
    """By the requirements that it was matched to. Where they do not say or cannot be read: by EIP-3009, as x402 has
    it, for which nothing is guessed.
    """
    try:
        extra = json.loads(sale.requirements).get("extra")
    except (ValueError, AttributeError):
        return False
    return isinstance(extra, dict) and extra.get("assetTransferMethod") == _PERMIT2


def _is_made_by(transfer: Transfer, entry: _Entry) -> bool:
    """Whether the authorization of the sale can have made it. Both are "" where there is no EIP-3009 authorization."""
    return transfer.nonce is None or transfer.nonce == entry.nonce


def _is_payment(transfer: Transfer, entry: _Entry) -> bool:
    return _is_made_by(transfer, entry) and (transfer.payer, transfer.pay_to.lower(), transfer.amount_atomic) == (
        entry.payer,
        entry.pay_to,
        entry.amount_atomic,
    )


def _is_surely_paid(transfer: Transfer, entry: _Entry) -> bool:
    """Whether a transfer is a refused sale's own payment, by the nonce that the chain shows."""
    return (
        entry.state is State.SETTLE_FAILED
        and transfer.nonce == entry.nonce != ""
        and _is_payment(transfer, entry)
        and is_no_earlier(transfer.time_s, entry.created_s)
    )


def _is_meant(transfer: Transfer, entry: _Entry) -> bool:
    """Not the payment that was recorded, but the one that it must be about."""
    return transfer.payer == entry.payer or transfer.log_index == entry.log_index


def _may_be(transfer: Transfer, entry: _Entry, *, is_named: bool) -> bool:
    """A transfer of the sale's payer and amount: made while the authorization could be used, or named by the sale."""
    if not _is_made_by(transfer, entry):
        return False
    if is_named:
        return transfer.transaction.lower() == entry.transaction
    earliest_s = entry.created_s - CLOCK_SKEW_S
    return transfer.time_s is None or earliest_s <= transfer.time_s <= entry.valid_before_s


def _likeliest(entry: _Entry) -> tuple[int, float]:
    return _UNRESOLVED.index(entry.state), entry.created_s


def _grouped(transfers: Iterable[Transfer], key: Callable[[Transfer], K]) -> defaultdict[K, list[Transfer]]:
    groups: defaultdict[K, list[Transfer]] = defaultdict(list)
    for transfer in transfers:
        groups[key(transfer)].append(transfer)
    return groups
