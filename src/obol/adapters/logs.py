"""Structured logs: one event a line, JSON or readable, to standard error."""

import sys

import structlog


def make_logger(*, as_json: bool, level: str = "info") -> structlog.typing.FilteringBoundLogger:
    """A logger of its own: nothing global is configured."""
    ending: list[structlog.typing.Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if as_json
        else [_without_blanks, _readable()]
    )
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso" if as_json else "%Y-%m-%d %H:%M:%SZ", utc=True),
        *ending,
    ]
    logger: structlog.typing.FilteringBoundLogger = structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    return logger


def _readable() -> structlog.dev.ConsoleRenderer:
    """One short line an event. Tracebacks without the values of variables: those may be payments, prompts or keys."""
    return structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(),
        pad_event_to=0,
        pad_level=False,
        sort_keys=False,
        exception_formatter=structlog.dev.plain_traceback,
    )


def _without_blanks(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """A person does not need to read `reason=`; a program gets every field."""
    return {name: value for name, value in event.items() if value != ""}
