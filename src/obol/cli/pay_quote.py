"""The quote of `obol pay --dry-run`: what a request would cost, in words and as a record."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from obol.cli.output import one_line

if TYPE_CHECKING:
    import httpx2

    from obol.core.networks import Catalogue

_MAX_WORDS = 500


def quote_record(response: "httpx2.Response", catalogue: "Catalogue", max_price: str) -> dict[str, Any]:
    """What a 402 asks for, of the ways to pay the one that we would take.

    Raises `PeerProtocolError` for a 402 that is not x402, `UnpayableError` when there is nothing we can sign.
    """
    from obol.core.money import format_amount, parse_amount
    from obol.errors import BudgetExceededError, UnpayableError
    from obol.x402.client import BuyerPolicy, choose, find_asset, read_challenge

    required = read_challenge(response.status_code, response.headers, response.content)
    try:
        requirements = choose(required, catalogue, BuyerPolicy(max_price=max_price))
    except BudgetExceededError:  # a quote is no purchase: show it, and that it is above the limit
        requirements = choose(required, catalogue)
    asset = find_asset(requirements, catalogue)
    if asset is None:
        raise UnpayableError(f"asset {requirements.asset!r} is not known")
    amount_atomic = int(requirements.amount)
    return {
        "resource": required.resource.url or str(response.request.url),
        "description": required.resource.description,
        "amount": format_amount(amount_atomic, asset.decimals),
        "amount_atomic": requirements.amount,
        "asset": asset.symbol,
        "asset_address": asset.address,
        "network": asset.network.name,
        "caip2": asset.network.caip2,
        "pay_to": requirements.pay_to,
        "valid_s": requirements.max_timeout_seconds,
        "x402_version": required.x402_version,
        "max_price": max_price,
        "is_within_limit": amount_atomic <= parse_amount(max_price, asset.decimals, field="--max-price"),
    }


def quote_words(record: Mapping[str, Any]) -> str:
    """The quote for a person."""
    limit = "within" if record["is_within_limit"] else "ABOVE"
    lines = [
        f"The seller asks for {record['amount']} {record['asset']} for one request to {one_line(record['resource'])}.",
        f"  what:     {one_line(record['description']) or 'not described'}",
        f"  asset:    {record['asset']} ({record['asset_address']})",
        f"  network:  {record['network']} ({record['caip2']})",
        f"  paid to:  {record['pay_to']}",
        f"  valid:    a payment would be good for {record['valid_s']} s",
        f"  limit:    {limit} --max-price {record['max_price']}",
        "Nothing was signed or paid.",
    ]
    return "\n".join(lines)


def free_words(status_code: int) -> str:
    """What to say when there is no quote."""
    return f"the seller asks for no payment: it answered {status_code}. Nothing was paid."


def refused_words(response: "httpx2.Response") -> str:
    """What to say of a refusal: with the seller's own words, where its body has the shape of OpenAI's errors."""
    text = f"no quote: the seller answered {response.status_code}"
    try:
        said = json.loads(response.content)["error"]["message"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return text
    return f"{text}: {one_line(said)[:_MAX_WORDS]}" if isinstance(said, str) else text
