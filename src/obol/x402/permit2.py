"""Permit2 as x402 uses it: the contracts, and what a buyer must have done once.

A payer signs that the x402 exact proxy, and nobody else, may have Permit2 move one amount of a token; the proxy passes
it to the recipient in the signed witness, and to nobody else. Permit2 can only move what the payer once approved for it
on the token itself. Both contracts have one address on every network. Source: x402 `exact` scheme on EVM, Permit2.
"""

from obol.core.networks import Asset

PERMIT2_ADDRESS = "0x000000000022D473030F116dDEE9F6B43aC78BA3"
EXACT_PROXY_ADDRESS = "0x402085c248EeA27D92E8b30b2C58ed07f9E20001"
"""The only spender that x402 `exact` payments name."""
EXACT_PROXY = EXACT_PROXY_ADDRESS.lower()


def allowance_advice(asset: Asset) -> str:
    """What a payer has to do, once, before an asset can be paid by Permit2."""
    return (
        f"{asset.symbol} is moved by Permit2, which the payer must have allowed once: on {asset.network.name}, call "
        f"approve({PERMIT2_ADDRESS}, amount) of {asset.address}"
    )
