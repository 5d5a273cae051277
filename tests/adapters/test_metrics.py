"""The metrics of a gateway: names, labels, and exact revenue."""

from obol.adapters.metrics import Metrics
from obol.core.usage import UNKNOWN_USAGE, Usage
from tests.gateway.live import make_offer

HUGE_ATOMIC = 2**70 + 1


def lines(metrics: Metrics, start: str) -> list[str]:
    return [line for line in metrics.render().decode().splitlines() if line.startswith(start)]


def test_two_gateways_in_one_process_do_not_share_numbers() -> None:
    first, second = Metrics(), Metrics()
    first.request("a", "served")
    assert first.totals()["requests"] == {"served": 1}
    assert second.totals()["requests"] == {}


def test_requests_and_payments_are_counted_by_label_and_summed_over_offers() -> None:
    metrics = Metrics()
    metrics.request("a", "served")
    metrics.request("b", "served")
    metrics.request("b", "quoted")
    metrics.payment("a", "settled")
    assert metrics.totals() == {"requests": {"quoted": 1, "served": 2}, "payments": {"settled": 1}}
    assert lines(metrics, 'obol_requests_total{offer="b",outcome="served"}') == [
        'obol_requests_total{offer="b",outcome="served"} 1.0'
    ]


def test_revenue_is_exact_where_a_float_would_round() -> None:
    metrics = Metrics()
    metrics.revenue("eip155:1", "0xaa", HUGE_ATOMIC)
    metrics.revenue("eip155:1", "0xaa", 1)
    assert float(HUGE_ATOMIC + 1) != HUGE_ATOMIC + 1
    assert metrics.revenue_by_asset() == {("eip155:1", "0xaa"): HUGE_ATOMIC + 1}
    expected = f'obol_revenue_atomic_total{{network="eip155:1",asset="0xaa"}} {HUGE_ATOMIC + 1}'
    assert lines(metrics, "obol_revenue_atomic_total{") == [expected]


def test_slots_are_read_when_the_metrics_are() -> None:
    metrics = Metrics()
    held = [3]
    metrics.watch(make_offer(max_inflight=16), lambda: held[0], lambda: 2)
    held[0] = 5
    assert lines(metrics, "obol_in_flight{") == ['obol_in_flight{offer="inference"} 5.0']
    assert lines(metrics, "obol_queued{") == ['obol_queued{offer="inference"} 2.0']
    assert lines(metrics, "obol_capacity_max_in_flight{") == ['obol_capacity_max_in_flight{offer="inference"} 16.0']


def test_an_offer_without_a_limit_has_no_capacity_rather_than_zero() -> None:
    metrics = Metrics()
    metrics.watch(make_offer(), lambda: 0, lambda: 0)
    assert lines(metrics, "obol_capacity_max_in_flight{") == []


def test_an_answer_is_told_in_the_conventions_of_opentelemetry() -> None:
    metrics = Metrics()
    metrics.answer("chat", "tiny", first_s=1.0, total_s=3.0, usage=Usage(7, 5))
    labels = 'gen_ai_operation_name="chat",gen_ai_request_model="tiny"'
    assert lines(metrics, "gen_ai_server_time_to_first_token_seconds_sum") == [
        f"gen_ai_server_time_to_first_token_seconds_sum{{{labels}}} 1.0"
    ]
    assert lines(metrics, "gen_ai_server_time_per_output_token_seconds_sum") == [
        f"gen_ai_server_time_per_output_token_seconds_sum{{{labels}}} 0.5"
    ]
    assert lines(metrics, "gen_ai_server_request_duration_seconds_sum") == [
        f"gen_ai_server_request_duration_seconds_sum{{{labels}}} 3.0"
    ]
    assert lines(metrics, "gen_ai_client_token_usage_sum") == [
        f'gen_ai_client_token_usage_sum{{{labels},gen_ai_token_type="input"}} 7.0',
        f'gen_ai_client_token_usage_sum{{{labels},gen_ai_token_type="output"}} 5.0',
    ]


def test_what_is_not_known_is_not_observed() -> None:
    metrics = Metrics()
    metrics.answer("chat", "tiny", first_s=None, total_s=3.0, usage=UNKNOWN_USAGE)
    metrics.answer("chat", "tiny", first_s=1.0, total_s=1.0, usage=Usage(None, 1))
    assert lines(metrics, "gen_ai_server_time_per_output_token_seconds_count") == []
    assert not [line for line in lines(metrics, "gen_ai_client_token_usage_count") if 'type="input"' in line]


def test_names_of_offers_and_models_cannot_break_the_format() -> None:
    metrics = Metrics()
    metrics.request('a"} 1\nfake 2', "served")
    assert lines(metrics, "fake") == []


def test_whether_the_chain_can_be_asked_is_unknown_before_it_was() -> None:
    metrics = Metrics()
    known: list[bool | None] = [None]
    metrics.watch_chain("eip155:84532", lambda: known[0], lambda: 3)
    labels = 'network="eip155:84532"'
    assert lines(metrics, "obol_chain_up{") == [f"obol_chain_up{{{labels}}} NaN"]
    known[0] = False
    assert lines(metrics, "obol_chain_up{") == [f"obol_chain_up{{{labels}}} 0.0"]
    known[0] = True
    assert lines(metrics, "obol_chain_up{") == [f"obol_chain_up{{{labels}}} 1.0"]
    assert lines(metrics, "obol_settlements_unseen{") == [f"obol_settlements_unseen{{{labels}}} 3.0"]


def test_without_a_chain_to_ask_nothing_is_said_of_it() -> None:
    assert not lines(Metrics(), "obol_chain_up{")
