"""Who settles for a gateway: from its config to one Facilitator port, and whether that can settle what is offered."""

from obol.adapters.chain_devnet import DevnetChain
from obol.adapters.facilitator_devnet import DevnetFacilitator
from obol.adapters.facilitator_http import HttpFacilitator
from obol.adapters.paths import devnet_file, user_data_dir
from obol.core.clock import Clock
from obol.core.networks import Network
from obol.core.offer import Offer
from obol.errors import FacilitatorUnavailableError, PeerProtocolError, SettingsError
from obol.gateway.settings import GatewayConfig
from obol.x402.exact import build_requirements
from obol.x402.facilitator import Facilitator


async def open_facilitator(config: GatewayConfig, network: Network, *, clock: Clock) -> Facilitator:
    """The embedded devnet with its play money, or the facilitator of the config."""
    if not config.devnet:
        return HttpFacilitator(
            config.facilitator_url, verify_timeout_s=config.verify_timeout_s, settle_timeout_s=config.settle_timeout_s
        )
    file = devnet_file(config.data_dir or user_data_dir())
    chain = await DevnetChain.open(file, clock, networks=(network,), catalogue=config.catalogue)
    return DevnetFacilitator(chain)


async def check_supported(facilitator: Facilitator, offer: Offer, warnings: list[str]) -> None:
    """Refuse (`SettingsError`) to sell what the facilitator says it cannot settle; warn when it cannot be asked now."""
    try:
        supported = await facilitator.supported()
    except (FacilitatorUnavailableError, PeerProtocolError) as error:
        warnings.append(
            f"the facilitator cannot be asked now ({error.reason}): until it can, payments are answered with "
            "502 or 503 and stay unused"
        )
        return
    wanted = build_requirements(offer)
    if not any(
        kind.scheme == wanted.scheme and kind.x402_version == 2 and kind.network in (wanted.network, "eip155:*")
        for kind in supported.kinds
    ):
        raise SettingsError(
            "--facilitator", f"does not settle {wanted.scheme} on {offer.asset.network.name} ({wanted.network})"
        )
