"""One line for each event, whatever stands in it."""

import json
import re
import subprocess
import sys
from textwrap import dedent

import pytest

from statestored.log import FORMATS, LEVELS


def logged(level: str, format_: str, source: str) -> list[str]:
    """The lines that a program of its own writes to standard error."""
    head = f"""
        import logging, structlog, sys
        from statestored.log import set_up_logging
        log = structlog.get_logger()
        set_up_logging({level!r}, {format_!r})
    """
    command = [sys.executable, "-c", dedent(head) + dedent(source)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=30, check=True)
    assert done.stdout == ""
    return done.stderr.splitlines()


EVENTS = """
    log.debug("a debug")
    log.info("an info", number=5)
    log.warning("a warning", text="two words")
    log.error("an error", text='quotes " and\\nlines')
    logging.getLogger("library").info("too much")
    logging.getLogger("library").warning("from a %s", "library")
    try:
        1 / 0
    except ZeroDivisionError as error:
        log.error("a fault", exc_info=error)
"""
ALL = ["a debug", "an info", "a warning", "an error", "from a %s", "a fault"]
EXPECTED = {"debug": ALL, "info": ALL[1:], "warning": ALL[2:], "error": ["an error", "a fault"]}

FAULTS = """
    def look_up(sender):
        try:
            return {}[sender]
        except KeyError as error:
            raise ValueError(f"{sender} is not there") from error

    def go_down(sender):
        return go_down(sender)

    for act in look_up, go_down:
        try:
            act("ann@a.example")
        except Exception as error:
            log.error("a fault", exc_info=error)
            log.exception("a fault")
            logging.getLogger("library").error("a fault", exc_info=error)
            logging.getLogger("library").exception("a fault")
    log.error("no fault", exc_info=False)
    log.error("no fault", exc_info=True)
"""


@pytest.mark.parametrize("level", LEVELS)
def test_json_is_one_object_a_line(level: str) -> None:
    entries = [json.loads(line) for line in logged(level, "json", EVENTS)]
    assert [entry["event"] for entry in entries] == EXPECTED[level]
    for entry in entries:
        assert entry["level"] in LEVELS
        assert entry["timestamp"].endswith("Z")
    assert "ZeroDivisionError" in entries[-1]["exception"]
    assert 'quotes " and\nlines' in [entry.get("text") for entry in entries]


def test_text_is_one_event_a_line() -> None:
    lines = logged("debug", "text", EVENTS)
    assert len(lines) == len(ALL)
    for line, event in zip(lines, ALL, strict=True):
        assert line.startswith("timestamp=")
        assert f' event="{event}"' in line
    assert "number=5" in lines[1]
    assert 'text="two words"' in lines[2]
    assert "ZeroDivisionError" in lines[-1]


@pytest.mark.parametrize("format_", FORMATS)
def test_an_exception_is_told_without_what_it_says(format_: str) -> None:
    """S3: that may be what a client has sent."""
    *faults, without, with_none = logged("info", format_, FAULTS)
    assert not [line for line in faults if "ann" in line]
    for line in faults[:4]:
        told = (
            r"Traceback of ValueError: <string>:\d+ look_up < \S+ <module>; from Traceback of KeyError: \S+ look_up\b"
        )
        assert re.search(told, line)
    for line in faults[4:]:
        assert "Traceback of RecursionError: " in line
        assert len(line) < 1000
    assert len(faults) == 8
    assert "Traceback" not in without + with_none


@pytest.mark.parametrize("format_", FORMATS)
def test_whatever_is_logged_shows(format_: str) -> None:
    source = r"""
        log.error("path", path="/srv/\udcff\x1b[31m\n", number=5, other=None)
        logging.getLogger("library").error("\udcff")
    """
    lines = logged("info", format_, source)
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)
    assert r"/srv/\xff\x1b[31m" in (lines[0] if format_ == "text" else json.loads(lines[0])["path"])


@pytest.mark.parametrize(("format_", "level"), [("text", "info"), ("json", "error")])
def test_lines_that_are_missing_are_reported_as_a_line_like_the_others(format_: str, level: str) -> None:
    """Whatever the level: what is missing may have been an error."""
    (line,) = logged(level, format_, "from statestored import stdio; sys.stderr.write(stdio.log_output.report(7))")
    if format_ == "json":
        entry = json.loads(line)
        assert entry.pop("timestamp").endswith("Z")
        assert entry == {"event": "log lines dropped", "level": "warning", "lines": 7}
    else:
        assert re.fullmatch(r'timestamp=\S+Z level=warning event="log lines dropped" lines=7', line)


def test_levels_go_from_the_most_to_the_least() -> None:
    assert LEVELS == ("debug", "info", "warning", "error")
    assert FORMATS == ("text", "json")
