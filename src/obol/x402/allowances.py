"""The allowances port: what a token says of a payer, which decides whether a payment by Permit2 needs a permit."""

from typing import Protocol

from obol.core.networks import Asset


class Allowances(Protocol):
    """Reads the chain that an asset is on, as it is now. Repeatable; never changes anything.

    Methods raise `ChainUnavailableError` for "not known". `payer` is an address in any letter case.
    """

    async def permit2_allowance(self, asset: Asset, payer: str) -> int:
        """Atomic units that the payer lets Permit2 move."""
        ...

    async def permit_nonce(self, asset: Asset, payer: str) -> int | None:
        """The nonce of the payer's next EIP-2612 permit; None where the token takes no permits."""
        ...
