"""The server's time, by which a write is in time or too late."""

import time

import pytest

from statestored.clock import SteadyClock
from tests.server.waiting import wait_until


def test_it_begins_as_the_systems_clock() -> None:
    before = time.time()
    now = SteadyClock().now()
    assert before - 0.001 <= now <= time.time() + 0.001


def test_it_goes_on() -> None:
    clock = SteadyClock()
    before = clock.now()
    wait_until(lambda: clock.now() > before)


def test_it_is_never_set(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SteadyClock()
    before = clock.now()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert before <= clock.now() < before + 60
