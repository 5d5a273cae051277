"""`obol sell`: put a model server up for sale, and see how it is doing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from obol.cli import output
from obol.cli.environment import secret
from obol.cli.exit_codes import ExitCode
from obol.cli.rpc_urls import rpc_urls
from obol.core.offer import OPENAI_APIS, Api, SettlementPolicy

if TYPE_CHECKING:
    from obol.gateway.gateway import Gateway
    from obol.gateway.settings import GatewayConfig


@click.group()
def sell() -> None:
    """Sell the answers of a model server over x402."""


_API_NAMES = ["openai", *(api.value for api in Api)]


@sell.command(short_help="Sell the answers of a model server, until SIGTERM.")
@click.argument("name")
@click.option("--upstream", "upstream_url", required=True, metavar="URL", help="The model server, without /v1.")
@click.option("--pay-to", "--wallet", envvar="X402_WALLET", default="", metavar="0x…", help="Address that is paid.")
@click.option("--price", default="0.001", show_default=True, help="Price of one request, a plain decimal.")
@click.option("--chain", default="base-sepolia", show_default=True, help="Network: name or CAIP-2 id.")
@click.option("--payment-asset", default="usdc", show_default=True, metavar="usdc|obol|0x…", help="What is paid in.")
@click.option("--model", "models", multiple=True, metavar="NAME|PUBLIC=SERVED", help="Sell only this (repeatable).")
@click.option("--api", "apis", multiple=True, type=click.Choice(_API_NAMES), help="Sell only this API (repeatable).")
@click.option("--listen", default=":8402", show_default=True, metavar="HOST:PORT", help="Public address.")
@click.option("--admin-listen", metavar="HOST:PORT", help="Move /status and /metrics to this address.")
@click.option("--public-url", metavar="URL", help="Base URL that buyers use, behind a proxy of yours.")
@click.option(
    "--facilitator",
    "facilitator_urls",
    multiple=True,
    metavar="URL",
    help="Who verifies and settles payments; repeated: who is asked while the first cannot be.  "
    "[default: https://facilitator.x402.rs]",
)
@click.option(
    "--rpc",
    envvar="OBOL_RPC",
    metavar="URL[,URL…]",
    help="Nodes of the chain (or OBOL_RPC): a settlement is believed once they show it.",
)
@click.option(
    "--confirmations",
    type=int,
    default=1,
    show_default=True,
    help="Blocks, its own included, until a settlement counts as seen.",
)
@click.option("--devnet", is_flag=True, help="Settle on an embedded ledger of play money.")
@click.option(
    "--settlement",
    type=click.Choice([p.value for p in SettlementPolicy]),
    default="on-output",
    help="When money moves: once output exists, before serving, or after the whole answer.",
    show_default=True,
)
@click.option("--max-unsettled", metavar="AMOUNT", help="Answers to one payer that may run ahead of its money.")
@click.option(
    "--standing-after",
    type=int,
    metavar="N",
    help="Settled sales before a payer is trusted that far.  [default: 5; with --settlement after: 0]",
)
@click.option("--verify-only", is_flag=True, help="Verify payments and never settle them (staging).")
@click.option("--no-payment-gate", is_flag=True, help="Serve without payment, on loopback only.")
@click.option("--force", is_flag=True, help="Allow --no-payment-gate on other addresses.")
@click.option("--max-inflight", type=int, help="Requests served at once; above it 429.")
@click.option("--per-buyer-max-inflight", type=int, help="The same for one payer.")
@click.option("--max-queue-depth", type=int, default=0, show_default=True, help="Paid requests that may wait.")
@click.option(
    "--queue-timeout",
    "queue_timeout_s",
    type=float,
    default=10.0,
    help="How long a queued request waits for a slot.",
    show_default=True,
    metavar="S",
)
@click.option("--gpu-count", type=int, help="Capacity metadata for buyers; schedules nothing.")
@click.option(
    "--max-body-bytes",
    type=int,
    default=10 * 1024 * 1024,
    help="Larger requests are refused with 413.",
    show_default=True,
)
@click.option("--max-input-tokens", type=int, help="Longer inputs are refused before payment.")
@click.option("--max-output-tokens", type=int, help="More is refused; absent limits are set to this.")
@click.option(
    "--max-timeout", "max_timeout_s", type=int, default=300, show_default=True, metavar="S", help="Validity asked for."
)
@click.option(
    "--max-validity",
    "max_validity_s",
    type=int,
    default=86400,
    show_default=True,
    metavar="S",
    help="Validity refused above.",
)
@click.option("--upstream-auth-env", metavar="NAME", help="Environment variable with the server's API key.")
@click.option(
    "--upstream-connect-timeout",
    "upstream_connect_timeout_s",
    type=float,
    default=5.0,
    help="Wait for a connection to the model server.",
    show_default=True,
    metavar="S",
)
@click.option(
    "--upstream-first-byte-timeout",
    "upstream_first_byte_timeout_s",
    type=float,
    default=600.0,
    help="Wait for its answer to begin: a cold server loads its model first.",
    show_default=True,
    metavar="S",
)
@click.option(
    "--upstream-idle-timeout",
    "upstream_idle_timeout_s",
    type=float,
    default=120.0,
    help="Wait between two chunks of its answer.",
    show_default=True,
    metavar="S",
)
@click.option(
    "--verify-timeout",
    "verify_timeout_s",
    type=float,
    default=5.0,
    help="Wait for the facilitator to check a payment.",
    show_default=True,
    metavar="S",
)
@click.option(
    "--settle-timeout",
    "settle_timeout_s",
    type=float,
    default=60.0,
    help="Wait for the facilitator to settle a payment.",
    show_default=True,
    metavar="S",
)
@click.option(
    "--drain-timeout",
    "drain_timeout_s",
    type=float,
    default=60.0,
    help="Wait for sales in flight when stopping.",
    show_default=True,
    metavar="S",
)
@click.option(
    "--data-dir", type=click.Path(path_type=Path, file_okay=False), help="Where the ledger is kept.  [default: by XDG]"
)
@click.option(
    "--ledger-env", metavar="NAME", help="Variable with a postgresql:// URL: a ledger that several gateways share."
)
@click.option("--description", default="", help="One line for buyers.")
@click.option(
    "--log-format",
    type=click.Choice(["auto", "json", "text"]),
    default="auto",
    help="auto: text on a terminal, else JSON.",
    show_default=True,
)
@output.json_option
def inference(as_json: bool, log_format: str, **options: Any) -> None:
    """Sell the answers of the model server at --upstream under NAME, until SIGTERM.

    \b
    obol sell inference qwen36-fast --upstream http://localhost:8000 \\
        --pay-to 0x… --price 0.001 --chain base-sepolia
    """
    import os

    from obol.cli.runtime import run_async

    config = _config(options, os.environ)
    run_async(_serve(config, log_format=log_format, as_json=as_json))


@sell.command()
@click.option("--url", default="http://127.0.0.1:8402", show_default=True, help="The gateway, or its admin address.")
@output.json_option
def status(url: str, as_json: bool) -> None:
    """Show what a running gateway sells and how full it is."""
    import httpx2

    try:
        answer = httpx2.get(f"{url.rstrip('/')}/status", timeout=5.0)
    except (httpx2.TransportError, httpx2.InvalidURL) as error:
        raise output.CommandError(
            f"no gateway answers at {url}", code=ExitCode.CONNECTION, hint="Start one with `obol sell inference`."
        ) from error
    report = _report(answer.content) if answer.status_code == 200 else None
    if report is None:
        raise output.CommandError(
            f"{url} has no /status of a gateway (HTTP {answer.status_code})",
            code=ExitCode.NOT_FOUND,
            hint="If the gateway runs with --admin-listen, give that address as --url.",
        )
    _show_status(report, as_json=as_json)


def _report(body: bytes) -> dict[str, Any] | None:
    """A gateway's status, or None for what some other server has at that path."""
    import json

    try:
        report = json.loads(body)
    except ValueError:
        return None
    return report if isinstance(report, dict) and {"offer", "capacity", "inFlight"} <= report.keys() else None


