"""The reference pages against the code, both ways: nothing is missing, nothing is made up."""

import re
from dataclasses import MISSING, fields
from typing import Any

import click
import pytest

from obol.adapters.facilitator_http import NO_ANSWER
from obol.adapters.facilitator_metrics import FacilitatorMetrics
from obol.adapters.facilitator_witnessed import NOT_SEEN
from obol.adapters.metrics import Metrics
from obol.cli.exit_codes import ExitCode
from obol.cli.sell import inference
from obol.core.offer import OPENAI_APIS, Api, SettlementPolicy
from obol.core.usage import Usage
from obol.gateway.replies import REPLIES, Reason
from obol.gateway.settings import DEFAULT_FACILITATOR_URL, GatewayConfig
from obol.inference.routes import SALE_PATHS
from obol.x402.reasons import Reason as PaymentReason
from obol.x402.witness import CANCELLED, EXPIRED, USED_BEFORE, USED_ELSEWHERE
from tests.docs.pages import read, rows

FLAG_OF = {
    "upstream_authorization": "upstream_auth_env",
    "facilitator_url": "facilitator_urls",
    "fallback_facilitator_urls": "facilitator_urls",
    "rpc_urls": "rpc",
    "ledger_url": "ledger_env",
}
"""Fields whose flag has another name in the command."""
WITHOUT_FLAG = {"body_timeout_s", "reader_timeout_s", "catalogue"}
WITHOUT_FIELD = {"as_json", "log_format", "help"}
BY_THE_CHAIN = {CANCELLED, EXPIRED, USED_BEFORE, USED_ELSEWHERE}
IN_WORDS = {
    "apis": "the OpenAI four",
    "catalogue": "the built-in one",
    "upstream_url": "required",
    "pay_to": "required",
}


def config_default(name: str) -> Any:
    (field,) = [field for field in fields(GatewayConfig) if field.name == name]
    return field.default if field.default is not MISSING else None


def shown(name: str, value: object) -> str:
    if name in IN_WORDS:
        return IN_WORDS[name]
    if isinstance(value, SettlementPolicy):
        return value.value
    return f'"{value}"' if isinstance(value, str) else str(value)


def flags() -> dict[str, click.Parameter]:
    return {str(parameter.name): parameter for parameter in inference.params}


def test_every_reason_of_the_gateway_is_described_as_it_is_answered() -> None:
    described = {row[0]: tuple(row[1:4]) for row in rows(read("reference/errors.md"), "## Reasons of the gateway")}
    answered = {
        reason.value: (str(reply.status), reply.type, "yes" if reply.retriable else "no")
        for reason, reply in REPLIES.items()
    }
    assert described == answered
    assert set(answered) == {reason.value for reason in Reason}


def test_every_reason_says_what_became_of_the_payment_and_what_to_do() -> None:
    for row in rows(read("reference/errors.md"), "## Reasons of the gateway"):
        assert all(row), row[0]


def test_every_reason_of_a_payment_is_described_with_what_to_do() -> None:
    table = rows(read("reference/errors.md"), "## Reasons of payments")
    described = [name for row in table for name in re.findall(r"\w+", row[0])]
    assert sorted(described) == sorted({*PaymentReason, *NO_ANSWER, *BY_THE_CHAIN, NOT_SEEN})
    assert all(all(row) for row in table)


def test_every_exit_code_is_described() -> None:
    described = [int(row[0]) for row in rows(read("reference/errors.md"), "## Exit codes of `obol`")]
    assert described == [code.value for code in ExitCode]


async def test_every_metric_is_described_with_its_kind_and_labels() -> None:
    page = read("reference/metrics.md")
    described = {
        row[0]: (row[1], set(re.findall(r"`(\w+)`", f"`{row[2]}`" if "`" not in row[2] else row[2])))
        for heading in re.findall(r"^## .*$", page, re.MULTILINE)
        for row in rows(page, heading)
    }
    assert described == served_metrics(gateway_text()) | served_metrics(await facilitator_text())


