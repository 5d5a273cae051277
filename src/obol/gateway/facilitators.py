"""Who settles for a gateway: from its config to one Facilitator port, checked against what is offered."""

from contextlib import AsyncExitStack
from typing import Any

import structlog

from obol.adapters.chain_devnet import DevnetChain
from obol.adapters.chain_evm import EvmChain
from obol.adapters.facilitator_devnet import DevnetFacilitator
from obol.adapters.facilitator_http import HttpFacilitator
from obol.adapters.facilitator_ring import FacilitatorRing
from obol.adapters.facilitator_witnessed import CONFIRMED_WITHIN_S, WitnessedFacilitator
from obol.adapters.paths import devnet_file, user_data_dir
from obol.adapters.rpc_http import JsonRpc
from obol.adapters.token_check import is_token_there
from obol.adapters.witness_evm import EvmWitness
from obol.core.clock import Clock
from obol.core.networks import TransferMethod
from obol.core.offer import Offer
from obol.errors import ChainUnavailableError, FacilitatorUnavailableError, PeerProtocolError, SettingsError
from obol.gateway.settings import GatewayConfig
from obol.x402.exact import build_requirements
from obol.x402.facilitator import Facilitator
from obol.x402.gas_sponsoring import GAS_SPONSORING, declare_gas_sponsoring

RPC = "--rpc"


async def open_facilitator(
    config: GatewayConfig,
    offer: Offer,
    *,
    clock: Clock,
    log: structlog.typing.FilteringBoundLogger,
    warnings: list[str],
) -> Facilitator:
    """The devnet, or the facilitators of the config in their order, witnessed by the chain where there is an RPC.

    Who cannot be asked now is added to `warnings`. Raises `SettingsError` for a facilitator that does not settle what
    is offered, and for an RPC of another chain or a token of another domain.
    """
    if config.devnet:
        file = devnet_file(config.data_dir or user_data_dir())
        networks = (offer.asset.network,)
        return DevnetFacilitator(await DevnetChain.open(file, clock, networks=networks, catalogue=config.catalogue))
    urls = (config.facilitator_url, *config.fallback_facilitator_urls)
    members = [
        HttpFacilitator(url, verify_timeout_s=config.verify_timeout_s, settle_timeout_s=config.settle_timeout_s)
        for url in urls
    ]
    async with AsyncExitStack() as undo:
        ring = FacilitatorRing(members, clock)
        undo.push_async_callback(ring.close)
        if offer.payment_gate:
            for member in members:
                await _check_supported(member, offer, warnings)
        witness = await _open_witness(config, offer, warnings, log) if config.rpc_urls else None
        undo.pop_all()
    return ring if witness is None else WitnessedFacilitator(ring, witness, log)


async def challenge_extensions(facilitator: Facilitator, offer: Offer) -> dict[str, Any]:
    """What a challenge declares beside the payment: for Permit2, that the facilitator hands in a buyer's permit."""
    if not offer.payment_gate or offer.asset.transfer_method is not TransferMethod.PERMIT2:
        return {}
    try:
        supported = await facilitator.supported()
    except (FacilitatorUnavailableError, PeerProtocolError):  # who cannot be asked now was told of at the start
        return {}
    return declare_gas_sponsoring() if GAS_SPONSORING in supported.extensions else {}


async def _open_witness(
    config: GatewayConfig, offer: Offer, warnings: list[str], log: structlog.typing.FilteringBoundLogger
) -> EvmWitness:
    async with AsyncExitStack() as undo:
        chain = EvmChain(JsonRpc(config.rpc_urls, log=log), offer.asset.network, confirmations=config.confirmations)
        undo.push_async_callback(chain.close)
        try:
            await chain.check(field=RPC)
            if not await is_token_there(chain, offer.asset, field=RPC):
                asset = offer.asset
                raise SettingsError(RPC, f"{asset.network.name} has no {asset.symbol} at {asset.address} there")
        except ChainUnavailableError as error:
            warnings.append(f"the chain cannot be asked now ({error}): until it can, facilitators are believed")
        if config.confirmations * offer.asset.network.block_time_s > CONFIRMED_WITHIN_S:
            warnings.append(
                f"{config.confirmations} confirmations take longer on {offer.asset.network.name} than the "
                f"{CONFIRMED_WITHIN_S:.0f} s that a buyer is kept waiting: answers that wait for the money are owed"
            )
        undo.pop_all()
    return EvmWitness(chain)


async def _check_supported(facilitator: HttpFacilitator, offer: Offer, warnings: list[str]) -> None:
    """Refuse (`SettingsError`) to sell what the facilitator says it cannot settle; warn when it cannot be asked now."""
    try:
        supported = await facilitator.supported()
    except (FacilitatorUnavailableError, PeerProtocolError) as error:
        warnings.append(
            f"the facilitator {facilitator.url} cannot be asked now ({error.reason}): until one can, payments are "
            "answered with 502 or 503 and stay unused"
        )
        return
    wanted = build_requirements(offer)
    if not any(
        kind.scheme == wanted.scheme and kind.x402_version == 2 and kind.network in (wanted.network, "eip155:*")
        for kind in supported.kinds
    ):
        raise SettingsError(
            "--facilitator",
            f"{facilitator.url} does not settle {wanted.scheme} on {offer.asset.network.name} ({wanted.network})",
        )
