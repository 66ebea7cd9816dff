"""What is worth a line in the log, without anything in it that must not be there."""

import logging
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from statestored import audit
from statestored.errors import StartError

SECRETS = ("192.0.2.1", "secret-namespace")


@pytest.mark.parametrize(
    "write",
    [
        lambda: audit.connection_dropped("garbage", "a message is no array"),
        lambda: audit.token_refused("192.0.2.1"),
        lambda: audit.peer_shut_out("192.0.2.1"),
        lambda: audit.namespace_refused("shop", b"secret-namespace"),
        lambda: audit.cleared("shop", b"secret-namespace"),
        lambda: audit.cleared(None, b"secret-namespace"),
        lambda: audit.handshake_failed("unknown ca"),
        lambda: audit.read_again("tokens", count=2),
        lambda: audit.not_read_again(StartError("no")),
    ],
)
def test_each_is_one_line_that_gives_nobody_away(write: Callable[[], None]) -> None:
    with capture_logs() as logs:
        write()
    assert len(logs) == 1
    assert not any(secret in str(logs) for secret in SECRETS)


def test_a_pseudonym_is_the_same_for_the_same_and_differs_for_others() -> None:
    assert audit.pseudonym("ann@example.org") == audit.pseudonym(b"ann@example.org")
    assert audit.pseudonym("ann@example.org") != audit.pseudonym("ben@example.org")
    audit.pseudonym("\ud83d")


def test_a_pseudonym_cannot_be_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    before = audit.pseudonym("ann@example.org")
    monkeypatch.setattr(audit, "_key", b"of another run")
    assert audit.pseudonym("ann@example.org") != before


@pytest.mark.parametrize(
    "write",
    [
        lambda number: audit.connection_dropped("garbage", f"{number}"),
        lambda number: audit.token_refused(f"192.0.2.{number}"),
        lambda number: audit.peer_shut_out(f"192.0.2.{number}"),
        lambda number: audit.namespace_refused("shop", b"n%d" % number),
        lambda _: audit.handshake_failed("unknown ca"),
        lambda number: audit.internal_fault("a request failed", ValueError(number)),
    ],
)
def test_what_anybody_can_cause_is_a_line_a_second(
    write: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(audit.time, "monotonic", lambda: now[0])
    for lines in (1, 1, 2):
        with capture_logs() as logs:
            for _ in range(lines):
                for number in range(100):
                    write(number)
                now[0] += audit.EVERY
        assert len(logs) == lines


def test_the_next_line_says_how_many_were_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(audit.time, "monotonic", lambda: now[0])
    with capture_logs() as logs:
        for _ in range(3):
            for _ in range(100):
                audit.token_refused("192.0.2.1")
            audit.handshake_failed("unknown ca")
            now[0] += audit.EVERY
    said = [entry.get("suppressed") for entry in logs if "token" in entry["event"]]
    assert said == [None, 99, 99]
    assert audit.limit.suppressed == 297


@pytest.mark.parametrize("name", audit.LIBRARIES)
def test_what_a_library_says_of_a_peer_is_a_line_a_second_for_each_place_in_its_source(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    audit.limit_library_logs()
    audit.limit_library_logs()  # it does not matter how often
    logger = logging.getLogger(name)
    for number in range(100):
        logger.error("a fault of peer %s", number)
        logger.error("another fault of peer %s", number)
    assert [record.msg for record in caplog.records] == ["a fault of peer %s", "another fault of peer %s"]
    assert audit.limit.suppressed == 198


def test_each_reason_has_its_own_line() -> None:
    with capture_logs() as logs:
        for _ in range(2):
            for reason in ("unknown ca", "certificate expired"):
                audit.handshake_failed(reason)
                audit.connection_dropped(reason, reason)
            audit.token_refused("192.0.2.1")
            audit.namespace_refused("shop", b"secret-namespace")
    assert len(logs) == 6


def test_a_flood_of_one_kind_does_not_hide_another() -> None:
    with capture_logs() as logs:
        for number in range(100):
            audit.connection_dropped("garbage", f"{number} exceeds max_array_len(1024)")
        audit.connection_dropped("garbage", "an HTTP request came")
    assert [entry["reason"] for entry in logs] == ["0 exceeds max_array_len(1024)", "an HTTP request came"]
