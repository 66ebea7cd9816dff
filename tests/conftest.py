"""Fixtures for all tests."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from statestore import RemoteStorage
from tests.daemon import Daemon

# Time limits for single examples make a test fail on a busy machine; the whole run is bounded instead.
settings.register_profile("default", deadline=None, max_examples=100)
settings.register_profile("thorough", deadline=None, max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True)
def umask_is_restored() -> Iterator[None]:
    """A process has one umask: what a test leaves behind would decide what later ones can read."""
    before = _umask()
    yield
    after = _umask()
    os.umask(before)
    assert after == before, f"the umask was {before:04o}, and is {after:04o} after the test"


@pytest.fixture(autouse=True)
def signal_handlers_are_restored() -> Iterator[None]:
    """Those that a test leaves behind would decide what a signal does in later ones."""
    before = _signal_handlers()
    yield
    changed = {number: handler for number, handler in _signal_handlers().items() if handler != before[number]}
    for number in changed:
        signal.signal(number, before[number])
    assert not changed, f"handlers after the test that were not there before: {changed}"


def _signal_handlers() -> dict[int, Any]:
    """All but that of the time limit for a test, which pytest-timeout takes back when the test fails."""
    of_timeout = getattr(signal, "SIGALRM", None)
    return {number: signal.getsignal(number) for number in signal.valid_signals() if number != of_timeout}


def _umask() -> int:
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon of this test's own, with `clear` allowed."""
    with Daemon(tmp_path, "--allow-clear") as daemon:
        yield daemon


@pytest.fixture(scope="session")
def shared_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One for all tests that leave it running and keep to a namespace of their own."""
    with Daemon(tmp_path_factory.mktemp("shared"), "--allow-clear", "--max-namespaces=100000") as daemon:
        yield daemon


@pytest.fixture
def store(shared_daemon: Daemon, request: pytest.FixtureRequest) -> Iterator[RemoteStorage]:
    """A client in a namespace that no other test uses."""
    with RemoteStorage(shared_daemon.address, namespace=request.node.nodeid[-200:]) as storage:
        yield storage
