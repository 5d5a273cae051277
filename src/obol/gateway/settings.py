"""GatewayConfig: everything a gateway is told at start, as a person writes it; `offer_of` turns it into an Offer."""

import ipaddress
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from obol.adapters.paths import ledger_file, user_data_dir
from obol.core.capacity import Capacity
from obol.core.money import parse_amount
from obol.core.networks import DEFAULT_CATALOGUE, Asset, Catalogue, TransferMethod, canonical_address
from obol.core.offer import OPENAI_APIS, Api, Model, Offer, RequestLimits, SettlementPolicy, Standing
from obol.errors import SettingsError
from obol.x402.eip712 import checksum_address
from obol.x402.exact import SETTLE_MARGIN_S

DEFAULT_PORT = 8402
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
"""Names of deployments, offers and `/services/<name>`: one rule, also for file names."""
STANDING_AFTER = 5
"""Settled sales that make a payer trusted, where `--max-unsettled` is given and `--standing-after` is not."""
DEFAULT_FACILITATOR_URL = "https://facilitator.x402.rs"


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """One offer on one host. Durations in seconds, sizes in bytes, the price a decimal string of the asset."""

    upstream_url: str
    """Base URL of the OpenAI-compatible server, for example `http://localhost:8000`."""
    pay_to: str = ""
    """Recipient address; required unless `no_payment_gate`."""
    price: str = "0.001"
    """Price of one request, a plain decimal."""
    name: str = "inference"
    """Name of the offer."""
    chain: str = "base-sepolia"
    """Network by name, alias or CAIP-2 id."""
    payment_asset: str = "usdc"
    """Asset by symbol or contract address."""
    models: tuple[str, ...] = ()
    """Models to sell: `NAME`, or `PUBLIC=SERVED` to sell under another name. Empty: all that the upstream lists."""
    apis: frozenset[Api] = OPENAI_APIS
    listen: str = f":{DEFAULT_PORT}"
    """`HOST:PORT`; an empty host is all interfaces, port 0 any free port."""
    admin_listen: str | None = None
    """Where `/status` and `/metrics` go instead of the public address."""
    public_url: str | None = None
    """Base URL that buyers use, when it is not the address they connect to."""
    facilitator_url: str = DEFAULT_FACILITATOR_URL
    fallback_facilitator_urls: tuple[str, ...] = ()
    """Asked in this order while the first cannot be."""
    rpc_urls: tuple[str, ...] = field(default=(), repr=False)
    """JSON-RPC endpoints of the network, in order: with one, a settlement is believed once the chain shows it. URLs may
    hold keys."""
    confirmations: int = 1
    """How many blocks deep a transfer must be to count as seen; 1: in the newest block."""
    devnet: bool = False
    """Settle on an embedded ledger of play money instead of asking a facilitator."""
    verify_timeout_s: float = 5.0
    settle_timeout_s: float = 60.0
    verify_only: bool = False
    """Verify payments and never settle them: for staging. Every receipt says so."""
    no_payment_gate: bool = False
    """Serve without payment: on loopback only, unless `force`."""
    force: bool = False
    settlement: SettlementPolicy = SettlementPolicy.ON_OUTPUT
    max_unsettled: str | None = None
    """How much a payer may owe at once, a plain decimal of the asset: up to it, answers do not wait for the money.
    Required by the policy `after`; otherwise None trusts nobody."""
    standing_after: int | None = None
    """Sales that a payer must have settled since the last refused one before it is trusted. None: 5, and 0 under
    `after`."""
    max_inflight: int | None = None
    per_buyer_max_inflight: int | None = None
    max_queue_depth: int = 0
    queue_timeout_s: float = 10.0
    gpu_count: int | None = None
    max_body_bytes: int = 10 * 1024 * 1024
    max_input_tokens: int | None = None
    max_output_tokens: int | None = None
    max_timeout_s: int = 300
    """How long clients are told to make an authorization valid (`maxTimeoutSeconds`)."""
    max_validity_s: int = 24 * 3600
    """An authorization valid for longer than this is refused."""
    upstream_authorization: str | None = field(default=None, repr=False)
    """Value of the `Authorization` header for the upstream: the seller's own credential."""
    upstream_connect_timeout_s: float = 5.0
    upstream_first_byte_timeout_s: float = 600.0
    """Generous: a cold server loads its model first."""
    upstream_idle_timeout_s: float = 120.0
    body_timeout_s: float = 30.0
    """For a buyer's whole request body."""
    reader_timeout_s: float = 120.0
    """A buyer who takes not one byte of an answer for this long is taken to be gone."""
    drain_timeout_s: float = 60.0
    """How long a stopping gateway waits for sales in flight."""
    data_dir: Path | None = None
    """Where the ledger lives; None is the XDG data folder of the user."""
    ledger_url: str | None = field(default=None, repr=False)
    """`postgresql://…`: a ledger that several gateways share, instead of a file. Holds a password."""
    description: str = ""
    catalogue: Catalogue = field(default=DEFAULT_CATALOGUE, repr=False)