def gateway_text() -> str:
    metrics = Metrics()
    metrics.request("offer", "served")
    metrics.payment("offer", "settled")
    metrics.revenue("network", "asset", 1)
    metrics.watch_chain("network", lambda: True, int)
    metrics.answer("chat", "model", first_s=1.0, total_s=2.0, usage=Usage(1, 2))
    return metrics.render().decode()


async def facilitator_text() -> str:
    async def gas_wei() -> int:
        return 1

    metrics = FacilitatorMetrics()
    metrics.watch("network", unmined=int, round_trips=int, gas_wei=gas_wei)
    metrics.verified("network", is_valid=True, seconds=1.0)
    metrics.settled("network", "settled", seconds=1.0)
    return (await metrics.render()).decode()


def served_metrics(text: str) -> dict[str, tuple[str, set[str]]]:
    kinds = dict(re.findall(r"^# TYPE (\S+) (\w+)$", text, re.MULTILINE))
    labels: dict[str, set[str]] = {name: set() for name in kinds if not name.endswith("_created")}
    for sample, names in re.findall(r"^([a-z_]+)\{(.*)\} ", text, re.MULTILINE):
        family = re.sub(r"_(bucket|sum|count)$", "", sample)
        if family in labels:
            labels[family] |= set(re.findall(r'(\w+)="', names)) - {"le"}
    for name in ("obol_in_flight", "obol_queued", "obol_capacity_max_in_flight"):
        if name in labels:
            labels[name].add("offer")  # shown once an offer is watched
    return {name: (kinds[name], found) for name, found in labels.items()}


def test_every_field_of_the_config_is_described_with_its_flag_and_default() -> None:
    described = {row[0]: (row[1], row[2]) for row in rows(read("reference/settings.md"), "## The gateway")}
    known = flags()
    expected = {}
    for field in fields(GatewayConfig):
        parameter = known.get(FLAG_OF.get(field.name, field.name))
        flag = "–" if parameter is None else parameter.opts[0]
        expected[field.name] = ("NAME" if flag == "name" else flag, shown(field.name, config_default(field.name)))
    assert described == expected
    assert {name for name, (flag, _) in described.items() if flag == "–"} == WITHOUT_FLAG


def test_every_flag_sets_a_field() -> None:
    names = {field.name for field in fields(GatewayConfig)}
    fields_of = {flag: field for field, flag in FLAG_OF.items()}
    assert {name for name in flags() if fields_of.get(name, name) not in names} <= WITHOUT_FIELD


@pytest.mark.parametrize("field", [field.name for field in fields(GatewayConfig) if field.name not in WITHOUT_FLAG])
def test_the_command_and_the_config_have_the_same_default(field: str) -> None:
    given = inference.make_context("inference", ["NAME", "--upstream", "http://127.0.0.1:1"]).params
    if field in {"name", "upstream_url", "upstream_authorization"}:
        return  # given above, or of another kind
    value = given[FLAG_OF.get(field, field)]
    same = {
        "apis": OPENAI_APIS if value == () else value,
        "facilitator_url": value or DEFAULT_FACILITATOR_URL,
        "rpc_urls": value or (),
    }
    assert same.get(field, value) == config_default(field)


def test_every_sold_path_is_described_with_its_api() -> None:
    described = {
        row[1]: row[3].split("`")[1] for row in rows(read("reference/http.md"), "## Routes") if row[0] == "POST"
    }
    assert described == {path: api.value for api, path in SALE_PATHS.items()}
    assert set(described.values()) == {api.value for api in Api}


@pytest.mark.parametrize("cell", ["openai", *(api.value for api in Api)])
def test_the_settings_name_every_api(cell: str) -> None:
    (row,) = [row for row in rows(read("reference/settings.md"), "## The gateway") if row[0] == "apis"]
    assert f"`{cell}`" in row[3]
