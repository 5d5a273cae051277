"""The options that choose sales, and how their words are read."""

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from obol.core.payment import State
from obol.errors import SettingsError

if TYPE_CHECKING:
    from obol.core.ledger import SaleFilter

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION = re.compile(r"([0-9]{1,9})([smhdw])", re.ASCII)
_RECORDED = [s.value for s in State if s not in (State.REQUIRED, State.PRESENTED, State.VERIFIED, State.REJECTED)]
_OPTIONS = (
    click.option("--since", metavar="WHEN", help="Claimed at or after: an ISO date or time (UTC), or an age like 7d."),
    click.option("--until", metavar="WHEN", help="Claimed before: the same."),
    click.option("--offer", metavar="NAME", help="Of this offer."),
    click.option("--payer", metavar="0x…", help="Paid by this address."),
    click.option("--network", metavar="NAME", help="On this network: name or CAIP-2 id."),
    click.option("--asset", metavar="usdc|0x…", help="Paid in this token; a symbol needs --network."),
    click.option("--state", "states", multiple=True, type=click.Choice(_RECORDED), help="In this state (repeatable)."),
)


def filter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of `sale_filter`, as keyword arguments of their names."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def sale_filter(  # noqa: PLR0913 - the options
    *,
    now_s: float,
    since: str | None,
    until: str | None,
    offer: str | None,
    payer: str | None,
    network: str | None,
    asset: str | None,
    states: Sequence[str],
) -> "SaleFilter":
    """Raises `SettingsError` naming the option that cannot be understood."""
    from obol.core.ledger import SaleFilter

    return SaleFilter(
        since_s=None if since is None else parse_when(since, now_s, field="--since"),
        until_s=None if until is None else parse_when(until, now_s, field="--until"),
        offer=offer,
        payer=None if payer is None else address(payer, "--payer"),
        network=None if network is None else caip2(network),
        asset=None if asset is None else asset_address(asset, network),
        states=frozenset(map(State, states)) or None,
    )


def parse_when(text: str, now_s: float, *, field: str) -> float:
    """Unix seconds of an ISO date or time, UTC unless it says otherwise, or of an age such as 7d, 12h, 30m."""
    age = _DURATION.fullmatch(text)
    if age is not None:
        return now_s - int(age[1]) * _SECONDS[age[2]]
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        example = "2026-01-31, 2026-01-31T12:00, or an age such as 7d, 12h, 30m"
        raise SettingsError(field, f"{text!r} is no time: write {example}") from None


def caip2(network: str) -> str:
    """The CAIP-2 id of a network's name; an id that is not known stays as it is."""
    from obol.core.networks import DEFAULT_CATALOGUE

    known = DEFAULT_CATALOGUE.find_network(network)
    if known is not None:
        return known.caip2
    if re.fullmatch(r"eip155:[0-9]{1,20}", network, re.ASCII):
        return network
    return DEFAULT_CATALOGUE.network(network, field="--network").caip2


def asset_address(asset: str, network: str | None) -> str:
    """The lower-case contract address of a token, given as one or as a symbol on a network."""
    from obol.core.networks import DEFAULT_CATALOGUE, canonical_address

    contract = canonical_address(asset)
    if contract is not None:
        return contract
    if network is None:
        raise SettingsError("--asset", f"{asset!r} is on more than one network: add --network, or give the address")
    there = DEFAULT_CATALOGUE.network(network, field="--network")
    return DEFAULT_CATALOGUE.asset(there, asset, field="--asset").address.lower()


def address(text: str, field: str) -> str:
    """The lower-case form of an address. Raises `SettingsError` naming `field`."""
    from obol.core.networks import canonical_address

    canonical = canonical_address(text)
    if canonical is None:
        raise SettingsError(field, f"{text!r} is not an address: 0x and 40 hex digits")
    return canonical