def checked(config: GatewayConfig) -> GatewayConfig:
    """The config, or a `SettingsError` that names the first field that is wrong or contradicts another."""
    if _NAME.fullmatch(config.name) is None:
        raise SettingsError(
            "NAME", f"{config.name!r} is not a name: a letter or digit, then up to 62 of A-Z a-z 0-9 _ -"
        )
    _check_numbers(config)
    _check_url("--upstream", config.upstream_url)
    if config.public_url is not None:
        _check_url("--public-url", config.public_url)
    if config.admin_listen is not None:
        split_address(config.admin_listen, "--admin-listen")
    _check_settling(config)
    price_atomic = parse_amount(config.price, asset_of(config).decimals, field="--price")
    standing = _standing(config, asset_of(config))
    if standing is not None and standing.max_unsettled_atomic < price_atomic:
        raise SettingsError("--max-unsettled", "is below --price: no answer would ever be ahead of its money")
    if config.no_payment_gate:
        return _without_gate(config)
    split_address(config.listen, "--listen")
    if not config.pay_to:
        raise SettingsError("--pay-to", "missing: give the address that is paid, 0x and 40 hex digits")
    _recipient(config)
    return config


def asset_of(config: GatewayConfig) -> Asset:
    """The settlement asset. Raises `SettingsError` for an unknown pair, or one that cannot be settled."""
    asset = config.catalogue.asset(config.catalogue.network(config.chain), config.payment_asset)
    if config.devnet and asset.transfer_method is not TransferMethod.EIP3009:
        raise SettingsError(
            "--payment-asset",
            f"{asset.symbol} on {asset.network.name} moves by {asset.transfer_method}, which the devnet does not have: "
            "use usdc",
        )
    return asset


def offer_of(config: GatewayConfig, served_models: tuple[str, ...]) -> Offer:
    """The Offer that a checked config sells, given what the upstream serves. Raises `SettingsError`."""
    asset = asset_of(config)
    return Offer(
        name=config.name,
        upstream_url=config.upstream_url,
        models=_models(config.models, served_models),
        asset=asset,
        pay_to=_recipient(config),
        price_atomic=parse_amount(config.price, asset.decimals, field="--price"),
        apis=config.apis,
        limits=RequestLimits(config.max_body_bytes, config.max_input_tokens, config.max_output_tokens),
        capacity=_capacity(config),
        settlement=config.settlement,
        standing=_standing(config, asset),
        max_timeout_s=config.max_timeout_s,
        max_validity_s=config.max_validity_s,
        verify_only=config.verify_only,
        payment_gate=not config.no_payment_gate,
        description=config.description or f"LLM inference by {config.name}",
    )