def _config(options: dict[str, Any], environ: Any) -> "GatewayConfig":
    from obol.core.offer import SettlementPolicy as Policy
    from obol.errors import SettingsError
    from obol.gateway.settings import DEFAULT_FACILITATOR_URL, GatewayConfig

    facilitator_urls = options.pop("facilitator_urls")
    if options["devnet"] and facilitator_urls:
        raise SettingsError("--devnet", "contradicts --facilitator: choose one place to settle")
    options["facilitator_url"], *fallbacks = facilitator_urls or [DEFAULT_FACILITATOR_URL]
    options["fallback_facilitator_urls"] = tuple(fallbacks)
    rpc = options.pop("rpc")
    options["rpc_urls"] = () if rpc is None else rpc_urls(rpc)
    is_settlement_given = click.get_current_context().get_parameter_source("settlement") is ParameterSource.COMMANDLINE
    if options["verify_only"] and is_settlement_given:
        raise SettingsError("--settlement", "contradicts --verify-only: nothing is settled")
    options["settlement"] = Policy(options["settlement"])
    options["apis"] = _apis(options["apis"])
    variable = options.pop("ledger_env")
    if variable is not None:
        if options["data_dir"] is not None:
            raise SettingsError("--data-dir", "contradicts --ledger-env: nothing would be kept there")
        options["ledger_url"] = secret(environ, "--ledger-env", variable)
    variable = options.pop("upstream_auth_env")
    if variable is not None:
        key = secret(environ, "--upstream-auth-env", variable)
        options["upstream_authorization"] = key if " " in key else f"Bearer {key}"
    return GatewayConfig(**options)


