"""Structured logs: one event a line on standard error, and nothing global."""

import json

import pytest
import structlog

from obol.adapters.logs import make_logger


def test_a_json_log_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    log = make_logger(as_json=True)
    log.info("settlement", sale="1", state="settled\nforged")
    log.warning("second")
    out, err = capsys.readouterr()
    first, second = [json.loads(line) for line in err.splitlines()]
    assert out == ""
    assert first.pop("timestamp").endswith("Z")
    assert first == {"event": "settlement", "level": "info", "sale": "1", "state": "settled\nforged"}
    assert second["event"] == "second"


def test_a_traceback_is_a_field(capsys: pytest.CaptureFixture[str]) -> None:
    make_logger(as_json=True).error("request_failed", exc_info=ValueError("why"))
    (line,) = capsys.readouterr().err.splitlines()
    assert "ValueError: why" in json.loads(line)["exception"]


def test_a_readable_log_names_its_event(capsys: pytest.CaptureFixture[str]) -> None:
    make_logger(as_json=False).info("settlement", sale="1")
    assert "settlement" in capsys.readouterr().err


def test_a_readable_traceback_holds_no_values_of_variables(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(payload: str) -> None:
        raise ValueError(f"why: {len(payload)}")

    try:
        fail("the " + "payload")
    except ValueError as error:
        make_logger(as_json=False).error("request_failed", exc_info=error)
    written = capsys.readouterr().err
    assert "ValueError: why: 11" in written
    assert "the payload" not in written


def test_a_readable_log_is_one_short_line_without_blank_fields(capsys: pytest.CaptureFixture[str]) -> None:
    make_logger(as_json=False).info("settlement", state="settled", reason="", sale="1")
    line = capsys.readouterr().err
    assert line.endswith("Z [info] settlement state=settled sale=1\n")


def test_what_is_below_the_level_is_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    log = make_logger(as_json=True)
    log.debug("detail")
    make_logger(as_json=True, level="error").info("detail")
    assert capsys.readouterr().err == ""


def test_nothing_global_is_configured() -> None:
    make_logger(as_json=True).info("anything")
    assert not structlog.is_configured()
