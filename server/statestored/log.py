"""Structured logs on standard error: an event, and what it is about as keys and values. Never an address or a state."""

import logging
import sys
import traceback
from contextlib import suppress
from typing import TextIO, cast

import structlog

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")
FRAMES = 20  # of an exception, at most: those that were called last


class _Stderr:
    """Standard error, for which nothing of the daemon fails: its reader may have gone, or its disk be full."""

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            return sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.flush()


def set_up_logging(level: str, format_: str) -> None:
    """structlog's own lines, and those of the libraries through the standard `logging`."""
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _without_messages,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if format_ == "json"
        else structlog.processors.LogfmtRenderer(key_order=("timestamp", "level", "event"))
    )
    stderr = _Stderr()
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, stderr)),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=[_without_arguments, *shared])
    )
    logging.basicConfig(handlers=[handler], level=max(number, logging.WARNING), force=True)


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
