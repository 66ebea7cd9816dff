"""What is worth a line in the log, without anything in it that must not be there."""

from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from statestored import audit
from statestored.errors import StartError

SECRETS = ("192.0.2.1", "secret-namespace")


@pytest.mark.parametrize(
    "write",
    [
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
