"""The settlement header: what `PAYMENT-RESPONSE` and `X-PAYMENT-RESPONSE` carry."""

import msgspec

from obol.x402.headers import encode_header
from obol.x402.models import SettleResponse


def settle_header(response: SettleResponse) -> str:
    """The header value of a settlement. What is unknown is left out: older clients reject null."""
    fields: dict[str, object] = msgspec.to_builtins(response)
    return encode_header({name: value for name, value in fields.items() if value is not None})
