"""Exit codes of the `obol` command, and the one table from our errors to them."""

from enum import IntEnum

from obol import errors
from obol.errors import ObolError


class ExitCode(IntEnum):
    """What the exit status of every command means."""

    OK = 0
    BUG = 1
    USAGE = 2
    """Wrong arguments or settings; nothing was done."""
    CONNECTION = 3
    """Something that is needed could not be reached, or the connection broke."""
    REFUSED = 4
    """The other side answered, and the answer is no or makes no sense; `reconcile`: the chain says otherwise."""
    NOT_FOUND = 5
    BUDGET = 6
    """The quote is above what the buyer allows; nothing was signed."""
    PAYMENT = 7
    """The seller refused the payment, or asks for one that cannot be made."""
    UNSOUND = 8
    """The ledger contradicts itself, or its file is damaged."""
    INTERRUPTED = 130
    """Ctrl-C, as shells count it: 128 + SIGINT."""
    BROKEN_PIPE = 141
    """Whoever read our output left: 128 + SIGPIPE."""


EXIT_CODES: dict[type[ObolError], ExitCode] = {
    errors.SettingsError: ExitCode.USAGE,
    errors.MalformedPaymentError: ExitCode.REFUSED,
    errors.MalformedRequestError: ExitCode.USAGE,
    errors.PeerProtocolError: ExitCode.REFUSED,
    errors.FacilitatorUnavailableError: ExitCode.CONNECTION,
    errors.UpstreamUnavailableError: ExitCode.CONNECTION,
    errors.UpstreamTimeoutError: ExitCode.CONNECTION,
    errors.UpstreamBrokenError: ExitCode.CONNECTION,
    errors.ChainUnavailableError: ExitCode.CONNECTION,
    errors.LedgerUnavailableError: ExitCode.CONNECTION,
    errors.SaleTakenError: ExitCode.BUG,
    errors.IllegalTransitionError: ExitCode.BUG,
    errors.BudgetExceededError: ExitCode.BUDGET,
    errors.PaymentRefusedError: ExitCode.PAYMENT,
    errors.UnpayableError: ExitCode.PAYMENT,
}
"""Every leaf of the error tree; a test holds it complete."""


def exit_code(error: ObolError) -> ExitCode:
    """The exit code of an error, by the nearest class that the table names."""
    for kind in type(error).__mro__:
        if kind in EXIT_CODES:
            return EXIT_CODES[kind]
    return ExitCode.BUG
