"""Structured logs on standard error: an event, and what it is about as keys and values. Never an address or a state."""

import logging
import sys
import traceback
from collections.abc import Callable

import structlog

from statestored import stdio

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")
FRAMES = 20  # of an exception, at most: those that were called last


def set_up_logging(level: str, format_: str) -> None:
    """Write structlog's events and those of the libraries, which use the standard `logging`, to standard error.

    `stdio` queues them, so that nothing waits until they are written.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _without_messages,
        _escaped,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if format_ == "json"
        else structlog.processors.LogfmtRenderer(key_order=("timestamp", "level", "event"))
    )
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=[_without_arguments, *shared])
    )
    logging.basicConfig(handlers=[handler], level=max(number, logging.WARNING), force=True)
    stdio.log_output.report = _dropped_lines([*shared, renderer])


def _dropped_lines(processors: list[structlog.typing.Processor]) -> Callable[[int], str]:
    """Return what makes the line that stands where lines are missing, rendered as the others are."""

    def line(lines: int) -> str:
        event: object = {"event": "log lines dropped", "lines": lines}
        for process in processors:
            event = process(None, "warning", event)  # type: ignore[arg-type]
        return f"{event!s}\n"

    return line


def _escaped(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Escape what no terminal shows, and bytes of a path that are not UTF-8, which many parsers of JSON refuse."""
    return {key: stdio.printable_lines(value) if isinstance(value, str) else value for key, value in event.items()}


def _without_arguments(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Of what a library says the sentence, without what it fills in, such as a peer's address."""
    if (record := event.get("_record")) is not None:
        event["event"] = str(record.msg).partition("\n")[0]
    return event


def _without_messages(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Of an exception its type, and where it came from: what it says may be what a client has sent."""
    match event.pop("exc_info", None):
        case BaseException() as error:
            event["exception"] = _traceback(error)
        case _, BaseException() as error, _:  # as `logging` has it
            event["exception"] = _traceback(error)
        case True:  # the one that is being handled
            event["exception"] = _traceback(sys.exception())
    return event


def _traceback(error: BaseException | None) -> str:
    """In one line, the last call first; then that of the exception from which it came."""
    told = []
    seen = set[int]()  # a chain of exceptions may lead back into itself
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        frames = reversed(traceback.extract_tb(error.__traceback__, -FRAMES))
        where = " < ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames)
        told.append(f"Traceback of {type(error).__qualname__}: {where}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "; from ".join(told)
