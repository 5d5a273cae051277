"""A buyer's budget: the most that one request and all requests together may cost, kept exactly under concurrency.

Pure and synchronous: `reserve` before signing, then `debit` when money moved (or may have), or `release` when it
certainly did not. Spent plus reserved never exceeds the total.
"""

from dataclasses import dataclass, field

from obol.errors import BudgetExceededError


@dataclass(slots=True)
class Budget:
    """Limits and holds in atomic units of one asset; None is no limit."""

    max_per_request_atomic: int | None
    total_atomic: int | None
    spent_atomic: int = 0
    reserved_atomic: int = field(default=0)

    def reserve(self, amount_atomic: int) -> None:
        """Hold an amount. Raises `BudgetExceededError`, holding nothing, when a limit would be passed.

        Raises `ValueError` for a negative amount: a bug of the caller.
        """
        if amount_atomic < 0:
            raise ValueError("a negative amount is a bug of the caller")
        if self.max_per_request_atomic is not None and amount_atomic > self.max_per_request_atomic:
            raise BudgetExceededError(
                f"the quote is {amount_atomic} atomic units, the limit per request is {self.max_per_request_atomic}"
            )
        committed = self.spent_atomic + self.reserved_atomic
        if self.total_atomic is not None and committed + amount_atomic > self.total_atomic:
            left = self.total_atomic - committed
            raise BudgetExceededError(f"the quote is {amount_atomic} atomic units, {left} are left of the budget")
        self.reserved_atomic += amount_atomic

    def debit(self, amount_atomic: int) -> None:
        """Turn a hold into spending."""
        self.release(amount_atomic)
        self.spent_atomic += amount_atomic

    def release(self, amount_atomic: int) -> None:
        """Give a hold back. Raises `ValueError` for more than is held: a bug of the caller."""
        if not 0 <= amount_atomic <= self.reserved_atomic:
            raise ValueError("more released than reserved")
        self.reserved_atomic -= amount_atomic