def ledger_name(config: GatewayConfig) -> str:
    """Where the ledger is, for the seller; of a database only what it is, because its URL holds a password."""
    if config.ledger_url is not None:
        return "PostgreSQL"
    return str(ledger_file(config.data_dir or user_data_dir(), devnet=config.devnet))


def split_address(text: str, field: str) -> tuple[str | None, int]:
    """Host (None: all interfaces) and port of `HOST:PORT`. Raises `SettingsError` naming `field`."""
    host, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise SettingsError(field, f'{text!r} is not HOST:PORT, for example ":{DEFAULT_PORT}" or "127.0.0.1:0"')
    return host.strip("[]") or None, int(port)


def is_loopback(host: str | None) -> bool:
    """True when an address can be reached from this machine only. A name other than localhost is not believed."""
    if host is None:
        return False
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _without_gate(config: GatewayConfig) -> GatewayConfig:
    if config.listen == f":{DEFAULT_PORT}":
        config = replace(config, listen=f"127.0.0.1:{DEFAULT_PORT}")
    host, _ = split_address(config.listen, "--listen")
    if not is_loopback(host) and not config.force:
        raise SettingsError(
            "--no-payment-gate", f"would serve {config.listen} free of charge: listen on 127.0.0.1, or add --force"
        )
    if config.verify_only:
        raise SettingsError("--verify-only", "contradicts --no-payment-gate: without a gate nothing is verified")
    return config


def _check_numbers(config: GatewayConfig) -> None:
    at_least_one = {
        "--max-inflight": config.max_inflight,
        "--per-buyer-max-inflight": config.per_buyer_max_inflight,
        "--gpu-count": config.gpu_count,
        "--max-body-bytes": config.max_body_bytes,
        "--max-input-tokens": config.max_input_tokens,
        "--max-output-tokens": config.max_output_tokens,
        "--max-validity": config.max_validity_s,
        "--confirmations": config.confirmations,
    }
    for flag, value in at_least_one.items():
        if value is not None and value < 1:
            raise SettingsError(flag, f"{value} is not allowed: at least 1, or leave it out")
    above_zero = {
        "--verify-timeout": config.verify_timeout_s,
        "--settle-timeout": config.settle_timeout_s,
        "--queue-timeout": config.queue_timeout_s,
        "--upstream-connect-timeout": config.upstream_connect_timeout_s,
        "--upstream-first-byte-timeout": config.upstream_first_byte_timeout_s,
        "--upstream-idle-timeout": config.upstream_idle_timeout_s,
        "--drain-timeout": config.drain_timeout_s,
        "body_timeout_s": config.body_timeout_s,
        "reader_timeout_s": config.reader_timeout_s,
    }
    for flag, seconds in above_zero.items():
        if not seconds > 0:
            raise SettingsError(flag, f"{seconds} is not allowed: seconds, above 0")
    if config.max_queue_depth < 0:
        raise SettingsError("--max-queue-depth", f"{config.max_queue_depth} is not allowed: 0 or more")
    if config.max_queue_depth and config.max_inflight is None:
        raise SettingsError("--max-queue-depth", "means nothing without --max-inflight: nothing would ever queue")
    _check_validity(config)


def _check_settling(config: GatewayConfig) -> None:
    if config.devnet and config.rpc_urls:
        raise SettingsError("--rpc", "contradicts --devnet: play money is on no chain")
    if config.devnet and config.fallback_facilitator_urls:
        raise SettingsError("--facilitator", "contradicts --devnet, which settles by itself")
    if config.devnet and config.ledger_url is not None:
        raise SettingsError("--ledger-env", "contradicts --devnet: play money is kept in a ledger of its own")
    urls = (config.facilitator_url, *config.fallback_facilitator_urls)
    if len(set(urls)) < len(urls):
        raise SettingsError("--facilitator", "names the same facilitator twice")
    if config.verify_only and config.settlement is not SettlementPolicy.ON_OUTPUT:
        raise SettingsError("--settlement", "contradicts --verify-only: nothing is settled")
    if config.confirmations != 1 and not config.rpc_urls:
        raise SettingsError("--confirmations", "means nothing without --rpc: nobody looks at the chain")