def _apis(names: tuple[str, ...]) -> frozenset[Api]:
    if not names:
        return OPENAI_APIS
    return frozenset(Api(name) for name in names if name != "openai") | (
        OPENAI_APIS if "openai" in names else frozenset()
    )


async def _serve(config: "GatewayConfig", *, log_format: str, as_json: bool) -> None:
    """Start, say what is sold, serve until a signal, drain."""
    import asyncio
    import signal
    import sys

    from obol.adapters.logs import make_logger
    from obol.gateway.gateway import Gateway

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    in_json = log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())
    async with Gateway(config, log=make_logger(as_json=in_json)) as gateway:
        output.show(_summary(gateway), title=f"Selling {config.name}", as_json=as_json)
        for warning in gateway.warnings:
            output.note(f"warning: {warning}")
        await stop.wait()
        output.note("stopping: no new sales, waiting for those in flight (again Ctrl-C: at once)")
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(number)


def _summary(gateway: "Gateway") -> dict[str, object]:
    from obol.core.money import format_amount
    from obol.gateway.settings import ledger_name, split_address

    offer, config = gateway.offer, gateway.config
    asset = offer.asset
    price = f"{format_amount(offer.price_atomic, asset.decimals)} {asset.symbol} per request"
    urls = (config.facilitator_url, *config.fallback_facilitator_urls)
    settled_by = "an embedded devnet: play money" if config.devnet else ", else ".join(urls)
    summary: dict[str, object] = {
        "address": gateway.url,
        "models": ", ".join(model.public for model in offer.models),
        "apis": ", ".join(sorted(offer.apis)),
        "upstream": offer.upstream_url,
        "price": price if offer.payment_gate else "none: payment gate is off",
        "network": f"{asset.network.name} ({asset.network.caip2})",
        "asset": f"{asset.symbol} {asset.address}",
        "paid_to": offer.pay_to if offer.payment_gate else "nobody",
        "settled_by": settled_by if offer.payment_gate and not offer.verify_only else "nobody",
        "witness": f"{len(config.rpc_urls)} RPC endpoint(s)" if config.rpc_urls else "none: facilitators are believed",
        "settlement": _settlement_text(offer),
        "at_risk": offer.loss_bound,
        "capacity": _capacity_text(offer.capacity),
        "ledger": ledger_name(config),
    }
    if split_address(config.listen, "--listen")[0] in (None, "0.0.0.0", "::"):  # noqa: S104 - only told
        summary["reachable"] = "on all interfaces of this machine"
    if config.public_url:
        summary["public_url"] = config.public_url
    if gateway.admin_url:
        summary["admin"] = gateway.admin_url
    return summary


