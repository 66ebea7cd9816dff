"""As many connections as the system lets the process open files, and some files for the journal."""

import resource

import pytest
from structlog.testing import capture_logs

from statestored import descriptors
from statestored.descriptors import RESERVED, make_room
from statestored.errors import StartError

UNLIMITED = resource.RLIM_INFINITY


class Limit:
    """The process's, as the test wants it."""

    def __init__(self, soft: int, hard: int) -> None:
        self.now = (soft, hard)

    def get(self, _: int) -> tuple[int, int]:
        return self.now

    def set(self, _: int, limits: tuple[int, int]) -> None:
        assert limits[1] == self.now[1]
        assert self.now[1] in (UNLIMITED, max(limits))
        self.now = limits


@pytest.mark.parametrize(
    ("soft", "hard", "raised"),
    [
        (1024, 20_000, 5000 + RESERVED),
        (1024, UNLIMITED, 5000 + RESERVED),
        (10_000, 20_000, 10_000),
        (UNLIMITED, UNLIMITED, UNLIMITED),
        (1024, 5000 + RESERVED, 5000 + RESERVED),
    ],
)
def test_the_limit_is_raised_where_it_is_needed(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, raised: int
) -> None:
    """L4."""
    limit = Limit(soft, hard)
    monkeypatch.setattr(descriptors.resource, "getrlimit", limit.get)
    monkeypatch.setattr(descriptors.resource, "setrlimit", limit.set)
    with capture_logs() as logs:
        assert make_room(5000) == 5000
    assert limit.now[0] == raised
    assert logs == []


@pytest.mark.parametrize("soft", [200, 256])
def test_there_are_fewer_connections_where_the_system_does_not_let_it(
    monkeypatch: pytest.MonkeyPatch, soft: int
) -> None:
    """L4: the others keep theirs for the journal."""
    limit = Limit(soft, 256)
    monkeypatch.setattr(descriptors.resource, "getrlimit", limit.get)
    monkeypatch.setattr(descriptors.resource, "setrlimit", limit.set)
    with capture_logs() as logs:
        assert make_room(5000) == 256 - RESERVED
    assert limit.now == (256, 256)
    assert [entry["log_level"] for entry in logs] == ["warning"]


def test_without_any_it_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = Limit(RESERVED, RESERVED)
    monkeypatch.setattr(descriptors.resource, "getrlimit", limit.get)
    monkeypatch.setattr(descriptors.resource, "setrlimit", limit.set)
    with pytest.raises(StartError, match="ulimit -n"):
        make_room(1)
