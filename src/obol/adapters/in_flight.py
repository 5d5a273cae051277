"""What each payer has under way, so that it cannot have more sent than its money covers: what does not is gas burnt.

A simulation sees the chain as it is, not what is about to be mined. So the first payment of a payer goes ahead, and
further ones only as far as its balance covers all of them; others wait until some have ended.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from obol.core.clock import Clock

BALANCE_AGE_S = 2.0
"""A balance that was read counts for so long: a payer who moves its money meanwhile spends its failure budget."""
_LOOK_AGAIN_S = 0.5
_REMEMBERED = 10_000
"""Payers; beyond it those with nothing under way are forgotten."""


@dataclass(frozen=True, slots=True)
class Account:
    """Who can be asked: for the payer's balance, in atomic units, and whether a payment that was sent has ended."""

    balance: Callable[[], Awaitable[int]]
    has_ended: Callable[[str], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Claim:
    """One payment: `account` names payer and token, `key` the payment. It is under way until `until_s` (Unix seconds)
    at the latest. `is_alone`: nothing else of the account may be under way with it."""

    account: str
    key: str
    amount_atomic: int
    until_s: float
    is_alone: bool = False


class InFlight:
    """In memory: after a restart everybody's first payment goes ahead again."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._accounts: dict[str, _Held] = {}

    async def enter(self, claim: Claim, account: Account, *, wait_s: float) -> bool:
        """Wait until the account's money covers this as well; False when it does not in `wait_s`.

        Raises what `account` raises.
        """
        self._forget()
        held = self._accounts.setdefault(claim.account, _Held(self._clock))
        try:
            async with asyncio.timeout(wait_s):
                while not await held.enter(claim, account):
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_LOOK_AGAIN_S):
                            await held.changed.wait()
        except TimeoutError:
            return False
        return True

    def is_sent(self, account: str, key: str) -> None:
        """Nobody here will say when it has ended: from now on, ask."""
        held = self._accounts.get(account)
        if held is not None and key in held.claims:
            held.sent.add(key)

    def leave(self, account: str, key: str, *, is_paid: bool) -> None:
        """It has ended. Nothing happens where it was not under way."""
        held = self._accounts.get(account)
        if held is not None:
            held.leave(key, is_paid=is_paid)

    def _forget(self) -> None:
        if len(self._accounts) > _REMEMBERED:
            self._accounts = {name: account for name, account in self._accounts.items() if account.is_busy}


@dataclass(slots=True)
class _Held:
    """What one account has under way."""

    clock: Clock
    claims: dict[str, Claim] = field(default_factory=dict)
    sent: set[str] = field(default_factory=set)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Replaced by a new one when it is set."""
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _room_atomic: int = 0
    """What the balance covered beyond `claims` when it was read, and what came free since."""
    _read_s: float = float("-inf")

    @property
    def is_busy(self) -> bool:
        return bool(self.claims) or self._lock.locked()

    async def enter(self, claim: Claim, account: Account) -> bool:
        async with self._lock:
            if not await self._has_room(claim, account):
                return False
            self._room_atomic -= claim.amount_atomic
            self.claims[claim.key] = claim
            return True

    def leave(self, key: str, *, is_paid: bool) -> None:
        claim = self.claims.pop(key, None)
        self.sent.discard(key)
        if claim is not None and not is_paid:
            self._room_atomic += claim.amount_atomic
        self.changed.set()
        self.changed = asyncio.Event()

    async def _has_room(self, claim: Claim, account: Account) -> bool:
        now_s = self.clock.now_s()
        self.claims = {key: other for key, other in self.claims.items() if other.until_s > now_s and key != claim.key}
        if self._fits(claim):
            return True
        for key in [key for key in self.sent if key not in self.claims or await account.has_ended(key)]:
            self.leave(key, is_paid=False)
        if self.claims and not self._is_kept_apart(claim):
            balance_atomic = await account.balance()
            self._read_s = self.clock.monotonic_s()
            self._room_atomic = balance_atomic - sum(other.amount_atomic for other in self.claims.values())
        return self._fits(claim)

    def _fits(self, claim: Claim) -> bool:
        """By what is known now."""
        if not self.claims:
            self._read_s = float("-inf")
            return True
        is_fresh = self.clock.monotonic_s() - self._read_s < BALANCE_AGE_S
        return not self._is_kept_apart(claim) and is_fresh and self._room_atomic >= claim.amount_atomic

    def _is_kept_apart(self, claim: Claim) -> bool:
        return claim.is_alone or any(other.is_alone for other in self.claims.values())