def _check_validity(config: GatewayConfig) -> None:
    if config.max_timeout_s <= SETTLE_MARGIN_S:
        message = f"{config.max_timeout_s} is too short: a payment needs more than {SETTLE_MARGIN_S} s to be settled"
        raise SettingsError("--max-timeout", message)
    if config.max_timeout_s > config.max_validity_s:
        raise SettingsError("--max-timeout", "is above --max-validity: every payment would be refused")


def _check_url(field: str, text: str) -> None:
    url = urlsplit(text)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise SettingsError(field, f"{text!r} is not a URL: write http://HOST:PORT or https://HOST")
    if url.username is not None or url.password is not None:
        raise SettingsError(field, "holds a user or password: use --upstream-auth-env for a credential")
    if url.query or url.fragment:
        raise SettingsError(field, "holds a query or a fragment: give the base URL only")


def _recipient(config: GatewayConfig) -> str:
    if config.no_payment_gate and not config.pay_to:
        return "0x" + "0" * 40
    address = canonical_address(config.pay_to)
    if address is None:
        raise SettingsError("--pay-to", f"{config.pay_to!r} is not an address: 0x and 40 hex digits")
    if int(address, 16) == 0:
        raise SettingsError("--pay-to", "is the zero address: tokens refuse to pay it")
    checksummed = checksum_address(address)
    digits = config.pay_to[2:]
    if digits not in (digits.lower(), digits.upper()) and digits != checksummed[2:]:
        raise SettingsError("--pay-to", "has mixed case and a wrong EIP-55 checksum: a digit may be mistyped")
    return checksummed


def _models(wanted: tuple[str, ...], served: tuple[str, ...]) -> tuple[Model, ...]:
    if not wanted:
        return tuple(Model(name, name) for name in served)
    models: list[Model] = []
    for text in wanted:
        public, equals, upstream_name = text.partition("=")
        model = Model(public, upstream_name if equals else public)
        if not model.public or not model.served:
            raise SettingsError("--model", f"{text!r} is not NAME or PUBLIC=SERVED")
        if model.served not in served:
            raise SettingsError(
                "--model", f"the upstream does not serve {model.served!r}; it serves {', '.join(served)}"
            )
        if any(model.public == other.public for other in models):
            raise SettingsError("--model", f"{model.public!r} is given twice")
        models.append(model)
    return tuple(models)


def _standing(config: GatewayConfig, asset: Asset) -> Standing | None:
    if config.standing_after is not None and config.standing_after < 0:
        raise SettingsError("--standing-after", f"{config.standing_after} is not allowed: 0 or more")
    if config.max_unsettled is None:
        if config.settlement is SettlementPolicy.AFTER:
            raise SettingsError("--max-unsettled", "missing: --settlement after needs it, the most one payer may owe")
        if config.standing_after is not None:
            raise SettingsError("--standing-after", "means nothing without --max-unsettled: nobody would be trusted")
        return None
    if config.settlement is SettlementPolicy.BEFORE:
        raise SettingsError("--max-unsettled", "contradicts --settlement before: nothing is served unsettled")
    is_after = config.settlement is SettlementPolicy.AFTER
    after_sales = config.standing_after if config.standing_after is not None else 0 if is_after else STANDING_AFTER
    return Standing(after_sales, parse_amount(config.max_unsettled, asset.decimals, field="--max-unsettled"))


def _capacity(config: GatewayConfig) -> Capacity | None:
    if config.max_inflight is None and config.per_buyer_max_inflight is None and config.gpu_count is None:
        return None
    return Capacity(
        max_in_flight=config.max_inflight,
        per_buyer_max_in_flight=config.per_buyer_max_inflight,
        max_queue_depth=config.max_queue_depth,
        queue_timeout_s=config.queue_timeout_s,
        gpu_count=config.gpu_count,
    )
