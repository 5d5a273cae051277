"""Every exception that obol raises on purpose, as one tree.

Outcomes of asking someone are values (see the ports); an exception here means "could not find out", "cannot be
understood" or "a bug of ours". A class exists only because someone catches it or because it has an answer of its own.

    ObolError                          reason: stable snake_case code
    ├─ SettingsError                   bad settings at start: names the field                      CLI 2
    ├─ WireError
    │  ├─ MalformedPaymentError        the buyer's payment header does not parse                   400
    │  ├─ MalformedRequestError        the inference request does not parse                        400
    │  └─ PeerProtocolError            facilitator or upstream broke its protocol                  502
    ├─ FacilitatorUnavailableError     nobody could check the payment                              503
    ├─ UpstreamError
    │  ├─ UpstreamUnavailableError     no model answers; nothing is owed                           503
    │  ├─ UpstreamTimeoutError         it did not answer in time; nothing is owed                  504
    │  └─ UpstreamBrokenError          it died in the middle of an answer                          502
    ├─ ChainUnavailableError           no RPC endpoint could be asked about the chain           CLI 3
    ├─ LedgerUnavailableError          the ledger cannot be read or written; nothing is sold       503
    ├─ SaleTakenError                  another attempt, or gateway, holds the sale now             503
    ├─ IllegalTransitionError          a payment was moved against the table: our bug              500
    ├─ BudgetExceededError             (buyer) we will not pay this much                           CLI 6
    ├─ PaymentRefusedError             (buyer) the seller refused what we paid with                CLI 7
    └─ UnpayableError                  (buyer) the seller asks for what we cannot sign             CLI 7
"""


class ObolError(Exception):
    """Base of the tree. `reason` is a stable snake_case code; the text is for people and holds no secrets."""

    reason = "internal"

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        if reason is not None:
            self.reason = reason


class SettingsError(ObolError):
    """A setting is wrong. `field` is the flag or key as the person wrote it; the message says what is allowed."""

    reason = "invalid_settings"

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class WireError(ObolError):
    """Bytes from outside are not what the protocol says."""

    reason = "malformed"


class MalformedPaymentError(WireError):
    """The payment header is not base64, not JSON, or not a payment payload."""

    reason = "malformed_payment"


class MalformedRequestError(WireError):
    """The inference request cannot be read. `param` names the JSON field where there is one."""

    reason = "malformed_request"

    def __init__(self, message: str, *, param: str | None = None, reason: str | None = None) -> None:
        super().__init__(message, reason=reason)
        self.param = param


class PeerProtocolError(WireError):
    """A facilitator or an upstream answered something that its protocol does not allow."""

    reason = "peer_protocol"


class FacilitatorUnavailableError(ObolError):
    """The facilitator could not be asked, so nobody knows whether the payment is good."""

    reason = "facilitator_unavailable"


class ChainUnavailableError(ObolError):
    """No RPC endpoint answered, or none in a way that can be believed: what is on the chain is not known."""

    reason = "chain_unavailable"


class UpstreamError(ObolError):
    """The model server did not give an answer."""

    reason = "upstream_error"


class UpstreamUnavailableError(UpstreamError):
    """No connection to the model server."""

    reason = "upstream_unavailable"


class UpstreamTimeoutError(UpstreamError):
    """The model server took longer than the configured wait."""

    reason = "upstream_timeout"


class UpstreamBrokenError(UpstreamError):
    """The model server's answer ended before it was complete."""

    reason = "upstream_broken"


class LedgerUnavailableError(ObolError):
    """The ledger could not be read or written; what was asked may or may not have been recorded."""

    reason = "ledger_unavailable"


class SaleTakenError(ObolError):
    """Another attempt holds the sale now, or another gateway that took it for a dead one's: what this one wanted to
    record was not."""

    reason = "sale_taken"


class IllegalTransitionError(ObolError):
    """The payment table has no such step."""

    reason = "illegal_transition"


class BudgetExceededError(ObolError):
    """The quote is above what the buyer allows."""

    reason = "budget_exceeded"


class PaymentRefusedError(ObolError):
    """The seller answered 402 or 409 to a request that carried a payment."""

    reason = "payment_refused"


class UnpayableError(ObolError):
    """None of the requirements that the seller offers can be met by this buyer."""

    reason = "unpayable"
