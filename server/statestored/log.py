"""Structured logs on standard error: an event, and what it is about as keys and values. Never an address or a state."""

import logging
import sys
from contextlib import suppress
from typing import TextIO, cast

import structlog

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")


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
        structlog.processors.format_exc_info,
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
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=shared))
    logging.basicConfig(handlers=[handler], level=max(number, logging.WARNING), force=True)