def _settlement_text(offer: Any) -> str:
    if not offer.payment_gate:
        return "none"
    return "never (--verify-only)" if offer.verify_only else str(offer.settlement.value)


def _capacity_text(capacity: Any) -> str:
    if capacity is None:
        return "no limit declared"
    parts = [f"{capacity.max_in_flight or 'unlimited'} in flight"]
    if capacity.per_buyer_max_in_flight:
        parts.append(f"{capacity.per_buyer_max_in_flight} per buyer")
    if capacity.max_queue_depth:
        parts.append(f"queue of {capacity.max_queue_depth}")
    if capacity.gpu_count:
        parts.append(f"{capacity.gpu_count} GPU")
    return ", ".join(parts) + " (seller-declared; nothing is scaled)"


def _show_status(report: dict[str, Any], *, as_json: bool) -> None:
    if output.wants_json(as_json):
        output.print_json(report)
        return
    offer, capacity = report["offer"], report["capacity"]
    payment = offer["payment"]
    price = f"{payment['price']['perRequest']} {payment['asset']} per request on {payment['network']}"
    rows: dict[str, object] = {
        "models": ", ".join(offer["models"]),
        "price": price if offer["paymentGate"] else "none: payment gate is off",
        "paid to": payment["payTo"] if offer["paymentGate"] else "nobody",
        "settlement": "never (--verify-only)" if offer["verifyOnly"] else offer["settlement"],
        "at risk": offer["lossBound"],
        "upstream": report["upstream"],
        "draining": "yes" if report["draining"] else "no",
        "capacity mode": capacity["mode"] if capacity else "none declared: no limit",
        "scaling controlled": str(capacity["scalingControlled"]).lower() if capacity else "false",
        "GPU count": (capacity or {}).get("gpuCount") or "not declared",
        "max in flight": (capacity or {}).get("maxInFlight") or "no limit",
        "max per buyer": (capacity or {}).get("perBuyerMaxInFlight") or "no limit",
        "in flight": capacity["inFlight"] if capacity else report["inFlight"],
        "state": capacity["state"] if capacity else "Available",
        "queued": report["queued"],
        "requests so far": ", ".join(f"{name} {count}" for name, count in report["requests"].items()) or "none yet",
        "payments reached": ", ".join(f"{name} {count}" for name, count in report["payments"].items()) or "nothing yet",
        "revenue so far": _revenue_text(report["revenue"], payment) or "none yet",
    }
    if not offer["paymentGate"]:
        del rows["settlement"]
    if "ledger" in report:  # only where no buyer looks on
        rows["ledger"] = report["ledger"]
    output.show(rows, title=f"Offer {offer['name']}")


def _revenue_text(revenue: Sequence[Mapping[str, str]], payment: Mapping[str, Any]) -> str:
    """What was settled, in whole units of the asset that the offer is sold for, else in atomic ones."""
    from obol.core.money import format_amount

    def text(entry: Mapping[str, str]) -> str:
        if (entry["network"], entry["asset"]) == (payment["caip2"], payment["assetAddress"].lower()):
            return f"{format_amount(int(entry['amountAtomic']), payment['assetDecimals'])} {payment['asset']}"
        return f"{entry['amountAtomic']} atomic units of {entry['asset']} on {entry['network']}"

    return ", ".join(map(text, revenue))
