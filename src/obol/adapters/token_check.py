"""Whether a token on a chain signs under the EIP-712 domain that we advertise: a wrong name is the commonest fault."""

from obol.adapters.chain_evm import EvmChain, TokenDomain
from obol.core.networks import Asset
from obol.errors import SettingsError
from obol.x402.eip712 import domain_separator


async def is_token_there(chain: EvmChain, asset: Asset, *, field: str) -> bool:
    """False when there is no contract at the asset's address.

    Raises `SettingsError` naming `field`, with both domains, when the token's is another; `ChainUnavailableError`.
    """
    theirs = await chain.token_domain(asset.address)
    if theirs is None:
        return False
    ours = TokenDomain(
        asset.eip712_name,
        asset.eip712_version,
        domain_separator(asset.eip712_name, asset.eip712_version, asset.network.chain_id, asset.address),
    )
    if theirs.separator != ours.separator:
        raise SettingsError(
            field,
            f"{asset.symbol} at {asset.address} on {asset.network.name} signs as {_shown(theirs)}; "
            f"advertised is {_shown(ours)}",
        )
    return True


def _shown(domain: TokenDomain) -> str:
    separator = f"0x{domain.separator.hex()}" if domain.separator else "none"
    return f"{domain.name!r} version {domain.version!r} (DOMAIN_SEPARATOR {separator})"
